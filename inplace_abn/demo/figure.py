"""The picture of the demo: memory over one step, losses, and scores."""

import numpy as np

from ..memory import plot

#: Why strategies that compute the same gradients reach different scores; the tests check the last sentence.
WHY_SCORES_DIFFER = (
    "All strategies compute the same gradients up to rounding errors. During training these grow as a small "
    "change of the initial weights would, so the scores differ by chance. In float64 the losses of all "
    "strategies agree to 9 digits over 20 steps."
)


def draw(setting, runs, path):
    """Write a picture of three panels: memory over one step, training loss, scores on the test data."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(17, 4.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
    runs[0].ledger.plot(*(run.ledger for run in runs[1:]), ax=left)
    styles = plot.styles([run.strategy for run in runs])
    draw_losses(middle, runs, styles)
    draw_scores(right, setting, runs, styles)
    for ax in (middle, right):
        ax.spines[["top", "right"]].set_visible(False)
    if len(runs) > 1:
        figure.supxlabel(WHY_SCORES_DIFFER, fontsize=9, color=plot.INK, x=0.01, ha="left")
    figure.savefig(path, dpi=120)


def draw_losses(ax, runs, styles):
    """Draw running means of the losses, with their last values at the lines."""
    smoothed = [smooth(run.losses) for run in runs]
    window = len(runs[0].losses) - len(smoothed[0]) + 1
    steps = np.arange(window, len(runs[0].losses) + 1)
    for run, losses, style in zip(runs, smoothed, styles, strict=True):
        width = {"linewidth": 5} if run.strategy == "standard" else {}  # visible where other lines lie on it
        ax.plot(steps, losses, **{**style, **width})
    low, high = float(min(map(min, smoothed))), float(max(map(max, smoothed)))
    if low > 0 and high > 5 * low:
        ax.set_yscale("log")
        _plain_ticks(ax, low, high)
    ax.set_xlim(0, steps[-1])
    ax.set(xlabel="step", ylabel=f"training loss, mean of {window} steps" if window > 1 else "training loss")
    ends = [
        (float(losses[-1]), f"{run.strategy}: {losses[-1]:.3g}", style["color"])
        for run, losses, style in zip(runs, smoothed, styles, strict=True)
    ]
    plot.label_ends(ax, ends)
    last = [losses[-1] for losses in smoothed]
    spread = (max(last) - min(last)) / min(last)
    _title(
        ax,
        f"All losses end within {spread:.1%} of each other"
        if len(runs) > 1
        else f"The loss ends at {last[0]:.3g}",
    )


def draw_scores(ax, setting, runs, styles):
    """Draw scores by epoch with the last at the lines, or bars of the last after one or two epochs."""
    names, scores = [run.strategy for run in runs], [run.scores[-1] for run in runs]
    colors = [style["color"] for style in styles]
    if len(runs[0].scores) <= 2:
        bars = ax.barh(names, [100 * score for score in scores], 0.7, color=colors)
        ax.bar_label(bars, [f"{score:.1%}" for score in scores], padding=3, fontsize=9, color=plot.INK)
        ax.invert_yaxis()
        ax.tick_params(axis="y", length=0)
        ax.set(xlim=(0, 100), xlabel=f"{setting.task.scored} after {_epochs(len(runs[0].scores))} (%)")
    else:
        epochs = range(1, len(runs[0].scores) + 1)
        for run, style in zip(runs, styles, strict=True):
            ax.plot(epochs, [100 * score for score in run.scores], marker="o", markersize=4, **style)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set_xlim(0.9, epochs[-1])
        ax.set(xlabel="epoch", ylabel=f"{setting.task.scored} (%)")
        ends = [
            (100 * score, f"{name}: {score:.1%}", color)
            for name, score, color in zip(names, scores, colors, strict=True)
        ]
        plot.label_ends(ax, ends)
    least, most = (f"{extreme(scores):.1%}" for extreme in (min, max))
    scored = setting.task.scored[0].upper() + setting.task.scored[1:]
    _title(ax, f"{scored} of {least}" + (f" to {most}" if most != least else ""))


def smooth(losses, window=10):
    """Return running means of the losses."""
    window = max(1, min(window, len(losses) // 4))
    return np.convolve(losses, np.full(window, 1 / window), "valid")


def _plain_ticks(ax, low, high):
    """Set ticks of a logarithmic axis at 1, 2 and 5 times powers of ten, written as plain numbers."""
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    ticks = [tick for tick in ticks if 0.8 * low <= tick <= 1.2 * high]
    ax.set_ylim(0.8 * low, 1.2 * high)
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()


def _title(ax, text):
    ax.set_title(text, loc="left", fontsize=11, fontweight="bold", pad=20)


def _epochs(count):
    return f"{count} epoch{'' if count == 1 else 's'}"
