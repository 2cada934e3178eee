"""Charts of speed relative to memory bandwidth and to other libraries; needs matplotlib."""

from benchmarks import machine
from benchmarks.peers import PEERS
from benchmarks.tables import shape_name

# Okabe and Ito's palette, which stays distinct for colour-blind readers.
_PASSES = {"forward": "#0072B2", "backward": "#D55E00"}
_PEERS = ("#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#0072B2", "#D55E00", "#999999", "#F0E442")
_INK, _GREY = "#222222", "#999999"


def draw(summary, path):
    """Draw the sections "limit" and "peers" into the file `path`, in the format of its suffix.

    Nothing is written if both sections are empty.

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
    heights = [1.2 + 0.42 * len(_places(entries)) for _, entries in charts]
    figure = Figure(figsize=(9, sum(heights) + 0.4), layout="constrained")
    panels = figure.subplots(len(charts), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (chart, entries) in zip(panels, charts, strict=True):
        chart(axes, entries)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    figure.supxlabel(
        f"float32, leaky_relu, cold caches. {machine.short(summary['machine'])}", fontsize=8, color=_GREY
    )
    figure.savefig(path, dpi=150)


def _places(entries):
    """Return the row number of each shape and layout, in the order of the table."""
    names = dict.fromkeys((tuple(entry["shape"]), entry["layout"]) for entry in entries)
    return {name: row for row, name in enumerate(names)}


def _label_rows(axes, places):
    axes.set_yticks(list(places.values()), [f"{shape_name(shape)}, {layout}" for shape, layout in places])
    axes.set_ylim(len(places) - 0.5, -0.5)


def _row(places, entry):
    return places[tuple(entry["shape"]), entry["layout"]]


def _draw_limit(axes, entries):
    """Draw a bar for each pass, for the processes where memory bandwidth is the limit."""
    entries = [entry for entry in entries if entry["state"] != "faster"]
    places = _places(entries)
    found = {name: [entry[name]["of_limit"].value for entry in entries] for name in _PASSES}
    for slot, (name, values) in enumerate(found.items()):
        rows = [_row(places, entry) - 0.2 + 0.4 * slot for entry in entries]
        bars = axes.barh(rows, values, 0.36, color=_PASSES[name])
        axes.bar_label(bars, [f"{value:.2f}" for value in values], padding=2, fontsize=7, color=_INK)
        axes.annotate(
            name, (values[0], rows[0]), xytext=(26, 0), textcoords="offset points", va="center", fontsize=8,
            color=_PASSES[name], fontweight="bold",
        )  # fmt: skip
    _label_rows(axes, places)
    axes.axvline(1, color=_INK, linewidth=1)
    axes.text(1.01, len(places) - 0.6, "1.0 = memory bandwidth", fontsize=8, color=_INK, va="bottom")
    axes.set_xlim(0, 1.3)
    axes.set_xlabel("share of the speed of an in-place stream over the same arrays")
    least, most = ({name: extreme(values) for name, values in found.items()} for extreme in (min, max))
    axes.set_title(
        f"Forward runs at {least['forward']:.2f} to {most['forward']:.2f} of memory bandwidth, "
        f"backward at {least['backward']:.2f} to {most['backward']:.2f}",
        loc="left", fontsize=10, fontweight="bold",
    )  # fmt: skip


def _draw_peers(axes, entries):
    """Draw a dot for each peer; to the right of 1, inplace_abn is faster."""
    places = _places(entries)
    columns = list(dict.fromkeys((entry["environment"], entry["peer"]) for entry in entries))
    for color, (environment, peer) in zip(_PEERS * len(columns), columns, strict=False):
        members = [entry for entry in entries if (entry["environment"], entry["peer"]) == (environment, peer)]
        rows = [_row(places, entry) for entry in members]
        values = [entry["times"].value for entry in members]
        axes.scatter(values, rows, s=36, color=color, zorder=3)
        for value, row in zip(values, rows, strict=True):
            axes.annotate(
                f"{value:.1f}", (value, row), xytext=(0, -11), textcoords="offset points", ha="center",
                fontsize=7, color=_INK,
            )  # fmt: skip
        axes.annotate(
            f"{PEERS[peer][1]}, {environment}", (values[0], rows[0]), xytext=(0, 8),
            textcoords="offset points", ha="center", fontsize=8, color=color, fontweight="bold",
        )  # fmt: skip
    _label_rows(axes, places)
    axes.set_ylim(len(places) - 0.4, -0.9)
    axes.axvline(1, color=_INK, linewidth=1)
    axes.set_xscale("log")
    ticks = [tick for tick in (0.25, 0.5, 1, 2, 5, 10, 20, 50) if _within(tick, entries)]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(axis="x", color="#E5E5E5", zorder=0)
    axes.set_xlabel("time / time of inplace_abn, forward + backward")
    times = [entry["times"].value for entry in entries]
    axes.set_title(
        f"Other libraries take {min(times):.1f} to {max(times):.1f} times as long", loc="left", fontsize=10,
        fontweight="bold",
    )  # fmt: skip


def _within(tick, entries):
    times = [entry["times"].value for entry in entries]
    return min(1, *times) / 1.3 <= tick <= max(1, *times) * 1.3
