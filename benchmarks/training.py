"""Accuracy, memory and time of whole trainings: ``python -m benchmarks.training``.

Repeats the training of ``python -m inplace_abn demo`` for several seeds, alternating between the strategies
from step to step. Scores are means over the seeds; times are medians over the steps of each seed, then over
the seeds.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

from benchmarks import ROOT, machine, tables
from benchmarks.report import Judged
from inplace_abn import demo, functional
from inplace_abn.demo import report, tasks, training

#: Targets: test accuracy in %; distance from the strategy standard in points; kept bytes and time / those of
#: standard.
ACCURACY, POINTS, KEPT, SECONDS = {"classification": 97}, {"classification": 0.5}, 0.55, 1.0
BEGIN, END = "<!-- demo-table:begin -->", "<!-- demo-table:end -->"


def measure(task, seeds, strategies=demo.STRATEGIES, **options):
    """Train with each seed; return a list of the results of `inplace_abn.demo.report.results`."""
    found = []
    for seed in range(seeds):
        setting = tasks.TASKS[task].setting(seed=seed, **options)
        print(f"{setting.task.name}, seed {seed}", file=sys.stderr, flush=True)
        found.append(report.results(setting, training.compare(setting, strategies)))
    return found


def combine(runs):
    """Combine the results of several seeds: the mean of scores, the median of all other numbers."""
    combined = {**runs[0], "strategies": {}}
    for strategy, row in runs[0]["strategies"].items():
        every = [run["strategies"][strategy] for run in runs]
        middle = {key: None if row[key] is None else statistics.median(one[key] for one in every)
                  for key in report.COLUMNS}  # fmt: skip
        middle["score"] = statistics.fmean(one["score"] for one in every)
        combined["strategies"][strategy] = middle
    return combined


def judge(task, runs):
    """Return the figures that have a target, by name."""
    rows = combine(runs)["strategies"]
    standard, inplace = rows["standard"], rows["inplace_2"]
    scores = [row["score"] for row in rows.values()]
    farthest = max(abs(score - standard["score"]) for score in scores)
    return {
        "lowest score of a strategy, %": Judged(100 * min(scores), ACCURACY.get(task)),
        "largest distance from the score of standard, points": Judged(
            100 * farthest, POINTS.get(task), at_most=True
        ),
        "kept, inplace_2 / standard": Judged(inplace["kept"] / standard["kept"], KEPT, at_most=True),
        "time of a step, inplace_2 / standard": Judged(
            inplace["seconds"] / standard["seconds"], SECONDS, at_most=True
        ),
    }


def per_seed(runs):
    """Return the scores of each seed as a table."""
    rows = [
        [strategy, *(f"{run['strategies'][strategy]['score']:.2%}" for run in runs)]
        for strategy in runs[0]["strategies"]
    ]
    return tables.grid([runs[0]["scored"], *(f"seed {seed}" for seed in range(len(runs)))], rows)


def headline(numbers):
    """Return the result as one sentence."""
    inplace, standard = (numbers["strategies"][name] for name in ("inplace_2", "standard"))
    return (
        f"**{numbers['task'].capitalize()}: {inplace['kept'] / standard['kept']:.0%} of the activation "
        f"memory**, {report.human(inplace['kept'])} instead of {report.human(standard['kept'])}; "
        f"{numbers['scored']} "
        f"{inplace['score']:.1%} in place, {standard['score']:.1%} by standard layers; a step takes "
        f"{inplace['seconds'] / standard['seconds']:.2f} times as long."
    )


def block(results):
    """Return the text for the documentation, for a dict of task to runs."""
    parts = []
    for runs in results.values():
        numbers = combine(runs)
        seeds = f"means of {len(runs)} seeds" if len(runs) > 1 else "one seed"
        parts += [headline(numbers), report.markdown(numbers), f"{seeds}, {report.head(numbers)}"]
    return "\n\n".join(parts)


def parser():
    """Return the command's parser."""
    make = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__.splitlines()[0])
    make.add_argument("--tasks", nargs="+", choices=list(tasks.TASKS), default=list(tasks.TASKS)[:1])
    make.add_argument("--seeds", type=int, default=5, metavar="N", help="number of seeds (5)")
    make.add_argument("--quick", action="store_true", help="smaller networks and fewer epochs")
    make.add_argument("--epochs", type=int, metavar="N")
    make.add_argument("--batch-size", type=int, metavar="N")
    make.add_argument("--output", type=Path, metavar="FILE.json", help="write all numbers there")
    make.add_argument("--docs", type=Path, nargs="?", const=ROOT / "docs" / "benchmarks.md", metavar="FILE",
                      help="write the results into docs/benchmarks.md")  # fmt: skip
    return make


def main(argv=None):
    """Run the command; return the process's exit code."""
    arguments = parser().parse_args(argv)
    options = {name: getattr(arguments, name) for name in ("quick", "epochs", "batch_size")}
    results = {task: measure(task, arguments.seeds, **options) for task in arguments.tasks}
    print("\n".join(machine.header(machine.describe(functional.get_num_threads()))))
    for task, runs in results.items():
        judged = [[name, tables.judged(figure)] for name, figure in judge(task, runs).items()]
        numbers = combine(runs)
        print(f"\n{report.table(numbers)}\n\n{per_seed(runs)}\n\n{tables.grid(['', ''], judged)}")
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1), encoding="utf-8")
    if arguments.docs:
        tables.rewrite(arguments.docs, block(results), BEGIN, END)
    return 0


if __name__ == "__main__":
    sys.exit(main())
