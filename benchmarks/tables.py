"""Tables in Markdown, for the terminal and for the marked regions of README and docs."""

import dataclasses
from pathlib import Path

from benchmarks import machine
from benchmarks.peers import PEERS
from benchmarks.report import Judged

try:
    from tabulate import tabulate
except ImportError:
    tabulate = None

BEGIN, END = "<!-- limit-table:begin -->", "<!-- limit-table:end -->"
SHORT_BEGIN, SHORT_END = "<!-- speed-summary:begin -->", "<!-- speed-summary:end -->"

#: The shapes of the short table.
_SHORT = ((32, 256, 56, 56), (32, 1024, 14, 14))

_TITLES = {
    "limit": "Speed relative to memory bandwidth",
    "peers": "Speed relative to other libraries",
    "dtypes": "Storage types relative to float32",
    "activations": "Activations and residuals",
    "strategies": "Strategies relative to standard",
    "overhead": "Overhead of a call: forward + backward on an array of (2, 8, 4, 4)",
}

#: Section -> the meaning of its columns, printed below it.
_LEGENDS = {
    "limit": (
        "Shapes are (N, C, spatial); channels-last memory holds them as (N, spatial, C). float32, "
        "leaky_relu, cold caches: a large buffer is written before each pass.",
        "stream: GB/s of a loop that only reads and writes the same arrays in place: one read and one "
        "write for forward, two reads and one write for backward. ms: time of the pass.",
        "of the limit: the stream's time / the pass's time; at 1.00 memory bandwidth is the limit. A batch "
        "that leaves the cache between its sums and its second pass is read twice; the limit is then 0.67 "
        "forward and 0.6 backward.",
        "of the fastest: the same for the fastest of three streams: the plain one, and two that prefetch "
        "cache lines 4 and 8 KiB ahead. A figure above 1 in the column before is possible where one of these "
        "is faster than the plain one.",
        "group: on some machines memory bandwidth differs from process to process. If it does, the "
        "processes form a slower group A and a faster group B by the stream's median over all shapes, and "
        "each group has its own row with the number of processes.",
        "extra memory: peak of allocations during a pass / the array's bytes.",
    ),
    "peers": (
        "Forward + backward: the peer's time / inplace_abn's time, then the peer's milliseconds. Above 1x, "
        "inplace_abn is faster.",
        "as-is: default settings. kept: the C allocator keeps freed memory, which avoids page faults for "
        "libraries that allocate their results.",
    ),
    "dtypes": ("relative: time / time of float32. ms: time of the pass.",),
    "activations": (
        "ms: time of the pass. of the limit: time of an in-place stream over the same arrays / time of the "
        "pass. relative: time of leaky_relu / time.",
        "The stream has one read and one write for forward, two reads and one write for backward. With a "
        "residual it has two reads and one write for forward, and four reads (z, residual, dz, gradient of "
        "the residual) and two writes for backward, which adds to the gradient of the residual.",
        "A batch that leaves the cache between its sums and its second pass is read twice; the limit is then "
        "0.67 forward, or 0.75 with a residual.",
        "times as fast as PyTorch: time of PyTorch eager with default settings, batch norm and the same "
        "activation, forward + backward / time of inplace_abn; PyTorch's milliseconds.",
    ),
    "strategies": (
        "relative: time / time of the strategy standard. ms: time of the pass. recompute: computing z "
        "again for the next layer; checkpoint strategies only.",
    ),
    "overhead": (
        "median, least: over all calls of all processes. functional: the public module. _core: the compiled "
        "module below it.",
    ),
}

#: Published names of the bandwidth groups. "slower" and "faster" would be wrong for single rows.
GROUPS = {"slower": "A", "faster": "B"}

_VERDICTS = (
    "The project's target is in parentheses after a figure: at least (>=) or at most (<=). MISSED: the "
    "figure does not meet it. Targets of speed are for group A, where memory bandwidth is the limit."
)


def judged(figure, form=".2f", unit=""):
    """Return a `Judged` figure as text: ``0.91 (>= 0.9)``, or ``0.85 MISSED (>= 0.9)``, with its unit."""
    if figure is None:
        return ""
    text = format(figure.value, form) + unit
    if figure.target is None:
        return text
    target = f"{100 * figure.target:g}%" if form.endswith("%") else f"{figure.target:g}{unit}"
    return f"{text}{' MISSED' if figure.missed else ''} ({'<=' if figure.at_most else '>='} {target})"


def shape_name(shape):
    """Return (32, 64, 112, 112) as 32x64x112x112."""
    return "x".join(map(str, shape))


def _place(entry):
    return [shape_name(entry["shape"]), entry["layout"]]


def _places(entries):
    """Return the headers of the first columns and their cells for each entry."""
    if len({entry["state"] for entry in entries}) == 1:
        return ["shape", "layout"], [_place(entry) for entry in entries]
    return ["shape", "layout", "group (processes)"], [
        [*_place(entry), f"{GROUPS[entry['state']]} ({entry['processes']})"] for entry in entries
    ]


def _plain(value):
    """Return the value with three significant digits and no trailing point."""
    return "" if value is None else format(value, "#.3g").rstrip(".")


def _limit(entries):
    headers, places = _places(entries)
    prototype = any("of_prototype" in entry["forward"] for entry in entries)
    for name in ("forward", "backward"):
        headers += [f"{name}: stream GB/s", "ms", "of the limit", "of the fastest"]
        headers += ["of the prototype"] if prototype else []
    headers.append("extra memory")
    rows = []
    for entry, row in zip(entries, places, strict=True):
        for name in ("forward", "backward"):
            figures = entry[name]
            row += [
                _plain(figures["stream_gbs"]),
                _plain(figures["milliseconds"]),
                judged(figures["of_limit"]),
                judged(figures["of_fastest"]),
                *([judged(figures.get("of_prototype"))] if prototype else []),
            ]
        rows.append([*row, judged(entry["extra_memory"], ".2%")])
    return headers, rows


def _peers(entries):
    columns = list(dict.fromkeys((entry["environment"], entry["peer"]) for entry in entries))
    rows = {}
    for entry in entries:
        row = rows.setdefault((entry["shape"], entry["layout"]), _place(entry) + [""] * len(columns))
        column = 2 + columns.index((entry["environment"], entry["peer"]))
        row[column] = _times(entry)
    return ["shape", "layout", *(f"{PEERS[peer][1]}, {where}" for where, peer in columns)], list(
        rows.values()
    )


def _variants(entries):
    passes = [
        name for name in ("forward", "recompute", "backward") if any(name in entry for entry in entries)
    ]
    headers = ["shape", "layout", ""]
    for name in passes:
        headers += [f"{name}: ms", "relative"]
    rows = []
    for entry in entries:
        row = [*_place(entry), entry["name"]]
        for name in passes:
            figures = entry.get(name)
            row += [_plain(figures["milliseconds"]), judged(figures["relative"])] if figures else ["", ""]
        rows.append(row)
    return headers, rows


def _activations(entries):
    headers, rows = _places(entries)
    headers.append("")
    for name in ("forward", "backward"):
        headers += [f"{name}: ms", "of the limit", "relative"]
    with_peer = any(entry["peer"] for entry in entries)
    headers += ["times as fast as PyTorch"] if with_peer else []
    for entry, row in zip(entries, rows, strict=True):
        row.append(entry["name"])
        for name in ("forward", "backward"):
            figures = entry[name]
            row += [
                _plain(figures["milliseconds"]),
                *(judged(figures[key]) for key in ("of_limit", "relative")),
            ]
        if with_peer:
            row.append(_times(entry["peer"]) if entry["peer"] else "")
    return headers, rows


def _times(figures):
    return f"{judged(figures['times'], unit='x')}, {_plain(figures['milliseconds'])} ms"


def _overhead(entries):
    return ["module", "median", "least"], [
        [entry["module"], judged(entry["median"], unit=" µs"), f"{_plain(entry['least'])} µs"]
        for entry in entries
    ]


_TABLES = {
    "limit": _limit,
    "peers": _peers,
    "dtypes": _variants,
    "activations": _activations,
    "strategies": _variants,
    "overhead": _overhead,
}


def grid(headers, rows):
    """Return a table in Markdown, made by `tabulate` if that is installed."""
    if tabulate is not None:
        return tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    lines = [headers, ["-" * width for width in widths], *rows]
    lines = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def listed(lines):
    """Return the lines as a list in Markdown."""
    return "\n".join(f"- {line}" for line in lines)


def _states(states):
    parts = []
    for name, state in states.items():
        count = f"{state['processes']} process{'es' if state['processes'] > 1 else ''}"
        group = f"group {GROUPS[name]}, " if name in GROUPS else ""
        parts.append(f"{group}{count}, stream {_plain(state['stream_gbs'])} GB/s")
    return f"Memory bandwidth, by group of processes: {'; '.join(parts)}."


def without_targets(value):
    """Return a copy of a summary, or of a part of it, without targets. Published tables have none."""
    if isinstance(value, Judged):
        return dataclasses.replace(value, target=None)
    if isinstance(value, dict):
        return {key: without_targets(item) for key, item in value.items()}
    return [without_targets(item) for item in value] if isinstance(value, list) else value


def short(summary):
    """Return the README's table of a few shapes: inplace_abn's time, and the peers' as multiples of it."""
    rows, columns = {}, {}
    for entry in without_targets(summary["peers"]):
        if tuple(entry["shape"]) in _SHORT:
            columns[entry["environment"], entry["peer"]] = None
            row = rows.setdefault((tuple(entry["shape"]), entry["layout"]), {})
            row[entry["environment"], entry["peer"]] = f"{judged(entry['times'])}x"
            row["own"] = f"{_plain(entry['own_milliseconds'])} ms"
    headers = ["shape", "layout", "inplace_abn", *(f"{PEERS[peer][1]}, {where}" for where, peer in columns)]
    body = [
        [shape_name(shape), layout, row["own"], *(row.get(column, "") for column in columns)]
        for (shape, layout), row in rows.items()
    ]
    return f"{grid(headers, body)}\n\n{machine.short(summary['machine'])}"


def text(summary, targets=True):
    """Return machine, notes, and each table that has rows with its legend, as Markdown."""
    blocks = ["\n".join(f"{line}  " for line in machine.header(summary["machine"])).rstrip()]
    blocks += [_states(summary["states"])] if summary["states"] else []
    blocks += [listed(summary["notes"])] if summary["notes"] else []
    blocks += [_VERDICTS] if targets else []
    summary = summary if targets else without_targets(summary)
    for section, table in _TABLES.items():
        if summary[section]:
            blocks += [f"**{_TITLES[section]}**", grid(*table(summary[section])), listed(_LEGENDS[section])]
    return "\n\n".join(blocks)


def rewrite(path, content, begin=BEGIN, end=END):
    """Replace the region between two markers in the file `path` with `content`.

    Raises
    ------
    ValueError
        The file has no such region. It is unchanged.
    """
    path = Path(path)
    before, found, rest = path.read_text(encoding="utf-8").partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise ValueError(f"{path} has no region between {begin} and {end}")
    path.write_text(f"{before}{begin}\n\n{content}\n\n{end}{after}", encoding="utf-8")
