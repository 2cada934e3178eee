"""How close to the limit: ``python -m benchmarks.limit``.

Every pass of inplace_abn is timed beside an in-place stream over the same arrays, and beside the peers that
run here (PyTorch eager, torch.compile, JAX jit, oneDNN; of the others it says why not): one after the other
in the same process, with cold caches, medians over the repetitions, in several fresh processes. Losses are
printed like the rest.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from benchmarks import ROOT, chart, machine, plans, report, tables, targets, worker
from benchmarks.peers import PEERS
from inplace_abn import functional

SECTIONS = ("limit", "dtypes", "activations", "strategies", "overhead")


@dataclasses.dataclass
class Options:
    """What to measure, as `benchmarks.plans.make` takes it."""

    sections: dict
    peers: list
    dtypes: list
    activations: list
    strategies: list
    overhead: bool
    processes: int
    repeat: int
    threads: int
    flush_bytes: int


def shape(text):
    """Return "32x64x112x112" (or with commas) as a tuple of at least (N, C)."""
    lengths = tuple(int(part) for part in text.replace(",", "x").split("x"))
    if len(lengths) < 2 or min(lengths) < 1:
        raise ValueError(text)
    return lengths


def add_threads(parser):
    """Add --threads; the default is what inplace_abn would use."""
    parser.add_argument(
        "--threads",
        type=int,
        default=functional.get_num_threads(),
        help="default: all that this process may use, here %(default)s; the targets and the published table "
        f"are for {targets.THREADS}",
    )


def parser():
    """Return the command's parser."""
    make = argparse.ArgumentParser(prog="python -m benchmarks.limit", description=__doc__.splitlines()[0])
    make.add_argument("--quick", action="store_true", help="a few shapes without peers, below a minute")
    make.add_argument(
        "--shapes", nargs="+", type=shape, metavar="NxCxHxW", help="instead of the table's rows"
    )
    make.add_argument("--layouts", nargs="+", choices=targets.LAYOUTS)
    peers = make.add_mutually_exclusive_group()
    peers.add_argument("--peers", nargs="+", choices=tuple(PEERS), help="default: all that run here")
    peers.add_argument("--no-peers", action="store_true")
    make.add_argument(
        "--processes", type=int, help="fresh processes for each allocator setting (5; quick: 3)"
    )
    make.add_argument("--repeat", type=int, default=7, help="timed repetitions in each process (7)")
    add_threads(make)
    make.add_argument("--isa", help="force an instruction set of inplace_abn: v4, v3, v2, neon, baseline")
    make.add_argument(
        "--flush", type=float, metavar="MB", help="buffer touched before each call (128 or more)"
    )
    make.add_argument("--output", type=Path, metavar="DIR", help="write limit.json and limit.png there")
    make.add_argument(
        "--docs",
        type=Path,
        nargs="?",
        const=ROOT,
        metavar="DIR",
        help="put the tables into docs/benchmarks.md and the short one into README.md",
    )
    only = make.add_argument_group(
        "sections", "Without any of these, all are measured (--quick: limit, overhead)."
    )
    only.add_argument("--limit", action="store_true", help="the stream and the peers")
    only.add_argument("--dtypes", nargs="*", choices=("float16", "bfloat16", "float64"))
    only.add_argument(
        "--activations",
        nargs="*",
        choices=[name for name in plans.ACTIVATIONS if name != "leaky_relu"],
        metavar="NAME",
        help="as shares of the stream, with leaky_relu, residuals, and PyTorch's silu beside them",
    )
    only.add_argument(
        "--strategies", nargs="*", choices=("checkpoint", "checkpoint_xhat", "inplace_1", "inplace_2")
    )
    only.add_argument("--overhead", action="store_true", help="the cost of a call on a tiny array")
    make.add_argument("--worker", metavar="PLAN", help=argparse.SUPPRESS)
    return make


def options(arguments):
    """Turn parsed arguments into `Options`: defaults, and which sections are wanted."""
    named = [name for name in SECTIONS if getattr(arguments, name) not in (None, False)]
    wanted = named or (("limit", "overhead") if arguments.quick else SECTIONS)
    rows = {
        "limit": targets.QUICK if arguments.quick else targets.LIMIT,
        "activations": targets.QUICK_ACTIVATIONS if arguments.quick else targets.ACTIVATIONS,
    }
    if arguments.no_peers or (arguments.quick and not arguments.peers):
        peers = []
    else:
        peers = arguments.peers or list(PEERS)
    return Options(
        sections={
            name: targets.select(arguments.shapes, arguments.layouts, rows.get(name, targets.QUICK))
            for name in wanted
            if name != "overhead"
        },
        peers=[peer for peer in peers if any(peer in plans.TAKES_PART.get(name, ()) for name in wanted)],
        dtypes=arguments.dtypes or ["float16", "bfloat16"],
        activations=arguments.activations or ["silu", "gelu_tanh", "gelu", "mish", "elu", "prelu"],
        strategies=arguments.strategies or ["checkpoint", "checkpoint_xhat", "inplace_1", "inplace_2"],
        overhead="overhead" in wanted,
        processes=arguments.processes or (3 if arguments.quick else 5),
        repeat=arguments.repeat,
        threads=arguments.threads,
        flush_bytes=int(arguments.flush * (1 << 20)) if arguments.flush else plans.flush_bytes(),
    )


def main(argv=None):
    """Run the command; return the process's exit code."""
    arguments = parser().parse_args(argv)
    if arguments.worker:
        return _work(arguments.worker)
    wanted, notes = options(arguments), []
    if (busy := machine.load()) > 0.5:
        notes.append(
            f"In the minute before, {busy:.1f} processors were busy: where others share the machine, every "
            "figure is worse than on a quiet one, and so is every verdict."
        )
    if wanted.threads != targets.THREADS:
        notes.append(f"The targets are for {targets.THREADS} threads; these are {wanted.threads}.")
    if wanted.peers:
        wanted.peers, missing = plans.available(wanted.peers, wanted.threads)
        notes += [f"{PEERS[peer][1]} is not available: {reason}" for peer, reason in missing.items()]
    for note in notes:
        print(note, file=sys.stderr, flush=True)
    runs = _run_all(plans.make(wanted), arguments.isa, notes)
    if not runs:
        return 130
    summary = report.summarise(runs, notes)
    content = tables.text(summary)
    print(content)
    if arguments.output:
        _write(arguments.output, summary, runs)
    if arguments.docs:
        tables.rewrite(arguments.docs / "docs" / "benchmarks.md", tables.text(summary, targets=False))
        if summary["peers"]:
            short = tables.short(summary)
            tables.rewrite(arguments.docs / "README.md", short, tables.SHORT_BEGIN, tables.SHORT_END)
    return 0


def _work(plan):
    """Be one of the measuring processes."""
    out = worker.redirect_stdout()
    try:
        json.dump(worker.work(json.loads(plan)), out)
    except KeyboardInterrupt:  # the parent process reports it
        return 130
    out.close()
    return 0


def _run_all(todo, isa, notes):
    """Carry out the plans one by one; after an interrupt return what has been measured so far."""
    runs = []
    try:
        for number, plan in enumerate(todo, 1):
            print(f"process {number} of {len(todo)} ({plan['environment']})", file=sys.stderr, flush=True)
            run, problem = plans.run_robustly(plan, isa)
            runs.append(run)
            notes += [problem] if problem else []
    except KeyboardInterrupt:
        notes.append(f"Interrupted: these are the figures of {len(runs)} of {len(todo)} processes.")
    return runs


def _write(folder, summary, runs):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "limit.json").write_text(
        json.dumps({"summary": summary, "runs": runs}, indent=1, default=report.Judged.plain)
    )
    try:
        chart.draw(summary, folder / "limit.png")
    except ImportError as error:
        print(f"no picture: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
