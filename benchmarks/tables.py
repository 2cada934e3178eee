"""The summary as tables of text: for the terminal, and for the README between its two markers."""

from pathlib import Path

from benchmarks import machine
from benchmarks.peers import PEERS

try:
    from tabulate import tabulate
except ImportError:
    tabulate = None

BEGIN, END = "<!-- limit-table:begin -->", "<!-- limit-table:end -->"

_TITLES = {
    "limit": "Speed as a share of the in-place stream's, which runs as fast as memory lets it (float32, "
    "leaky_relu, cold caches; the targets are for the slower state of the memory)",
    "peers": "Times as fast as each peer, forward + backward (as-is: as its users run it; "
    "kept: with a C allocator that keeps its buffers)",
    "dtypes": "Time as a share of float32's",
    "activations": "Speed as a share of leaky_relu's",
    "strategies": "Time as a share of the standard strategy's",
    "overhead": "Microseconds of forward + backward on an array of (2, 8, 4, 4)",
}


def judged(figure, form=".2f"):
    """Return a `Judged` figure as text: ``0.91 (>= 0.9)``, or ``0.85 MISSED (>= 0.9)``."""
    if figure is None:
        return ""
    text = format(figure.value, form)
    if figure.target is None:
        return text
    return (
        f"{text}{' MISSED' if figure.missed else ''} ({'<=' if figure.at_most else '>='} {figure.target:g})"
    )


def shape_name(shape):
    """Return (32, 64, 112, 112) as 32x64x112x112."""
    return "x".join(map(str, shape))


def _place(entry):
    return [shape_name(entry["shape"]), entry["layout"]]


def _plain(value):
    """Return three digits, without the point that nothing follows."""
    return "" if value is None else format(value, "#.3g").rstrip(".")


def _limit(entries):
    several = len({entry["state"] for entry in entries}) > 1
    headers = ["shape", "layout", *(["bus (processes)"] if several else [])]
    for name in ("forward", "backward"):
        headers += [f"{name}: stream GB/s", "ms", "of the limit"]
    headers.append("extra memory / x")
    rows = []
    for entry in entries:
        row = _place(entry) + ([f"{entry['state']} ({entry['processes']})"] if several else [])
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
        row[column] = f"{judged(entry['times'], '.2f')}, {_plain(entry['milliseconds'])} ms"
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


def _overhead(entries):
    return ["module", "median", "least"], [
        [entry["module"], judged(entry["median"]), _plain(entry["least"])] for entry in entries
    ]


_TABLES = {
    "limit": _limit,
    "peers": _peers,
    "dtypes": _variants,
    "activations": _variants,
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


def _states(states):
    parts = []
    for name, state in states.items():
        count = f"{state['processes']} process{'es' if state['processes'] > 1 else ''}"
        which = "one state" if name == "one" else f"the {name} state"
        parts.append(f"{count} in {which}, stream {state['stream_gbs']:#.3g} GB/s")
    return f"The memory's bandwidth, which may differ from process to process: {'; '.join(parts)}."


def text(summary):
    """Return the machine, every table that has rows, and what could not take part, as Markdown."""
    blocks = ["\n".join(f"{line}  " for line in machine.header(summary["machine"])).rstrip()]
    blocks += [_states(summary["states"])] if summary["states"] else []
    for section, table in _TABLES.items():
        if summary[section]:
            blocks += [f"**{_TITLES[section]}**", grid(*table(summary[section]))]
    blocks += ["\n".join(f"- {line}" for line in summary["errors"])] if summary["errors"] else []
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
