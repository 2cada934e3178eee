"""Speed relative to memory bandwidth and to other libraries: ``python -m benchmarks.limit``.

Each pass of inplace_abn is timed in turn with an in-place stream over the same arrays and with the peers
that are available: PyTorch eager, torch.compile, JAX jit, oneDNN. For the others the reason is printed. All
run in the same process, with cold caches; the figures are medians over repetitions and over several fresh
processes. Cases where inplace_abn is slower are printed like all others.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from benchmarks import ROOT, chart, machine, plans, prototype, report, tables, targets, worker
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
    prototype: str | None
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
    """Add --threads; the default is the number of threads that inplace_abn uses by default."""
    parser.add_argument(
        "--threads",
        type=int,
        default=functional.get_num_threads(),
        help="default: all processors of this process, here %(default)s; targets and published tables are "
        f"for {targets.THREADS}",
    )


def parser():
    """Return the command's parser."""
    make = argparse.ArgumentParser(prog="python -m benchmarks.limit", description=__doc__.splitlines()[0])
    make.add_argument("--quick", action="store_true", help="a few shapes, no peers; less than two minutes")
    make.add_argument(
        "--shapes", nargs="+", type=shape, metavar="NxCxHxW", help="shapes to measure instead of the table's"
    )
    make.add_argument("--layouts", nargs="+", choices=targets.LAYOUTS)
    peers = make.add_mutually_exclusive_group()
    peers.add_argument("--peers", nargs="+", choices=tuple(PEERS), help="default: all that are available")
    peers.add_argument("--no-peers", action="store_true")
    make.add_argument(
        "--processes", type=int, help="fresh processes per allocator setting (5; with --quick 3)"
    )
    make.add_argument("--repeat", type=int, default=7, help="timed repetitions per process (7)")
    make.add_argument(
        "--prototype",
        type=Path,
        metavar="FILE",
        help="also measure a prototype in the section limit: a C file or a shared library with the functions "
        "that benchmarks/prototype.py describes",
    )
    add_threads(make)
    make.add_argument("--isa", help="force an instruction set of inplace_abn: v4, v3, v2, neon, baseline")
    make.add_argument(
        "--flush", type=float, metavar="MB", help="size of the buffer written before each call (128 or more)"
    )
    make.add_argument("--output", type=Path, metavar="DIR", help="write limit.json and limit.png there")
    make.add_argument(
        "--docs",
        type=Path,
        nargs="?",
        const=ROOT,
        metavar="DIR",
        help="write the tables into docs/benchmarks.md and the short one into README.md",
    )
    only = make.add_argument_group(
        "sections", "Default: all sections; with --quick the sections limit and overhead."
    )
    only.add_argument("--limit", action="store_true", help="compare with the stream and the peers")
    only.add_argument("--dtypes", nargs="*", choices=("float16", "bfloat16", "float64"))
    only.add_argument(
        "--activations",
        nargs="*",
        choices=[name for name in plans.ACTIVATIONS if name != "leaky_relu"],
        metavar="NAME",
        help="compare activations with the stream, leaky_relu and PyTorch's silu, also with a residual",
    )
    only.add_argument(
        "--strategies", nargs="*", choices=("checkpoint", "checkpoint_xhat", "inplace_1", "inplace_2")
    )
    only.add_argument("--overhead", action="store_true", help="the time of a call on a tiny array")
    make.add_argument("--worker", metavar="PLAN", help=argparse.SUPPRESS)
    return make


def options(arguments):
    """Return the `Options` of parsed arguments: defaults and selected sections filled in."""
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
        prototype=prototype.build(arguments.prototype) if arguments.prototype else None,
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
            f"In the last minute {busy:.1f} processors were busy. Other load on the machine makes all "
            "figures worse and more targets missed."
        )
    if wanted.threads != targets.THREADS and not targets.has_targets(machine.cpu_model(), wanted.threads):
        notes.append(f"The targets are for {targets.THREADS} threads; this run used {wanted.threads}.")
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
    """Run the plan in this process; write each result to standard output as a line of JSON."""
    out = worker.redirect_stdout()
    try:
        for result in worker.work(json.loads(plan)):
            print(json.dumps(result), file=out, flush=True)
    except KeyboardInterrupt:  # the parent process reports it
        return 130
    out.close()
    return 0


def _run_all(todo, isa, notes):
    """Run the plans one by one, printing each row; after an interrupt return what was measured so far."""
    runs = []
    try:
        for number, plan in enumerate(todo, 1):
            print(f"process {number} of {len(todo)} ({plan['environment']})", file=sys.stderr, flush=True)
            run, problem = plans.run_robustly(plan, isa, _print_row)
            runs.append(run)
            notes += [problem] if problem else []
    except KeyboardInterrupt as interrupt:
        notes.append(f"Interrupted: the figures are those of {len(runs)} of {len(todo)} processes.")
        if isinstance(interrupt, plans.Interrupted) and interrupt.result["groups"]:
            runs.append(interrupt.result)
            notes[-1] = notes[-1][:-1] + " and of the first rows of one more."
    return runs


def _print_row(group):
    print(f"  {report.one_line(group)}", file=sys.stderr, flush=True)


def _write(folder, summary, runs):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "limit.json").write_text(
        json.dumps({"summary": summary, "runs": runs}, indent=1, default=report.Judged.plain)
    )
    try:
        chart.draw(summary, folder / "limit.png")
    except ImportError as error:
        print(f"limit.png was not drawn: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
