"""Plots of what a ledger counted: one line of text, SVG for notebooks, and matplotlib."""

import itertools
from typing import NamedTuple

import numpy as np

from . import events
from .tables import escape, human, in_unit, plural

_BARS = " ▁▂▃▄▅▆▇█"

#: Okabe and Ito's palette, which stays distinct for colour-blind readers; grey is for "standard".
GREY, ACCENT, INK = "#7F7F7F", "#0072B2", "#222222"
_OTHERS = ("#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#F0E442")


class History(NamedTuple):
    """What is kept after each step.

    In a step one context saves its arrays, or frees them. ``spikes`` has a row for each temporary: index of
    the step before it, bytes kept and temporary bytes together, and the layer. ``forward_ends`` are the
    steps before the first free since nothing was kept.
    """

    seconds: np.ndarray
    nbytes: np.ndarray
    buffers: np.ndarray
    spikes: list
    forward_ends: list


def history(ledger):
    """Return the `History` of a ledger."""
    known, began = ledger.events()
    count, last, saving = events.Count(), None, True
    rows, spikes, forward_ends = [(0.0, 0, 0)], [], []
    for event in known:
        if isinstance(event, events.Freed):
            if not count.of(event.context):
                continue  # a context that saved nothing
            if saving:
                forward_ends.append(len(rows) - 1)
            saving = False
        count.add(event)
        row = event.seconds - began, count.live, count.buffers
        if isinstance(event, events.Temporary):
            spikes.append((len(rows) - 1, count.total, event.layer, event.seconds - began))
        elif isinstance(event, events.Saved) and event.context == last:
            rows[-1] = row
        else:
            rows.append(row)
        if not isinstance(event, events.Temporary):
            last = event.context if isinstance(event, events.Saved) else None
        saving = saving or not count.buffers
    return History(*map(np.array, zip(*rows, strict=True)), spikes, forward_ends)


# ---- text and SVG ------------------------------------------------------------------------------------------


def line(ledger, width=60):
    """Return the bytes kept, step by step, as one line of bars; "│" marks the end of the forward."""
    found = history(ledger)
    nbytes, top = found.nbytes, max(found.nbytes.max(), 1)
    if not found.forward_ends:
        return f"forward {_bars(nbytes, width, top)}".rstrip()
    middle = found.forward_ends[0] + 1
    share = max(1, round(width * middle / len(nbytes)))
    before, after = _bars(nbytes[:middle], share, top), _bars(nbytes[middle:], width - share, top)
    return f"forward {before}│{after} backward"


def _bars(nbytes, width, top):
    edges = np.linspace(0, len(nbytes), min(max(width, 1), len(nbytes)) + 1).astype(int)
    heights = (int(nbytes[a:b].max()) for a, b in itertools.pairwise(edges))
    return "".join(_BARS[-(-height * (len(_BARS) - 1) // top)] for height in heights)


def svg(ledger, width=520, height=90):
    """Return the bytes kept, step by step, as an SVG picture for HTML."""
    found, margin = history(ledger), 16
    count, top = max(len(found.nbytes) - 1, 1), max(int(found.nbytes.max()), 1)
    x = np.arange(len(found.nbytes)) / count * width
    y = margin + (1 - found.nbytes / top) * (height - margin)
    corners = [f"0,{height}"]
    for i in range(len(x)):
        corners.append(f"{x[i]:.1f},{y[max(i - 1, 0)]:.1f}")
        corners.append(f"{x[i]:.1f},{y[i]:.1f}")
    corners.append(f"{width},{height}")
    highest = int(found.nbytes.argmax())
    summary = f"{human(ledger.kept)} in {plural(int(found.buffers[highest]), 'buffer')}"
    marks = "".join(
        f'<line x1="{x[end]:.1f}" x2="{x[end]:.1f}" y1="{margin}" y2="{height}" stroke="currentColor" '
        f'stroke-dasharray="3 3"/>'
        for end in found.forward_ends
    )
    on_the_right = x[highest] > width / 2
    place = f'x="{x[highest]:.1f}" text-anchor="middle"'
    if not width / 4 < x[highest] < 3 * width / 4:
        place = f'x="{width}" text-anchor="end"' if on_the_right else 'x="0"'
    texts = f'<text {place} y="11" font-weight="bold">{summary}</text>'
    if len(found.forward_ends) == 1:
        texts += '<text x="0" y="11">forward</text>' if x[highest] >= width / 4 else ""
        texts += f'<text x="{width}" y="11" text-anchor="end">backward</text>' if x[highest] < width * 0.75 else ""
    title = f"Bytes kept for the backward, step by step: at most {summary}"
    return (
        f'<svg width="{width}" height="{height}" role="img" style="border-bottom:1px solid #888" '
        f'font-family="sans-serif" font-size="11" fill="currentColor"><title>{escape(title)}</title>'
        f'<polygon fill="{ACCENT}" fill-opacity="0.8" points="{" ".join(corners)}"/>{marks}{texts}</svg>'
    )


# ---- matplotlib --------------------------------------------------------------------------------------------


def styles(labels):
    """Return keywords of `Axes.plot` for each label: "standard" grey, one in-place strategy blue, others thin.

    If no label is the name of a strategy, all lines have the same width.
    """
    accent = next((label for label in reversed(labels) if label.startswith("inplace")), None)
    others, found = itertools.cycle(_OTHERS), []
    for label in labels:
        if label == "standard":
            found.append({"color": GREY, "linewidth": 2.5, "zorder": 2})
        elif label == accent:
            found.append({"color": ACCENT, "linewidth": 2.5, "zorder": 3})
        else:
            found.append({"color": next(others), "linewidth": 1.2 if accent else 2, "zorder": 4})
    return found


def label_ends(ax, ends, x=None):
    """Write (value, text, color) at the right of the axes, moved apart where they would overlap.

    `x` is where a line to the text starts, in data; None for no line.
    """
    size, points = 9, ax.get_window_extent().height * 72 / ax.figure.dpi
    spacing = 1.25 * size
    to_points = ax.transData + ax.transAxes.inverted()
    heights = [float(to_points.transform((ax.get_xlim()[1], value))[1]) * points for value, _, _ in ends]
    order = sorted(range(len(ends)), key=lambda i: (heights[i], -i))
    placed = _apart([heights[i] for i in order], spacing)
    for i, place in zip(order, placed, strict=True):
        value, text, color = ends[i]
        ax.annotate(
            text, (1, value), xycoords=ax.get_yaxis_transform(), xytext=(6, place - heights[i]),
            textcoords="offset points", va="center", fontsize=size, color=color, annotation_clip=False,
        )  # fmt: skip
        if x is not None:
            ax.plot([x[i], ax.get_xlim()[1]], [value, value], color=color, linewidth=0.8, linestyle=":", zorder=1)


def _apart(heights, spacing):
    """Return sorted heights moved to be at least `spacing` apart, each cluster about its mean."""
    clusters = []
    for height in heights:
        clusters.append([height])
        while len(clusters) > 1:
            (one, other), gap = clusters[-2:], spacing * (len(clusters[-2]) + len(clusters[-1])) / 2
            if np.mean(other) - np.mean(one) >= gap:
                break
            clusters[-2:] = [one + other]
    placed = []
    for cluster in clusters:
        start = np.mean(cluster) - spacing * (len(cluster) - 1) / 2
        placed += [float(start + spacing * i) for i in range(len(cluster))]
    return placed


def draw(ledgers, x="event", y="bytes", ax=None):
    """Plot several ledgers in one figure; see `Ledger.plot`."""
    _check("x", x, ("event", "time"))
    _check("y", y, ("bytes", "buffers"))
    if ax is None:
        try:
            from matplotlib import pyplot
        except ImportError as error:
            raise ImportError("a plot needs matplotlib: pip install 'inplace-abn-numpy[demo]'") from error
        _, ax = pyplot.subplots(figsize=(8, 4), layout="constrained")
    labels = [ledger.label or f"ledger {index}" for index, ledger in enumerate(ledgers, 1)]
    histories = [history(ledger) for ledger in ledgers]
    unit = _common_unit(ledgers)
    curves = _curves(histories, x, y, unit)
    looks = styles(labels)
    for look, dashes in zip(looks, _dashes(curves, looks), strict=True):
        look.update(dashes)
    for (places, values), look in zip(curves, looks, strict=True):
        ax.step(places, values, where="post", solid_capstyle="butt", dash_capstyle="butt", **look)
    highest = max(values.max() for _, values in curves)
    if y == "bytes":
        highest = max(highest, _draw_spikes(ax, histories, curves, looks, x, unit))
    ax.set_ylim(0, 1.14 * highest or 1)
    left, right = min(places[0] for places, _ in curves), max(places[-1] for places, _ in curves)
    ax.set_xlim(left, right if right > left else left + 1)
    _mark_forward(ax, histories, curves, x)
    ends = [
        (values.max(), _label(label, found, y, unit), look["color"])
        for label, found, (_, values), look in zip(labels, histories, curves, looks, strict=True)
    ]
    label_ends(ax, ends, [places[values.argmax()] for places, values in curves])
    ax.set_xlabel("step: a layer saves or frees arrays" if x == "event" else "time of a single run (ms)")
    ax.set_ylabel(f"kept for the backward ({unit})" if y == "bytes" else "buffers kept for the backward")
    ax.xaxis.get_major_locator().set_params(integer=x == "event")
    ax.yaxis.get_major_locator().set_params(integer=y == "buffers")
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_title(_title(labels, histories, y), loc="left", fontsize=11, fontweight="bold", pad=10)
    return ax


def _check(name, value, allowed):
    if value not in allowed:
        raise ValueError(f"{name} must be {' or '.join(map(repr, allowed))}, got {value!r}")


def _common_unit(ledgers):
    """Return the unit of the ledgers' tables; the largest if they differ."""
    found = {ledger.table().unit for ledger in ledgers}
    return next(unit for unit in ("GiB", "MiB", "KiB", "bytes") if unit in found)


def _curves(histories, x, y, unit):
    """Return (places, values) of each ledger; steps are counted so that the ends of the first forward agree."""
    ends = [found.forward_ends[0] if found.forward_ends else len(found.nbytes) - 1 for found in histories]
    curves = []
    for found, end in zip(histories, ends, strict=True):
        steps = np.arange(len(found.nbytes)) + (max(ends) - end)
        values = found.buffers if y == "buffers" else found.nbytes / in_unit(unit)
        curves.append((steps if x == "event" else 1e3 * found.seconds, values))
    return curves


def _dashes(curves, looks):
    """Return line styles that show equal curves side by side: the widest is solid, the others dashed on it."""
    groups, top = [], max(values.max() for _, values in curves)
    for index, (_, values) in enumerate(curves):
        for group in groups:
            other = curves[group[0]][1]
            if len(values) == len(other) and np.abs(values - other).max() <= 0.02 * top:
                group.append(index)
                break
        else:
            groups.append([index])
    found = [{} for _ in curves]
    for group in groups:
        base = max(group, key=lambda index: looks[index]["linewidth"])
        above = [index for index in group if index != base]
        if above:
            found[base] = {"linewidth": looks[base]["linewidth"] + 1.5}
        for slot, index in enumerate(above):
            found[index] = {"linestyle": (6 * slot, (6, 6 * len(above))), "linewidth": 1.5, "zorder": 5}
    return found


def _draw_spikes(ax, histories, curves, looks, x, unit):
    """Draw temporaries as thin lines above the steps, and name the largest; return the highest."""
    highest, named = 0, None
    width = 0.6 / len(histories)
    for index, (found, (places, values), look) in enumerate(zip(histories, curves, looks, strict=True)):
        for step, total, layer, seconds in found.spikes:
            bottom, top = values[step], total / in_unit(unit)
            if top <= bottom:
                continue
            place = places[step] + 0.2 + width * index if x == "event" else 1e3 * seconds
            ax.vlines(place, bottom, top, color=look["color"], linewidth=1, alpha=0.5, zorder=1.5)
            if top > highest:
                highest, named = top, (place, top, top - bottom, layer)
    if named is not None:
        place, top, size, layer = named
        on_the_left = place < (curves[0][0][0] + curves[0][0][-1]) / 2
        ax.annotate(
            f"largest temporary: {size:.{_digits(size)}f} {unit}, {layer}", (place, top),
            xytext=(4 if on_the_left else -4, 6), textcoords="offset points", fontsize=8, color=INK, va="center",
            ha="left" if on_the_left else "right",
        )  # fmt: skip
    return highest


def _mark_forward(ax, histories, curves, x):
    """Mark the end of the forward: by a line over steps, by a dot on each curve over time."""
    for found, (places, values) in zip(histories, curves, strict=True):
        if x == "time":
            ends = found.forward_ends
            ax.plot(places[ends], values[ends], "o", color=INK, markersize=4, zorder=6)
    if x == "time":
        if any(found.forward_ends for found in histories):
            ax.text(1, 1, "dots: end of the forward", transform=ax.transAxes, fontsize=8, ha="right", va="bottom")
        return
    ends = histories[0].forward_ends
    for end in ends:
        ax.axvline(curves[0][0][end], color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    if ends:
        style = {"fontsize": 8, "color": INK, "xycoords": ax.get_xaxis_transform(), "va": "top"}
        place = curves[0][0][ends[0]], 1
        ax.annotate("forward ", place, xytext=(-2, 0), textcoords="offset points", ha="right", **style)
        ax.annotate(" backward", place, xytext=(2, 0), textcoords="offset points", ha="left", **style)


def _label(label, found, y, unit):
    highest = int(found.nbytes.argmax())
    buffers = plural(int(found.buffers.max() if y == "buffers" else found.buffers[highest]), "buffer")
    if y == "buffers":
        return f"{label}: {buffers}"
    size = found.nbytes[highest] / in_unit(unit)
    return f"{label}: {size:,.{_digits(size)}f} {unit}, {buffers}"


def _digits(size):
    return 0 if size >= 100 or size == 0 else 1 if size >= 1 else 3


def _title(labels, histories, y):
    """Return the message: what the last ledgers keep of what the first keeps."""
    most = [int((found.buffers if y == "buffers" else found.nbytes).max()) for found in histories]
    what = "buffers" if y == "buffers" else "memory"
    least = min(most)
    if len(most) == 1 or not most[0]:
        return f"{labels[0]} keeps {plural(most[0], 'buffer') if y == 'buffers' else human(most[0])}"
    if least >= most[0]:
        return f"No other keeps less {what} than {labels[0]}".replace("less buffers", "fewer buffers")
    best = [label for label, value in zip(labels, most, strict=True) if value <= 1.02 * least]
    names = best[0] if len(best) == 1 else f"{', '.join(best[:-1])} and {best[-1]}"
    keeps = "keeps" if len(best) == 1 else "keep"
    if len(best) > 2:
        names, keeps = f"{best[-1]} and {len(best) - 1} others", "keep"
    if y == "buffers":
        return f"{names} {keeps} {plural(least, 'buffer')}, {labels[0]} {most[0]}"
    return f"{names} {keeps} {least / most[0]:.0%} of the memory of {labels[0]}"
