"""What a training step keeps for its backward: ``python -m benchmarks.memory``.

From the ledger, to the byte; nothing is timed. ResNet-50, ResNet-34 and MobileNetV2 with small images: with
larger ones all that is kept grows, and its shares stay.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from benchmarks import ROOT, tables
from benchmarks.report import Judged
from inplace_abn import models
from inplace_abn.memory import ledger

NETWORKS = {
    "ResNet-50": lambda width, **style: models.resnet(3, 1000, width=width, **style),
    "ResNet-34": lambda width, **style: models.resnet(3, 1000, block="basic", width=width, **style),
    "MobileNetV2": lambda width, **style: models.mobilenet_v2(3, 1000, width=width / 64, **style),
}
STRATEGIES, ACTIVATIONS = ("standard", "checkpoint", "inplace"), ("leaky_relu", "silu")

CONVOLUTIONS, SHORTCUTS, OFFSETS = "inputs of convolutions", "projection shortcuts", "offsets of the pooling"
POOLED, REST = "results before a pooling", "inputs of other layers"
#: What cannot be had for less, as rows of the table; then what normalizations and activations add.
FLOOR = (CONVOLUTIONS, SHORTCUTS, OFFSETS)
_ROLES = {
    "z": POOLED,
    "sides": "sides, a bit per element",
    "guarded_xhat": "guarded channels",
    "escape_index": "escaped elements",
    "escape_xhat": "escaped elements",
    "x": "inputs of normalizations",
    "activation": "inputs of activations",
}
ROWS = (*FLOOR, *dict.fromkeys(_ROLES.values()), REST)

#: To reach: kept in place / kept by standard, and what is kept beside the floor / the floor.
KEPT = {("ResNet-50", "leaky_relu"): 0.56, ("ResNet-50", "silu"): 0.59}
BESIDE = {("ResNet-50", "leaky_relu"): 0.01}
BEGIN, END = "<!-- memory-table:begin -->", "<!-- memory-table:end -->"


def measure(network, width, shape, activation, strategy):
    """Return the bytes kept at the end of a forward, by row of the table."""
    net = NETWORKS[network](width, activation=activation, strategy=strategy, rng=0)
    images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    with ledger() as book:
        net(images)
        return by_row(book.table())


def by_row(table):
    """Add up what a ledger's table lists. What several layers keep counts where `ROWS` has it first."""
    into = {}
    for row in table:
        place = row.shared_with or (row.layer, row.role)
        if row.layer.endswith("(Conv2d)"):
            into[place] = CONVOLUTIONS
        elif row.role == "residual":
            into.setdefault(place, SHORTCUTS)
    kept = Counter(dict.fromkeys(ROWS, 0))
    for row in table:
        kept[into.get((row.layer, row.role)) or _row(row)] += row.nbytes
    return dict(kept)


def _row(row):
    if row.role == "indices":
        return OFFSETS
    role = "activation" if row.layer.endswith("(Activation)") and row.role == "input" else row.role
    return _ROLES.get(role, REST)


def judge(results):
    """Return the figures that have a target, and those beside them, by name."""
    figures = {}
    for (network, activation), kept in results.items():
        inplace, name = kept["inplace"], f"{network}, {activation}: "
        share = sum(inplace.values()) / sum(kept["standard"].values())
        target = KEPT.get((network, activation))
        figures[name + "in place / standard"] = Judged(share, target, at_most=True)
        floor = sum(inplace[row] for row in FLOOR)
        beside = sum(inplace.values()) - floor - inplace[REST]
        target = BESIDE.get((network, activation))
        figures[name + "normalizations and activations beside the floor"] = Judged(
            beside / floor, target, at_most=True
        )
        figures[name + f"the same without {POOLED}"] = Judged((beside - inplace[POOLED]) / floor)
    return figures


def by_network(results):
    """Return a table of what each network keeps with each strategy."""
    rows = []
    for (network, activation), kept in results.items():
        totals = [sum(kept[strategy].values()) for strategy in STRATEGIES]
        rows.append([network, activation, *(f"{_mib(n)} MiB {n / totals[0]:.1%}" for n in totals)])
    return tables.grid(["network", "activation", *STRATEGIES], rows)


def by_role(network, results):
    """Return a table of what `network` keeps: a row for each role, in MiB."""
    kept = {
        f"{strategy}, {activation}": results[name, activation][strategy]
        for name, activation in results
        for strategy in STRATEGIES
        if name == network
    }
    rows = [[role, *(_mib(one[role]) for one in kept.values())] for role in ROWS]
    rows = [row for row in rows if any(float(cell) for cell in row[1:])]
    rows.append(["together", *(_mib(sum(one.values())) for one in kept.values())])
    return tables.grid([f"{network}, MiB", *kept], rows)


def _mib(nbytes):
    return f"{nbytes / (1 << 20):.2f}"


def parser():
    """Return the command's parser."""
    make = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.splitlines()[0])
    make.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    make.add_argument("--images", type=int, default=2, metavar="N", help="in the batch (%(default)s)")
    make.add_argument("--size", type=int, default=64, metavar="PIXELS", help="of an image (%(default)s)")
    make.add_argument(
        "--width", type=int, default=64, metavar="CHANNELS", help="of the first stage; the networks have 64"
    )
    make.add_argument("--output", type=Path, metavar="FILE.json", help="write all numbers there")
    make.add_argument("--readme", type=Path, nargs="?", const=ROOT / "README.md", metavar="FILE",
                      help="put the tables between the markers of README.md")  # fmt: skip
    return make


def main(argv=None):
    """Run the command; return the process's exit code."""
    arguments = parser().parse_args(argv)
    shape, results = (arguments.images, 3, arguments.size, arguments.size), {}
    for network in arguments.networks:
        for activation in ACTIVATIONS:
            print(f"{network}, {activation}", file=sys.stderr, flush=True)
            results[network, activation] = {
                strategy: measure(network, arguments.width, shape, activation, strategy)
                for strategy in STRATEGIES
            }
    size = f"{arguments.images} images of {arguments.size} x {arguments.size}, float32"
    size += "" if arguments.width == 64 else f", width {arguments.width}"
    print("\n\n".join([size, by_network(results), *(by_role(name, results) for name in arguments.networks)]))
    judged = [[name, tables.judged(figure, ".1%")] for name, figure in judge(results).items()]
    print(f"\n{tables.grid(['', ''], judged)}")
    if arguments.output:
        content = {" ".join(name): kept for name, kept in results.items()}
        arguments.output.write_text(json.dumps(content, indent=1), encoding="utf-8")
    if arguments.readme:
        block = [by_network(results), by_role(arguments.networks[0], results), size]
        tables.rewrite(arguments.readme, "\n\n".join(block), BEGIN, END)
    return 0


if __name__ == "__main__":
    sys.exit(main())
