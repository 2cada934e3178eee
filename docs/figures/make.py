"""Draw the figures of the documentation as SVG files beside this script: ``python docs/figures/make.py``."""

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

FOLDER = Path(__file__).parent

# Okabe and Ito's palette, which stays distinct for colour-blind readers.
KEPT = "#0072B2"
FREED = "#D9D9D9"
RECOMPUTED = "#E69F00"
INK = "#222222"

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "svg.fonttype": "path",
    "svg.hashsalt": "inplace_abn",  # the same bytes from every run
    "figure.facecolor": "white",
}


def box(axes, x, y, text, color, width=1.0, height=0.62):
    """Draw a buffer, centred at (x, y), with its name inside."""
    shape = FancyBboxPatch(
        (x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0.02,rounding_size=0.08",
        facecolor=color, edgecolor="none",
    )  # fmt: skip
    axes.add_patch(shape)
    ink = "white" if color == KEPT else INK
    axes.text(x, y, text, ha="center", va="center", color=ink, fontsize=13)


def arrow(axes, start, end, text="", dashed=False):
    """Draw an operation from one buffer to the next, with its name above."""
    style = {"arrowstyle": "-|>", "color": INK, "lw": 1.2, "linestyle": "--" if dashed else "-"}
    axes.annotate("", xy=end, xytext=start, arrowprops=style)
    axes.text((start[0] + end[0]) / 2, start[1] + 0.16, text, ha="center", va="bottom", fontsize=9, color=INK)


def canvas(width, height, xlim, ylim):
    """Return a figure without axes."""
    figure, axes = plt.subplots(figsize=(width, height))
    axes.set(xlim=xlim, ylim=ylim)
    axes.set_axis_off()
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.99)
    return figure, axes


def save(figure, name):
    """Write a figure; no date, so that unchanged figures are unchanged files."""
    figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)


def chain(axes, y, title, note, buffers):
    """Draw one row: convolution, batch norm, activation, convolution, and the buffers between them."""
    axes.text(0.0, y + 0.62, title, fontsize=12, fontweight="bold", color=INK, va="center")
    axes.text(8.0, y + 0.62, note, fontsize=11, color=INK, va="center", ha="right")
    operations = ("convolution", "batch norm", "activation", "convolution")
    places = (1.75, 4.0, 6.25)
    stops = (0.35, *places, 7.75)
    for index, name in enumerate(operations):
        start = stops[index] + (0.55 if index else 0)
        end = stops[index + 1] - (0.55 if index < 3 else 0)
        arrow(axes, (start, y), (end, y), name)
    for place, (text, color) in zip(places, buffers, strict=True):
        box(axes, place, y, text, color)


def before_and_after():
    """Draw the buffers that a standard and an in-place network keep between forward and backward."""
    figure, axes = canvas(8.0, 2.9, (-0.1, 8.1), (-0.75, 2.75))
    chain(axes, 1.55, "Standard", "two buffers kept", [("x", KEPT), ("y", FREED), ("z", KEPT)])
    chain(axes, 0.0, "In place", "one buffer kept", [("x", FREED), ("y", FREED), ("z", KEPT)])
    axes.text(
        0.0, -0.6, "blue: kept for the backward pass    grey: overwritten or freed", fontsize=10, color=INK
    )
    save(figure, "before_and_after")


SCHEMES = (
    ("(a) standard", "standard", ("x", KEPT), ("z", KEPT), "nothing"),
    ("(b) checkpointing", "checkpoint", ("x", KEPT), ("z", RECOMPUTED), "batch norm and φ give z"),
    ("(c) checkpointing of x̂", "checkpoint_xhat", ("x̂", KEPT), ("z", RECOMPUTED), "γ x̂ + β and φ give z"),
    ("(d) InPlace-ABN I", "inplace_1", ("x̂", RECOMPUTED), ("z", KEPT), "φ⁻¹ gives y, (y − β)/γ gives x̂"),
    ("(e) InPlace-ABN II", "inplace_2", ("y", RECOMPUTED), ("z", KEPT), "φ⁻¹ gives y"),
)


def five_schemes():
    """Draw what each scheme of the paper keeps, and what its backward recomputes."""
    figure, axes = canvas(8.0, 4.6, (-0.1, 8.1), (-0.9, 5.0))
    for column, text in ((3.55, "before φ"), (4.95, "after φ"), (5.9, "the backward recomputes")):
        axes.text(column, 4.75, text, fontsize=10, color=INK, ha="left" if column > 5 else "center")
    for row, (title, strategy, first, second, recomputed) in enumerate(SCHEMES):
        y = 4.1 - row
        axes.text(0.0, y + 0.14, title, fontsize=12, fontweight="bold", color=INK, va="center")
        axes.text(0.0, y - 0.2, f'strategy="{strategy}"', fontsize=9, color=INK, va="center")
        box(axes, 3.55, y, *first)
        box(axes, 4.95, y, *second)
        axes.text(5.9, y, recomputed, fontsize=10, color=INK, va="center")
    axes.text(0.0, -0.75, "blue: kept    orange: recomputed from it", fontsize=10, color=INK)
    save(figure, "five_schemes")


if __name__ == "__main__":
    with plt.rc_context(STYLE):
        before_and_after()
        five_schemes()
