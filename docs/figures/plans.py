"""The tables of docs/plan.md: ``python docs/figures/plans.py`` writes them into the page."""

from pathlib import Path

from inplace_abn import models, plan

PAGE = Path(__file__).parents[1] / "plan.md"
BUDGET = "12GiB"
RESNEXT = {"body": "resnext101", "num_classes": 19}
WIDER = {"body": "wider_resnet38", "num_classes": 19}
#: Name -> (function that makes the network, shape of the batch)
NETWORKS = {
    "ResNet-50": (models.resnet50, (32, 3, 224, 224)),
    "ResNeXt-101 64x4d": (models.resnext101, (32, 3, 224, 224)),
    "ResNeXt-152 64x4d": (models.resnext152, (32, 3, 224, 224)),
    "WiderResNet-38": (models.wider_resnet, (32, 3, 224, 224)),
    "DenseNet-264": (models.densenet, (32, 3, 224, 224)),
    "DeepLabV3, ResNeXt-101": (models.deeplabv3, (2, 3, 512, 512)),
    "DeepLabV3, WiderResNet-38": (models.deeplabv3, (2, 3, 512, 512)),
}
OPTIONS = {
    "DenseNet-264": {"blocks": (6, 12, 64, 48)},
    "DeepLabV3, ResNeXt-101": RESNEXT,
    "DeepLabV3, WiderResNet-38": WIDER,
}


def planned(name, **options):
    """Return the plan of a network with the strategies "standard" and "inplace"."""
    from inplace_abn._shape_arrays import ShapeGenerator

    make, shape = NETWORKS[name]

    def network(strategy):
        return make(strategy=strategy, rng=ShapeGenerator(), **OPTIONS.get(name, {}))

    return plan(network, shape, strategies=("standard", "inplace"), budget=BUDGET, advice=False, **options)


def row(name):
    """Return a row of the table."""
    found = planned(name)
    standard, inplace = found["standard"], found["inplace"]
    kept = 1 - inplace.step.kept / standard.step.kept
    peak = 1 - inplace.step.peak / standard.step.peak
    shape = "x".join(map(str, found.shape))
    batch = f"{standard.largest_batch} → {inplace.largest_batch}"
    size = f"{standard.largest_size[0]}² → {inplace.largest_size[0]}²"
    area = inplace.largest_size[0] ** 2 / standard.largest_size[0] ** 2 - 1
    more = inplace.largest_batch / standard.largest_batch - 1
    gib = f"{standard.step.peak / 2**30:.2f} → {inplace.step.peak / 2**30:.2f}"
    gained = f"{batch} (+{more:.0%}) | {size} (+{area:.0%})"
    return f"| {name} | {shape} | {kept:.0%} | {gib} ({peak:.0%}) | {gained} |"


def table():
    """Return the table as Markdown."""
    head = "| network | batch | kept, less | peak in GiB, less | largest batch | largest images |"
    return "\n".join([head, "|---|---|---|---|---|---|", *map(row, NETWORKS)])


def main():
    """Write the table into the page."""
    begin, end = "<!-- table: python docs/figures/plans.py -->\n", "<!-- end -->"
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(begin)
    PAGE.write_text(before + begin + "\n" + table() + "\n\n" + end + rest.split(end)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
