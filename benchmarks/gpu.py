"""Speed and memory on an NVIDIA GPU, next to PyTorch's own operations: ``python -m benchmarks.gpu``.

Operations are timed in turn with a copy of the same bytes on the device, training steps of ResNet-50 as
PyTorch runs them and as a CUDA graph. The figures are medians over rounds within one process.
"""

import argparse
import json
import sys
from pathlib import Path

from benchmarks import ROOT, tables

BEGIN, END = "<!-- gpu-table:begin -->", "<!-- gpu-table:end -->"
SHAPES = [(64, 64, 112, 112), (64, 256, 56, 56), (64, 512, 28, 28), (64, 1024, 14, 14), (64, 2048, 7, 7)]
DTYPES = ["float32", "bfloat16"]
LAYOUTS = ["channels-first", "channels-last"]
SECTIONS = ["operations", "networks", "largest"]


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
    headers = ["x", "dtype", "layout", "residual", "copy, ms"]
    headers += [f"{direction}, {who}" for direction in ("forward", "backward") for who in ("PyTorch", "ours")]
    rows = []
    for r in results:
        row = ["x".join(map(str, r["shape"])), r["dtype"], r["layout"], "yes" if r["residual"] else ""]
        row.append(f"{1e3 * r['copy']:.3f}")
        for direction in ("forward", "backward"):
            row += [f"{r[who][direction] / r['copy']:.2f}" for who in ("stock", "ours")]
        rows.append(row)
    return headers, rows


def network_rows(results):
    """Return headers and rows of the table of networks."""
    headers = ["ResNet-50, setting", "activation", "", "kept, MiB", "peak, MiB", "step, ms", "as a graph, ms"]
    rows = []
    for r in results:
        for who in ("stock", "ours"):
            found = r[who]
            graph = "" if found["graph"] is None else f"{1e3 * found['graph']:.1f}"
            rows.append([
                r["setting"], r["activation"], who, f"{found['kept'] / 2**20:.0f}",
                f"{found['peak'] / 2**20:.0f}", f"{1e3 * found['step']:.1f}", graph,
            ])  # fmt: skip
    return headers, rows


def largest_rows(results):
    """Return headers and rows of the table of largest batches."""
    return ["ResNet-50, largest batch", "images"], [[name, str(images)] for name, images in results.items()]


def text(found):
    """Return the tables of all sections that were measured."""
    form = {"operations": operation_rows, "networks": network_rows, "largest": largest_rows}
    return "\n\n".join(tables.grid(*form[name](found[name])) for name in SECTIONS if found.get(name))


def measure(arguments, device):
    """Measure the sections, printing each row, and return all results."""
    from benchmarks import gpu_networks, gpu_operations

    found = {"machine": gpu_operations.machine(device)}
    print(found["machine"], flush=True)
    if "operations" in arguments.sections:
        found["operations"] = []
        for case in gpu_operations.cases(arguments.shapes, arguments.dtypes, LAYOUTS):
            row = gpu_operations.measure(*case, device, arguments.rounds)
            found["operations"].append(row)
            print("  ".join(operation_rows([row])[1][0]), flush=True)
    if "networks" in arguments.sections:
        found["networks"] = []
        for case in gpu_networks.cases():
            row = gpu_networks.measure(*case, arguments.images, arguments.size, device, arguments.rounds)
            found["networks"].append(row)
            for line in network_rows([row])[1]:
                print("  ".join(line), flush=True)
    if "largest" in arguments.sections:
        found["largest"] = gpu_networks.largest(arguments.size, device)
        print(found["largest"], flush=True)
    return found


def parser():
    """Return the command's parser."""
    make = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    make.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS[:2])
    make.add_argument("--shapes", nargs="+", type=_shape, default=SHAPES, metavar="64x256x56x56")
    make.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    make.add_argument("--images", type=int, default=64, help="images of a network's batch (%(default)s)")
    make.add_argument("--size", type=int, default=224, help="height and width of an image (%(default)s)")
    make.add_argument("--rounds", type=int, default=7, help="of every contestant (%(default)s)")
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
