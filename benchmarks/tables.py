"""The summary as tables of text: for the terminal, and for README and docs between their markers."""

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
    "limit": "How close to the limit of memory",
    "peers": "How many times as fast as its peers",
    "dtypes": "The storage types beside float32",
    "activations": "The activations, and with a residual",
    "strategies": "The strategies beside the standard one",
    "overhead": "What a call costs: forward + backward on an array of (2, 8, 4, 4)",
}

#: Section -> what its columns mean, printed below it.
_LEGENDS = {
    "limit": (
        "A shape is (N, C, spatial); channels-last memory holds it as (N, spatial, C). float32, leaky_relu, "
        "cold caches: other memory is written before each pass.",
        "stream: GB/s of a loop that does nothing but read and write the same arrays in place, as the pass "
        "has to: one read and one write for forward, two reads and one write for backward. ms: the pass.",
        "of the limit: the stream's time / the pass's time; 1.00 is as fast as memory lets it. A batch that "
        "does not stay in cache between its sums and its second pass is read twice; then 0.67 forward and "
        "0.6 backward is all there is.",
        "group: where the stream was much faster in some processes (B) than in others (A), by its median "
        "over all shapes, each group has a row, with the number of its processes. How fast it was at one "
        "shape is in the row. The targets are for A, where memory is the limit; in B arithmetic is, and the "
        "same targets are shown for comparison.",
        "extra memory: the most that was allocated during a pass, as a share of the array's bytes.",
    ),
    "peers": (
        "Forward + backward: the peer's time / inplace_abn's time, then the peer's milliseconds. More than "
        "1x: inplace_abn is faster.",
        "as-is: as its users run it. kept: with a C allocator set to keep the memory it has freed, which "
        "spares a peer that allocates its results the page faults.",
    ),
    "dtypes": ("relative: time / float32's time. ms: the pass.",),
    "activations": (
        "ms: the pass. of the limit: the time of a stream that reads and writes the same arrays in place / "
        "the pass's time. relative: leaky_relu's time / time.",
        "That stream reads one array and writes one for forward, reads two and writes one for backward. With "
        "a residual it reads two and writes one for forward; for backward it reads four, z, the residual, dz "
        "and the residual's gradient, to which the layer's share is added, and writes two.",
        "A batch that does not stay in cache between its sums and its second pass is read twice; then 0.67 "
        "forward, with a residual 0.75, is all there is.",
        "times as fast: PyTorch eager's time for batch norm and the same activation, forward + backward, as "
        "its users run it / inplace_abn's time; PyTorch's milliseconds.",
    ),
    "strategies": (
        "relative: time / the standard strategy's time. ms: the pass. recompute: giving z back to the next "
        "layer, which only the checkpoint strategies have to do.",
    ),
    "overhead": (
        "median, least: over all calls of all processes. functional is the public module, _core the compiled "
        "one below it.",
    ),
}

#: What a reader is told the states are called: the slower one need not be the slower one in every row.
GROUPS = {"slower": "A", "faster": "B"}

_VERDICTS = (
    "In brackets behind a figure is the target that this project has set itself, at least (>=) or at most "
    "(<=); MISSED: the figure does not reach it."
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
    """Return the first columns' headers, and their cells for each entry."""
    if len({entry["state"] for entry in entries}) == 1:
        return ["shape", "layout"], [_place(entry) for entry in entries]
    return ["shape", "layout", "group (processes)"], [
        [*_place(entry), f"{GROUPS[entry['state']]} ({entry['processes']})"] for entry in entries
    ]


def _plain(value):
    """Return three digits, without the point that nothing follows."""
    return "" if value is None else format(value, "#.3g").rstrip(".")


def _limit(entries):
    headers, places = _places(entries)
    for name in ("forward", "backward"):
        headers += [f"{name}: stream GB/s", "ms", "of the limit"]
    headers.append("extra memory")
    rows = []
    for entry, row in zip(entries, places, strict=True):
        for name in ("forward", "backward"):
            figures = entry[name]
            row += [
                _plain(figures["stream_gbs"]),
                _plain(figures["milliseconds"]),
                judged(figures["of_limit"]),
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
    """Return a table in Markdown, by `tabulate` where it is installed."""
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
    return f"The memory's bandwidth, which may differ from process to process: {'; '.join(parts)}."


def without_targets(value):
    """Return a summary, or a part of it, whose figures have no targets: those are for developers."""
    if isinstance(value, Judged):
        return dataclasses.replace(value, target=None)
    if isinstance(value, dict):
        return {key: without_targets(item) for key, item in value.items()}
    return [without_targets(item) for item in value] if isinstance(value, list) else value


def short(summary):
    """Return a table of a few shapes for the README: our time, and the peers' as multiples of it."""
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
    """Return the machine, the notes and every table that has rows with its legend, as Markdown."""
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
    """Replace what is between the two markers in the file `path` with `content`.

    Raises
    ------
    ValueError
        The file has no such region; it is left as it was.
    """
    path = Path(path)
    before, found, rest = path.read_text(encoding="utf-8").partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise ValueError(f"{path} has no region between {begin} and {end}")
    path.write_text(f"{before}{begin}\n\n{content}\n\n{end}{after}", encoding="utf-8")
