"""Speed and memory on an NVIDIA GPU, next to PyTorch's own operations: ``python -m benchmarks.gpu``.

Operations are timed in turn with a copy of the same bytes on the device, training steps of ResNet-50 as
PyTorch runs them and as a CUDA graph. The figures are medians over rounds within one process.
"""

import argparse
import itertools
import json
import sys
import traceback
from functools import partial
from pathlib import Path

from benchmarks import ROOT, tables

BEGIN, END = "<!-- gpu-table:begin -->", "<!-- gpu-table:end -->"
SHAPES = [(64, 64, 112, 112), (64, 256, 56, 56), (64, 512, 28, 28), (64, 1024, 14, 14), (64, 2048, 7, 7)]
DTYPES = ["float32", "bfloat16"]
LAYOUTS = ["channels-first", "channels-last"]


def why_not():
    """Say why nothing can be measured, or return None."""
    try:
        import torch
    except ImportError:
        return "PyTorch is not installed"
    from inplace_abn import functional

    if not torch.cuda.is_available():
        return "PyTorch finds no NVIDIA GPU"
    cuda = functional.info()["cuda"]
    return None if cuda["available"] else cuda["reason"]


def operation_rows(results):
    """Return headers and rows of the table of operations: times relative to the copy."""
    names = [name for name in ("stock", "compiled", "ours") if any(name in r for r in results)]
    headers = ["x", "dtype", "layout", "residual", "copy, ms"]
    headers += [f"{direction}, {name}" for direction in ("forward", "backward") for name in names]
    headers += [f"error of {name}" for name in ("z", "dx", "dweight")]
    rows = []
    for r in results:
        row = ["x".join(map(str, r["shape"])), r["dtype"], r["layout"], "yes" if r["residual"] else ""]
        row.append(f"{1e3 * r['copy']:.3f}")
        for direction in ("forward", "backward"):
            row += [f"{r[name][direction] / r['copy']:.2f}" if name in r else "" for name in names]
        rows.append(row + [f"{r['errors']['ours'][name]:.1e}" for name in ("z", "dx", "dweight")])
    return headers, rows


def network_rows(results):
    """Return headers and rows of the table of networks."""
    headers = [
        "network, images",
        "setting",
        "activation",
        "",
        "kept, MiB",
        "peak, MiB",
        "step, ms",
        "graph, ms",
    ]
    rows = []
    for r in results:
        what = [f"{r['network']}, {r['images']}", r["setting"], r["activation"]]
        for name, found in r["found"].items():
            row = [f"{found[of] / 2**20:.0f}" for of in ("kept", "peak")]
            row += ["" if found[of] is None else f"{1e3 * found[of]:.1f}" for of in ("step", "graph")]
            rows.append([*what, name, *row])
        rows += [[*what, name, "failed", "", "", ""] for name in r["errors"] if name not in r["found"]]
    return headers, rows


def host_rows(results):
    """Return headers and rows of the table of the host's times."""
    headers = ["host, µs of a call", "layout", "forward, stock", "forward, ours"]
    headers += ["with backward, stock", "with backward, ours"]
    rows = []
    for r in results:
        times = [r[name][of] for of in ("forward", "both") for name in ("stock", "ours")]
        rows.append([r["dtype"], r["layout"], *(f"{1e6 * time:.0f}" for time in times)])
    return headers, rows


def training_rows(results):
    """Return headers and rows of the table of trainings: the loss on the way, and how far both are apart."""
    headers = ["training", "setting", "", "first loss", "a quarter", "half", "last", "largest difference"]
    rows = []
    for r in results:
        difference = max(abs(a - b) / abs(a) for a, b in zip(r["stock"], r["ours"], strict=True))
        for name in ("stock", "ours"):
            losses = r[name]
            shown = [losses[0], losses[len(losses) // 4], losses[len(losses) // 2], losses[-1]]
            rows.append([r["network"], r["setting"], name, *(f"{loss:.4f}" for loss in shown), ""])
        rows[-1][-1] = f"{difference:.1e}"
    return headers, rows


def largest_rows(results):
    """Return headers and rows of the table of largest batches."""
    return ["ResNet-50, largest batch", "images"], [[name, str(images)] for name, images in results.items()]


ROWS = {
    "operations": operation_rows, "host": host_rows, "networks": network_rows, "training": training_rows,
    "largest": largest_rows,
}  # fmt: skip


def text(found):
    """Return the tables of all sections that were measured."""
    return "\n\n".join(tables.grid(*rows(found[name])) for name, rows in ROWS.items() if found.get(name))


def calls_of(section, arguments, device):
    """Return the measurements of a section, one call per row."""
    from benchmarks import gpu_host, gpu_networks, gpu_operations, gpu_training

    if section == "operations":
        cases = gpu_operations.cases(arguments.shapes, arguments.dtypes, LAYOUTS)
        return [
            partial(gpu_operations.measure, *case, device, arguments.rounds, arguments.compile)
            for case in cases
        ]
    if section == "host":
        cases = itertools.product(arguments.dtypes, LAYOUTS)
        return [partial(gpu_host.measure, *case, device, arguments.rounds) for case in cases]
    if section == "training":
        cases = itertools.product(gpu_training.DATA, gpu_training.SETTINGS)
        return [partial(gpu_training.measure, *case, arguments.size, device) for case in cases]
    cases = gpu_networks.cases(arguments.images, arguments.compile)
    return [partial(gpu_networks.measure, case, arguments.size, device, arguments.rounds) for case in cases]


def measure(arguments, device):
    """Measure the sections, printing each row, and return all results. A row that fails is left out."""
    from benchmarks import gpu_networks, gpu_operations

    found = {"machine": gpu_operations.machine(device)}
    print(found["machine"], flush=True)
    for section in arguments.sections:
        if section == "largest":
            found[section] = gpu_networks.largest(arguments.size, device)
            print(found[section], flush=True)
            continue
        found[section] = []
        for call in calls_of(section, arguments, device):
            try:
                row = call()
            except Exception:  # the other rows are still measured
                traceback.print_exc()
                continue
            found[section].append(row)
            for line in ROWS[section]([row])[1]:
                print("  ".join(line), flush=True)
            if arguments.output:
                arguments.output.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return found


def parser():
    """Return the command's parser."""
    make = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    make.add_argument(
        "--sections", nargs="+", choices=ROWS, default=["operations", "host", "networks", "training"]
    )
    make.add_argument("--shapes", nargs="+", type=_shape, default=SHAPES, metavar="64x256x56x56")
    make.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    make.add_argument("--images", type=int, default=64, help="images of a network's batch (%(default)s)")
    make.add_argument("--size", type=int, default=224, help="height and width of an image (%(default)s)")
    make.add_argument("--rounds", type=int, default=7, help="of every contestant (%(default)s)")
    make.add_argument("--compile", action="store_true", help="also torch.compile, which takes minutes")
    make.add_argument("--output", type=Path, metavar="FILE.json", help="write all numbers there")
    make.add_argument("--docs", action="store_true", help="rewrite the tables of docs/gpu.md")
    return make


def _shape(text):
    return tuple(map(int, text.split("x")))


def main(argv=None):
    """Run the command; return the process's exit code."""
    arguments = parser().parse_args(argv)
    reason = why_not()
    if reason is not None:
        print(f"nothing to measure: {reason}")
        return 0
    found = measure(arguments, "cuda")
    print(f"\n{text(found)}")
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=1), encoding="utf-8")
    if arguments.docs:
        tables.rewrite(ROOT / "docs" / "gpu.md", f"{text(found)}\n\n{found['machine']}", BEGIN, END)
    return 0


if __name__ == "__main__":
    sys.exit(main())
