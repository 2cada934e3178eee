"""Bytes that whole networks keep for the backward: ``python -m benchmarks.memory``.

Counted by the ledger, to the byte; nothing is timed. The networks are ResNet-50, ResNet-34 and MobileNetV2
with small images. With larger images all entries grow in proportion, and the shares are the same.
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
ACTIVATIONS = ("leaky_relu", "silu")
STANDARD, INPLACE, RECOMPUTED = "standard", "inplace", "inplace, stem recomputed"
#: Name of a column -> options of the networks.
VARIANTS = {
    STANDARD: {"strategy": "standard"},
    "checkpoint": {"strategy": "checkpoint"},
    INPLACE: {"strategy": "inplace"},
    RECOMPUTED: {"strategy": "inplace", "recompute_stem": True},
}

CONVOLUTIONS, SHORTCUTS, OFFSETS = "inputs of convolutions", "projection shortcuts", "offsets of the pooling"
POOLED, REST = "results before a pooling", "inputs of other layers"
#: The first rows of the table: what every strategy keeps. The other rows are what normalizations and
#: activations add.
FLOOR = (CONVOLUTIONS, SHORTCUTS, OFFSETS)
_ROLES = {
    "z": POOLED,
    "branch_mask": "branch masks, a bit per element",
    "guarded_xhat": "guarded channels",
    "escape_index": "escaped elements",
    "escape_xhat": "escaped elements",
    "x": "inputs of normalizations",
    "activation": "inputs of activations",
}
ROWS = (*FLOOR, *dict.fromkeys(_ROLES.values()), REST)

#: Targets: kept / kept by standard, and kept beyond the floor / the floor.
KEPT = {("ResNet-50", "leaky_relu", RECOMPUTED): 0.56, ("ResNet-50", "silu", RECOMPUTED): 0.59}
BEYOND = {("ResNet-50", "leaky_relu", RECOMPUTED): 0.01}
BEGIN, END = "<!-- memory-table:begin -->", "<!-- memory-table:end -->"
SHORT_BEGIN, SHORT_END = "<!-- memory-summary:begin -->", "<!-- memory-summary:end -->"


def variants_of(network):
    """Return the variants of a network. Recomputing the stem of MobileNetV2 saves nothing."""
    return [variant for variant in VARIANTS if variant != RECOMPUTED or network.startswith("ResNet")]


def measure(network, width, shape, activation, variant):
    """Return the bytes kept at the end of the forward, by row of the table."""
    net = NETWORKS[network](width, activation=activation, rng=0, **VARIANTS[variant])
    images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    with ledger() as book:
        net(images)
        return by_row(book.table())


def by_row(table):
    """Add up the rows of a ledger's table. A buffer of several layers counts in the first of `ROWS`."""
    into = {}
    for row in table:
        place = row.shared_with or (row.layer, row.role)
        if row.layer.endswith(("(Conv2d)", "(Recompute)")):
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
    """Return the figures of the in-place variants by name, with targets where there are any."""
    figures = {}
    for (network, activation), found in results.items():
        for variant in (INPLACE, RECOMPUTED):
            if variant not in found:
                continue
            kept, name = found[variant], f"{network}, {activation}, {variant}: "
            share = sum(kept.values()) / sum(found[STANDARD].values())
            target = KEPT.get((network, activation, variant))
            figures[name + "of standard"] = Judged(share, target, at_most=True)
            floor = sum(kept[row] for row in FLOOR)
            beyond = (sum(kept.values()) - floor - kept[REST]) / floor
            target = BEYOND.get((network, activation, variant))
            figures[name + "normalizations and activations, share of the floor"] = Judged(
                beyond, target, at_most=True
            )
    return figures


def by_network(results):
    """Return a table of the bytes that each network keeps with each strategy."""
    rows = []
    for (network, activation), kept in results.items():
        totals = {variant: sum(kept[variant].values()) for variant in kept}
        cells = {variant: f"{_mib(n)} MiB {n / totals[STANDARD]:.1%}" for variant, n in totals.items()}
        rows.append([network, activation, *(cells.get(variant, "") for variant in VARIANTS)])
    return tables.grid(["network", "activation", *VARIANTS], rows)


def by_role(network, results):
    """Return a table of the MiB that `network` keeps, with a row for each role."""
    kept = {
        f"{variant}, {activation}": kept
        for name, activation in results
        for variant, kept in results[name, activation].items()
        if name == network
    }
    rows = [[role, *(_mib(one[role]) for one in kept.values())] for role in ROWS]
    rows = [row for row in rows if any(float(cell) for cell in row[1:])]
    rows.append(["total", *(_mib(sum(one.values())) for one in kept.values())])
    return tables.grid([f"{network}, MiB", *kept], rows)


def short(results):
    """Return a table of a few networks for the README."""
    rows = []
    for (network, activation), kept in results.items():
        if network == "ResNet-34":
            continue
        standard, inplace = (sum(kept[variant].values()) for variant in (STANDARD, INPLACE))
        again = f"{sum(kept[RECOMPUTED].values()) / standard:.0%}" if RECOMPUTED in kept else ""
        rows.append([f"{network}, {activation}", f"{_mib(standard)} MiB", f"{_mib(inplace)} MiB",
                     f"{inplace / standard:.0%}", again])  # fmt: skip
    return tables.grid(["network", "standard", "in place", "share", "stem recomputed"], rows)


def _mib(nbytes):
    return f"{nbytes / (1 << 20):.2f}"


def parser():
    """Return the command's parser."""
    make = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.splitlines()[0])
    make.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    make.add_argument("--images", type=int, default=2, metavar="N", help="images in the batch (%(default)s)")
    make.add_argument(
        "--size", type=int, default=64, metavar="PIXELS", help="height and width of an image (%(default)s)"
    )
    make.add_argument(
        "--width", type=int, default=64, metavar="CHANNELS", help="channels of the first stage (%(default)s)"
    )
    make.add_argument("--output", type=Path, metavar="FILE.json", help="write all numbers there")
    make.add_argument("--docs", type=Path, nargs="?", const=ROOT, metavar="DIR",
                      help="rewrite the tables of docs/benchmarks.md and README.md")  # fmt: skip
    return make


def main(argv=None):
    """Run the command; return the process's exit code."""
    arguments = parser().parse_args(argv)
    shape, results = (arguments.images, 3, arguments.size, arguments.size), {}
    for network in arguments.networks:
        for activation in ACTIVATIONS:
            print(f"{network}, {activation}", file=sys.stderr, flush=True)
            results[network, activation] = {
                variant: measure(network, arguments.width, shape, activation, variant)
                for variant in variants_of(network)
            }
    size = f"{arguments.images} images of {arguments.size} x {arguments.size}, float32"
    size += "" if arguments.width == 64 else f", width {arguments.width}"
    print("\n\n".join([size, by_network(results), *(by_role(name, results) for name in arguments.networks)]))
    judged = [[name, tables.judged(figure, ".1%")] for name, figure in judge(results).items()]
    print(f"\n{tables.grid(['', ''], judged)}")
    if arguments.output:
        content = {" ".join(name): kept for name, kept in results.items()}
        arguments.output.write_text(json.dumps(content, indent=1), encoding="utf-8")
    if arguments.docs:
        block = [by_network(results), by_role(arguments.networks[0], results), size]
        tables.rewrite(arguments.docs / "docs" / "benchmarks.md", "\n\n".join(block), BEGIN, END)
        tables.rewrite(arguments.docs / "README.md", f"{short(results)}\n\n{size}", SHORT_BEGIN, SHORT_END)
    return 0


if __name__ == "__main__":
    sys.exit(main())
