"""The limit and the peers as a picture; needs matplotlib."""

import numpy as np

from benchmarks.peers import PEERS
from benchmarks.tables import GROUPS, shape_name

_COLOURS = {"forward": "#4878a8", "backward": "#e49444"}


def draw(summary, path):
    """Write a PNG to `path`: shares of the limit with their targets, and below them the peers.

    Without figures of either kind nothing is written.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    charts = [(_draw_limit, summary["limit"]), (_draw_peers, summary["peers"])]
    charts = [(chart, entries) for chart, entries in charts if entries]
    if not charts:
        return
    figure = Figure(figsize=(13, 5 * len(charts)), layout="constrained")
    for position, (chart, entries) in enumerate(charts, 1):
        chart(figure.add_subplot(len(charts), 1, position), entries)
    machine = summary["machine"]
    figure.suptitle(
        f"{machine['cpu']}, {machine['threads']} threads, float32, leaky_relu, cold caches", fontsize=10
    )
    figure.savefig(path, dpi=120)


def _label(axes, entries):
    names = list(dict.fromkeys((entry["shape"], entry["layout"]) for entry in entries))
    axes.set_xticks(
        range(len(names)), [f"{shape_name(shape)}\n{layout}" for shape, layout in names], fontsize=7
    )
    return {name: place for place, name in enumerate(names)}


def _legend(axes):
    axes.legend(fontsize=8, ncols=4, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)


def _targets(axes, left, figures, width):
    """Draw a black line across the bar of each figure that has a target."""
    goals = [(x, figure.target) for x, figure in zip(left, figures, strict=True) if figure.target is not None]
    if goals:
        x, y = np.array(goals).T
        axes.hlines(y, x, x + width, color="k", linewidth=1.5)


def _draw_limit(axes, entries):
    """Two bars for each state of the memory; the faster state's are hatched. A black line is a target."""
    places = _label(axes, entries)
    states = list(dict.fromkeys(entry["state"] for entry in entries))
    width = 0.8 / (2 * len(states))
    for column, (state, name) in enumerate((state, name) for state in states for name in _COLOURS):
        members = [entry for entry in entries if entry["state"] == state]
        left = np.array([places[entry["shape"], entry["layout"]] for entry in members]) - 0.4 + column * width
        figures = [entry[name]["of_limit"] for entry in members]
        label = name if len(states) == 1 else f"{name}, group {GROUPS[state]}"
        hatch = "//" if state == "faster" else None
        heights = [figure.value for figure in figures]
        axes.bar(
            left, heights, width, align="edge", color=_COLOURS[name], hatch=hatch, edgecolor="w", label=label
        )
        _targets(axes, left, figures, width)
    axes.axhline(1, color="0.6", linewidth=0.8)
    axes.set_ylabel("share of the in-place stream's speed\n(black: target)")
    _legend(axes)


def _draw_peers(axes, entries):
    """One bar for each peer, up from 1 where inplace_abn is faster, down where the peer is."""
    places = _label(axes, entries)
    columns = list(dict.fromkeys((entry["environment"], entry["peer"]) for entry in entries))
    width = 0.8 / len(columns)
    for column, (environment, peer) in enumerate(columns):
        members = [entry for entry in entries if (entry["environment"], entry["peer"]) == (environment, peer)]
        left = [places[entry["shape"], entry["layout"]] - 0.4 + column * width for entry in members]
        figures = [entry["times"] for entry in members]
        heights = [figure.value - 1 for figure in figures]
        label = f"{PEERS[peer][1]}, {environment}"
        axes.bar(left, heights, width, bottom=1, align="edge", edgecolor="w", label=label)
        _targets(axes, left, figures, width)
    axes.axhline(1, color="k", linewidth=1)
    axes.set_yscale("log")
    axes.set_ylabel("times as fast, forward + backward\n(black: target)")
    _legend(axes)
