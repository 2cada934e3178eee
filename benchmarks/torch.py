"""Memory and time of models of PyTorch on a CPU, as they are and converted: ``python -m benchmarks.torch``.

The networks are torchvision's. Every figure is measured in a fresh process; what is compared by time runs in
turn in one process. `inplace_abn.torch.convert` makes the converted model.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

from benchmarks import ROOT, machine, plans, tables, targets, torch_tables, worker
from benchmarks.limit import add_threads

BEGIN, END = "<!-- torch-table:begin -->", "<!-- torch-table:end -->"
SECTIONS = ("kept", "normalizations", "tiny", "peak", "steps")
QUICK_NETWORKS, QUICK_PAIRS = ("resnet50", "mobilenet-v2"), 3
ACTIVATIONS = ("relu", "leaky_relu")


def why_not():
    """Say why nothing can be measured, or return None."""
    for name in ("torch", "torchvision"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed"
    return None


def parser():
    """Return the command's parser."""
    make = argparse.ArgumentParser(prog="python -m benchmarks.torch", description=__doc__.splitlines()[0])
    make.add_argument(
        "--quick",
        action="store_true",
        help=f"{' and '.join(QUICK_NETWORKS)}, channels-first, {QUICK_PAIRS} pairs, no peaks; two minutes",
    )
    names = tuple(torch_tables.NAMES)
    make.add_argument("--sections", nargs="+", choices=SECTIONS, help="default: all")
    make.add_argument("--networks", nargs="+", choices=names, help="default: all")
    make.add_argument("--layouts", nargs="+", choices=targets.LAYOUTS, help="default: both")
    make.add_argument(
        "--compile",
        nargs="+",
        choices=names,
        default=[],
        metavar="NETWORK",
        help="also compare these with torch.compile and its activation_memory_budget; minutes per network",
    )
    make.add_argument("--budget", type=float, default=0.5, help="that budget, a share (%(default)s)")
    make.add_argument("--images", type=int, default=targets.TORCH_IMAGES, help="of a batch (%(default)s)")
    make.add_argument("--pairs", type=int, help=f"of steps of both (9; with --quick {QUICK_PAIRS})")
    add_threads(make)
    make.add_argument("--output", type=Path, metavar="FILE.json", help="write all numbers there, row by row")
    make.add_argument(
        "--resume",
        action="store_true",
        help="keep what that file has of this machine and these versions, and measure what it lacks",
    )
    make.add_argument("--docs", type=Path, nargs="?", const=ROOT / "docs" / "pytorch.md", metavar="FILE",
                      help="rewrite the tables of docs/pytorch.md")  # fmt: skip
    make.add_argument("--worker", type=json.loads, metavar="TASK", help=argparse.SUPPRESS)
    return make


def tasks(arguments):
    """Return the tasks that the arguments ask for, in order."""
    quick = arguments.quick
    networks = arguments.networks or (QUICK_NETWORKS if quick else tuple(torch_tables.NAMES))
    layouts = arguments.layouts or (targets.LAYOUTS[:1] if quick else targets.LAYOUTS)
    pairs = {"pairs": arguments.pairs or (QUICK_PAIRS if quick else 9)}
    images = {"images": arguments.images}
    first = {**images, "layout": layouts[0]}
    both = [{**images, **pairs, "layout": layout} for layout in layouts]
    made = {
        "kept": [{"network": network, **first} for network in networks],
        "normalizations": [{"activation": name, **each} for each in both for name in ACTIVATIONS],
        "tiny": [{"activation": name, **pairs} for name in ACTIVATIONS],
        "peak": [
            {"network": network, "who": who, **first} for network in networks for who in torch_tables.WHO
        ],
        "steps": [{"network": network, **each} for network in networks for each in both],
    }
    sections = arguments.sections or [name for name in SECTIONS if name != "peak" or not quick]
    todo = [{"section": name, **task} for name in SECTIONS if name in sections for task in made[name]]
    todo += [
        {"section": "compiled", "network": network, "budget": arguments.budget, **both[0]}
        for network in arguments.compile
    ]
    return [task | {"threads": arguments.threads} for task in todo]


def run(task):
    """Run a task in a fresh process and return its numbers.

    Raises
    ------
    RuntimeError
        The process failed. Its messages are on standard error.
    """
    command = [sys.executable, "-m", "benchmarks.torch", "--worker", json.dumps(task)]
    environment = plans.environment(task["threads"])
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"a measuring process ({task}) ended with code {done.returncode}")
    return json.loads(done.stdout)


def _work(task):
    """Run the task in this process; write its numbers to standard output as a line of JSON."""
    from benchmarks import torch_tasks

    out = worker.redirect_stdout()
    try:
        print(json.dumps(torch_tasks.run(task)), file=out, flush=True)
    except KeyboardInterrupt:  # the parent process reports it
        return 130
    out.close()
    return 0


def measure(todo, records, described, measured):
    """Run the tasks that `records` lacks, and add theirs; `measured` is called after each.

    Returns
    -------
    bool
        False after an interrupt.
    """
    done = [record["task"] for record in records]
    try:
        for task in todo:
            if task not in done:
                records.append({"task": task, "found": run(task), "machine": described})
                measured(records)
    except KeyboardInterrupt:
        return False
    return True


def describe(threads):
    """Return the machine and the versions as a line."""
    found = machine.describe(threads)
    return f"inplace_abn {found['inplace_abn']['version']}; {machine.short(found)}"


def main(argv=None):
    """Run the command; return the process's exit code."""
    make = parser()
    arguments = make.parse_args(argv)
    if arguments.resume and not arguments.output:
        make.error("--resume needs --output FILE.json")
    reason = why_not()
    if reason is not None:
        print(f"nothing to measure: {reason}")
        return 0
    if arguments.worker:
        return _work(arguments.worker)
    if (busy := machine.load()) > 0.5:
        print(f"In the last minute {busy:.1f} processors were busy; times will be worse.", file=sys.stderr)
    described, records = describe(arguments.threads), []
    if arguments.resume and arguments.output.exists():
        saved = json.loads(arguments.output.read_text(encoding="utf-8"))["records"]
        records = [record for record in saved if record["machine"] == described]

    def measured(records):
        print(f"  {torch_tables.one_line(records[-1])}", file=sys.stderr, flush=True)
        if arguments.output:
            arguments.output.write_text(json.dumps({"records": records}, indent=1), encoding="utf-8")

    complete = measure(tasks(arguments), records, described, measured)
    if not records:
        return 130
    _show(records, complete)
    if arguments.docs:
        tables.rewrite(arguments.docs, torch_tables.text(records), BEGIN, END)
    return 0


def _show(records, complete):
    """Print the tables, and the figures with their targets."""
    judged = [[name, tables.judged(figure)] for name, figure in torch_tables.judge(records).items()]
    print(torch_tables.text(records))
    print(f"\n{tables.grid(['', ''], judged)}")
    if not complete:
        print("Interrupted: the tables have what was measured before.")


if __name__ == "__main__":
    sys.exit(main())
