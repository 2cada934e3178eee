"""Plots of ledgers by matplotlib, which is imported only when a plot is drawn."""

import itertools

import numpy as np

from .tables import ACCENT, human, in_unit, plural

#: Okabe and Ito's palette, which stays distinct for colour-blind readers; grey is for "standard".
GREY, INK = "#7F7F7F", "#222222"
_OTHERS = ("#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9")


def styles(labels):
    """Return keywords of `Axes.plot` for each label: "standard" is grey, the last in-place strategy blue.

    The other lines are thin if one is blue.
    """
    accent = next((label for label in reversed(labels) if label.startswith("inplace")), None)
    others, looks = itertools.cycle(_OTHERS), []
    for label in labels:
        if label == "standard":
            looks.append({"color": GREY, "linewidth": 2.5, "zorder": 2})
        elif label == accent:
            looks.append({"color": ACCENT, "linewidth": 2.5, "zorder": 3})
        else:
            looks.append({"color": next(others), "linewidth": 1.2 if accent else 2, "zorder": 4})
    return looks


def label_ends(ax, ends, x=None):
    """Write each (value, text, color) to the right of the axes, at its value; spread overlapping texts.

    With `x`, a dotted line leads from the point (x[i], value) to the edge of the axes.
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
            ax.plot(
                [x[i], ax.get_xlim()[1]], [value, value], color=color, linewidth=0.8, linestyle=":", zorder=1
            )


def _apart(heights, spacing):
    """Return sorted heights spread to be at least `spacing` apart; each cluster keeps its mean."""
    clusters = []
    for height in heights:
        clusters.append([height])
        while len(clusters) > 1:
            (lower, upper), gap = clusters[-2:], spacing * (len(clusters[-2]) + len(clusters[-1])) / 2
            if np.mean(upper) - np.mean(lower) >= gap:
                break
            clusters[-2:] = [lower + upper]
    placed = []
    for cluster in clusters:
        start = np.mean(cluster) - spacing * (len(cluster) - 1) / 2
        placed += [float(start + spacing * i) for i in range(len(cluster))]
    return placed


def draw(histories, labels, unit, x="event", y="bytes", ax=None):
    """Plot several histories in one figure, bytes in `unit`; see `Ledger.plot`."""
    _check("x", x, ("event", "time"))
    _check("y", y, ("bytes", "buffers"))
    if ax is None:
        try:
            from matplotlib import pyplot
        except ImportError as error:
            raise ImportError("a plot needs matplotlib: pip install 'inplace-abn-numpy[demo]'") from error
        _, ax = pyplot.subplots(figsize=(8, 4), layout="constrained")
    labels = [label or f"ledger {index}" for index, label in enumerate(labels, 1)]
    if x == "event":
        places, calls = _places(histories)
    else:
        places, calls = [1e3 * history.seconds for history in histories], 0
    values = [history.buffers if y == "buffers" else history.nbytes / in_unit(unit) for history in histories]
    looks = styles(labels)
    for look, dashes in zip(looks, _dashes(places, values, looks), strict=True):
        look.update(dashes)
    for place, value, look in zip(places, values, looks, strict=True):
        ax.step(
            [*place, place[-1] + (x == "event")],
            [*value, value[-1]],
            where="post",
            solid_capstyle="butt",
            dash_capstyle="butt",
            **look,
        )
    left, right = min(place[0] for place in places), max(place[-1] for place in places) + (x == "event")
    ax.set_xlim(left, max(right, left + 1e-3))
    notes, highest = [], max(value.max() for value in values)
    if y == "bytes":
        highest = max(highest, _draw_spikes(ax, histories, places, labels, looks, x, unit, notes))
    ax.set_ylim(0, 1.14 * highest or 1)
    _mark_forward(ax, histories, places, values, x, notes)
    ends = [
        (value.max(), _label(label, history, y, unit), look["color"])
        for label, history, value, look in zip(labels, histories, values, looks, strict=True)
    ]
    label_ends(ax, ends, [place[value.argmax()] for place, value in zip(places, values, strict=True)])
    _label_axes(ax, x, y, unit, calls)
    ax.text(
        0, 1, "; ".join(notes), transform=ax.transAxes + _points(0, 5, ax), fontsize=8, color=INK, va="bottom"
    )
    title = _title(labels, histories, y)
    ax.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=20 if notes else 8)
    return ax


def _points(right, up, ax):
    """Return a translation by points, a unit of 1/72 inch."""
    from matplotlib.transforms import ScaledTranslation

    return ScaledTranslation(right / 72, up / 72, ax.figure.dpi_scale_trans)


def _label_axes(ax, x, y, unit, calls):
    """Set labels and ticks; layers count up to `calls` in the forward, and down in the backward."""
    if x == "time":
        ax.set_xlabel("time of a single run (ms)")
    elif calls:
        ax.set_xlabel("layer that saves (forward) or frees (backward), in order")
        every = next(n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, calls) if calls <= 8 * n)
        ticks = range(every, calls + 1 - every // 2, every)
        places = [*ticks, *(2 * calls + 1 - tick for tick in reversed(ticks))]
        ax.set_xticks(places, [str(tick) for tick in [*ticks, *reversed(ticks)]])
    else:
        ax.set_xlabel("step: a layer saves or frees arrays")
        ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_ylabel(f"kept for the backward ({unit})" if y == "bytes" else "buffers kept for the backward")
    ax.yaxis.get_major_locator().set_params(integer=y == "buffers")
    ax.spines[["top", "right"]].set_visible(False)


def _check(name, value, allowed):
    if value not in allowed:
        raise ValueError(f"{name} must be {' or '.join(map(repr, allowed))}, got {value!r}")


def _places(histories):
    """Return the x of each step of each history, and the number of calls on each half of the axis.

    In a single training step, the save and the free of call i of n are at i and 2n + 1 - i, in all histories.
    Otherwise steps are counted, with the ends of the first forward aligned, and the number of calls is 0.
    """
    if not all(history.is_one_step for history in histories):
        ends = [history.forward_ends[0] if history.forward_ends else 0 for history in histories]
        return [
            np.arange(len(history.nbytes)) + max(ends) - end
            for history, end in zip(histories, ends, strict=True)
        ], 0  # fmt: skip
    order = []
    for history in sorted(histories, key=lambda history: -len(history.calls)):
        after = 0
        for call in history.calls[1:]:
            if call not in order:
                order.insert(after, call)
            after = order.index(call) + 1
    index = {call: number for number, call in enumerate(order, 1)}
    index[None], mirror = 0, 2 * len(order) + 1
    places = [
        [
            mirror - index[call] if frees else index[call]
            for call, frees in zip(history.calls, history.frees, strict=True)
        ]
        for history in histories
    ]
    return [np.maximum.accumulate(place) for place in places], len(order)


def _dashes(places, values, looks):
    """Return line styles for curves that are equal: the widest is solid, dashes of the others lie on it."""
    groups, top = [], max(value.max() for value in values)
    for index, (place, value) in enumerate(zip(places, values, strict=True)):
        for group in groups:
            if _mostly_equal(places[group[0]], values[group[0]], place, value, top):
                group.append(index)
                break
        else:
            groups.append([index])
    dashes = [{} for _ in values]
    for group in groups:
        base = max(group, key=lambda index: looks[index]["linewidth"])
        above = [index for index in group if index != base]
        if above:
            dashes[base] = {"linewidth": looks[base]["linewidth"] + 1.5}
        for slot, index in enumerate(above):
            dashes[index] = {"linestyle": (6 * slot, (6, 6 * len(above))), "linewidth": 1.5, "zorder": 5}
    return dashes


def _mostly_equal(place, value, other_place, other, top):
    """Return True if two step functions have equal peaks and are equal at most places, within 2% of `top`."""
    grid = np.union1d(place, other_place)
    first, second = (
        v[np.maximum(np.searchsorted(p, grid, "right") - 1, 0)]
        for p, v in ((place, value), (other_place, other))
    )
    if abs(value.max() - other.max()) > 0.02 * top:
        return False
    return np.mean(np.abs(first - second) <= 0.02 * top) > 0.5


def _draw_spikes(ax, histories, places, labels, looks, x, unit, notes):
    """Draw temporaries as thin lines above the steps; note the largest; return the highest total."""
    highest, largest = 0, None
    for history, place, label, look in zip(histories, places, labels, looks, strict=True):
        steps = [step for step, *_ in history.spikes]
        for number, (step, total, layer, seconds) in enumerate(history.spikes):
            kept = int(history.nbytes[step])
            if total <= kept:
                continue
            until = place[min(step + 1, len(place) - 1)]
            share = (number - steps.index(step) + 1) / (steps.count(step) + 1)
            where = place[step] + share * (until - place[step]) if x == "event" else 1e3 * seconds
            ax.vlines(
                where,
                kept / in_unit(unit),
                total / in_unit(unit),
                color=look["color"],
                linewidth=1,
                zorder=1.5,
            )
            highest = max(highest, total / in_unit(unit))
            if largest is None or total - kept > largest[0]:
                largest = total - kept, where, total / in_unit(unit), f"{label}, {layer}", look["color"]
    if largest is not None:
        nbytes, where, top, name, color = largest
        ax.plot([where], [top], "v", color=color, markersize=5, zorder=6)
        notes.append(f"thin lines: temporaries; \u25bc the largest, {human(nbytes)} in {name}")
    return highest


def _mark_forward(ax, histories, places, values, x, notes):
    """Mark the end of the forward: by a line over steps, by a dot on each curve over time."""
    if x == "time":
        for history, place, value in zip(histories, places, values, strict=True):
            ax.plot(
                place[history.forward_ends],
                value[history.forward_ends],
                "o",
                color=INK,
                markersize=4,
                zorder=6,
            )
        notes.append("dots: the forward ends")
        return
    ends = [places[0][end] + 0.5 for end in histories[0].forward_ends]
    for end in ends:
        ax.axvline(end, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    if len(ends) == 1:
        style = {"fontsize": 8, "color": INK, "xycoords": ax.get_xaxis_transform(), "va": "top"}
        for text, side, shift in (("forward", "right", -3), ("backward", "left", 3)):
            ax.annotate(text, (ends[0], 1), xytext=(shift, 0), textcoords="offset points", ha=side, **style)


def _label(label, history, y, unit):
    """Return the text at the end of a line: the name of the ledger and what it keeps at most."""
    highest = int(history.nbytes.argmax())
    buffers = plural(int(history.buffers.max() if y == "buffers" else history.buffers[highest]), "buffer")
    if y == "buffers":
        return f"{label}: {buffers}"
    size = history.nbytes[highest] / in_unit(unit)
    return f"{label}: {size:,.{_digits(size)}f} {unit}, {buffers}"


def _digits(size):
    return 0 if size >= 100 or size == 0 else 1 if size >= 1 else 3


def _title(labels, histories, y):
    """Return the title: the ledgers that keep least, compared to the first."""
    most = [int((history.buffers if y == "buffers" else history.nbytes).max()) for history in histories]
    what = "buffers" if y == "buffers" else "memory"
    least = min(most)
    if len(most) == 1 or not most[0]:
        kept = plural(most[0], "buffer") if y == "buffers" else human(most[0])
        return f"{labels[0]} keeps {kept} for the backward"
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
