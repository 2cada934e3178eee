"""Tables of ``python -m benchmarks.torch``, and its figures with their targets.

A record is a dict of "task" (see `benchmarks.torch_tasks`), "found", the numbers, and "machine", a line.
"""

import statistics

from benchmarks import tables, targets
from benchmarks.report import Judged

#: The networks, in the order of the table. `benchmarks.torch_networks` makes them.
NAMES = {
    "resnet50": "ResNet-50, ReLU",
    "resnet50-leaky-relu": "ResNet-50, leaky ReLU",
    "resnet50-silu": "ResNet-50, SiLU",
    "mobilenet-v2": "MobileNetV2, ReLU6",
    "regnet-y-400mf": "RegNet-Y 400MF, ReLU",
    "efficientnet-b0": "EfficientNet-B0, SiLU",
    "mobilenet-v3-large": "MobileNetV3-Large, hardswish and ReLU",
    "densenet121": "DenseNet-121, ReLU",
    "resnet50-recompute": "ResNet-50, ReLU, stem and projections run again",
    "resnet18-32": "ResNet-18, ReLU, images of 32 x 32",
}
_COUNTS = ("section", "threads", "images", "pairs")
_UNITS = ((1, "s"), (1e3, "ms"), (1e6, "µs"))
WHO = ("original", "converted")
_TINY = f"one layer, x of {tables.shape_name(targets.OVERHEAD_SHAPE)}"
_NORMALIZATIONS = "normalizations of ResNet-50"
#: Section -> the meaning of its figures, printed below the tables.
_LEGENDS = {
    "kept": "kept: bytes that autograd saves in a forward, each storage once, without parameters.",
    "peak": "peak of the process: highest resident memory of a fresh process that makes two training steps. "
    "PyTorch itself, parameters, gradients and the state of SGD are a part of it.",
    "steps": "step: forward, backward and SGD; converted / original, the median over the pairs, and the "
    "median of both times.",
    "normalizations": "normalizations: batch norms, sums and activations of a step, with copies in place of "
    "the convolutions; the time of the copies is not included.",
    "compiled": "torch.compile: kept are also the copies of weights in another memory layout that it makes; "
    "compilation: the first step.",
}


def of_section(records, section, **wanted):
    """Return the records of a section whose tasks have these arguments."""
    found = [record for record in records if record["task"]["section"] == section]
    return [r for r in found if all(r["task"].get(name) == value for name, value in wanted.items())]


def numbers(records, section, **wanted):
    """Return the numbers of the last such record, merged with those that others have in addition."""
    merged = {}
    for record in of_section(records, section, **wanted):
        merged |= record["found"]
    return merged


def ratio(found, who="converted"):
    """Return how many times as long as the original a contestant takes, the median over the rounds."""
    return statistics.median(
        one / original for one, original in zip(found[who], found["original"], strict=True)
    )


def deviation(records):
    """Return the relative deviation from the median that half of the ratios of single pairs of steps have."""
    found = []
    for record in of_section(records, "steps"):
        times = record["found"]
        single = [one / other for one, other in zip(times["converted"], times["original"], strict=True)]
        found += [abs(value / ratio(times) - 1) for value in single]
    return statistics.median(found)


def one_line(record):
    """Return a record as a line of text."""
    task, found = record["task"], record["found"]
    arguments = [str(value) for name, value in task.items() if name not in _COUNTS]
    figures = [f"{name} {_figure(value)}" for name, value in found.items()]
    if isinstance(found.get("converted"), list):
        figures.append(f"{ratio(found):.2f}")
    return f"{task['section']} {' '.join(arguments)}: {', '.join(figures)}"


def _figure(value):
    if isinstance(value, list):
        return f"{1e3 * statistics.median(value):.3g} ms"
    if isinstance(value, int):
        return f"{_mib(value)} MiB"
    return value if isinstance(value, str) else f"{value:.3g} s"


def _plain(value):
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def _mib(nbytes):
    return _plain(nbytes / 2**20)


def _change(found):
    """Return the bytes of both as a cell."""
    return f"{_mib(found['original'])} → {_mib(found['converted'])}" if len(found) == 2 else ""


def _step(found, who="converted"):
    """Return a ratio and both times as a cell."""
    if not found:
        return ""
    original, other = (statistics.median(found[one]) for one in ("original", who))
    factor, unit = next((row for row in _UNITS if row[0] * original >= 1), _UNITS[-1])
    return f"{ratio(found, who):.2f} ({_plain(factor * original)} → {_plain(factor * other)} {unit})"


def network_rows(records):
    """Return headers and rows of the table of networks."""
    headers = ["", "kept, MiB", "ratio", "peak of the process, MiB", *(f"step, {x}" for x in targets.LAYOUTS)]
    rows = []
    for network, name in NAMES.items():
        kept = numbers(records, "kept", network=network)
        share = f"{kept['converted'] / kept['original']:.2f}" if kept else ""
        peak = _change(numbers(records, "peak", network=network))
        steps = [
            _step(numbers(records, "steps", network=network, layout=layout)) for layout in targets.LAYOUTS
        ]
        row = [name, _change(kept), share, peak, *steps]
        rows += [row] if any(row[1:]) else []
    return headers, rows


def layer_rows(records):
    """Return headers and rows of the table of normalizations alone."""
    rows = []
    for section, name in (("normalizations", _NORMALIZATIONS), ("tiny", _TINY)):
        for activation in dict.fromkeys(r["task"]["activation"] for r in of_section(records, section)):
            cells = [
                _step(numbers(records, section, activation=activation, layout=layout))
                for layout in (targets.LAYOUTS if section == "normalizations" else (None,))
            ]
            rows.append([f"{name}, {activation}", *cells, *[""] * (len(targets.LAYOUTS) - len(cells))])
    return ["forward and backward", *targets.LAYOUTS], rows


def compiled_rows(records):
    """Return headers and rows of the comparison with torch.compile."""
    rows = []
    for record in of_section(records, "compiled"):
        task, found = record["task"], record["found"]
        name = f"{NAMES[task['network']]}, {task['layout']}, {task['budget']:g}"
        if "reason" in found:
            rows.append([name, "", found["reason"], ""])
        else:
            first = f"{found['compile']:.0f}"
            rows.append([name, _mib(found["kept"]), _step(found, "compiled"), first])
    return ["torch.compile, activation_memory_budget", "kept, MiB", "step", "compilation, s"], rows


def judge(records):
    """Return the figures that have a target, by name."""
    records = [r for r in records if r["task"].get("images", targets.TORCH_IMAGES) == targets.TORCH_IMAGES]
    figures = {}
    for network, name in NAMES.items():
        kept = numbers(records, "kept", network=network)
        if kept and network in targets.TORCH_KEPT:
            share = kept["converted"] / kept["original"]
            figures[f"{name}: kept"] = Judged(share, targets.TORCH_KEPT[network], at_most=True)
        peak = numbers(records, "peak", network=network)
        if kept and len(peak) == 2 and network in targets.TORCH_KEPT:
            lower, less = (found["original"] - found["converted"] for found in (peak, kept))
            figures[f"{name}: peak of the process, share of the bytes saved"] = Judged(
                lower / less, targets.TORCH_PEAK
            )
        for layout, target in zip(targets.LAYOUTS, targets.TORCH_STEP.get(network, ()), strict=False):
            found = numbers(records, "steps", network=network, layout=layout)
            figures |= _time(f"{name}: step, {layout}", found, target)
    for record in of_section(records, "normalizations"):
        layout, activation = (record["task"][key] for key in ("layout", "activation"))
        target = targets.TORCH_NORMALIZATIONS[layout]
        figures |= _time(f"{_NORMALIZATIONS}, {activation}, {layout}", record["found"], target)
    for record in of_section(records, "tiny"):
        figures |= _time(f"{_TINY}, {record['task']['activation']}", record["found"], targets.TORCH_TINY)
    return figures


def _time(name, found, target):
    """Return the figure of a ratio of times, as a dict; its target has room for noise."""
    if not found:
        return {}
    return {name: Judged(ratio(found), round(targets.TORCH_NOISE * target, 3), at_most=True)}


def text(records):
    """Return the tables, and how and where they were measured. Published tables have no targets."""
    parts = [
        tables.grid(*table)
        for table in (rows(records) for rows in (network_rows, layer_rows, compiled_rows))
        if table[1]
    ]
    legends = [legend for section, legend in _LEGENDS.items() if of_section(records, section)]
    machines = dict.fromkeys(record["machine"] for record in records)
    return "\n\n".join([*parts, tables.listed([_how(records), *legends, *machines])])


def _how(records):
    """Return what was measured as a sentence."""
    parts, tasks = ["float32, random weights, SGD"], [record["task"] for record in records]
    images, pairs = (sorted({t[name] for t in tasks if name in t}) for name in ("images", "pairs"))
    if images:
        parts.insert(0, f"Batches of {' and '.join(map(str, images))} images, of 224 x 224 if not stated")
    if pairs:
        parts.append(f"times are medians of {' or '.join(map(str, pairs))} pairs that ran in turn")
    if of_section(records, "steps"):
        parts.append(
            f"in half of the pairs of steps the ratio is within {deviation(records):.0%} of the median"
        )
    return f"Original → converted. {', '.join(parts)}."
