"""The memory over a training step as a figure of matplotlib."""

from ..memory import tables

#: Okabe and Ito's palette, which stays distinct for colour-blind readers.
COLORS = ("#000000", "#E69F00", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#56B4E9")


def draw(plan, ax=None):
    """Plot the bytes in use over the step of each strategy; return the axes."""
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=(9, 4.5), layout="constrained")
    steps = [(planned.strategy, planned.step) for planned in plan.strategies if planned.step is not None]
    most = max([step.peak for _, step in steps] + [plan.budget or 0], default=1)
    unit = next(
        name for name in ("GiB", "MiB", "KiB", "bytes") if most >= tables.in_unit(name) or name == "bytes"
    )
    for (name, step), color in zip(steps, COLORS * 9, strict=False):
        places = [point[3] / (step.work or 1) for point in step.timeline]
        used = [point[1] / tables.in_unit(unit) for point in step.timeline]
        ax.plot(places, used, color=color, linewidth=1, label=f"{name}: {tables.human(step.peak)}")
    if plan.budget is not None:
        ax.axhline(plan.budget / tables.in_unit(unit), color="#888", linestyle="--", linewidth=1)
        ax.text(0, plan.budget / tables.in_unit(unit), "budget", va="bottom", fontsize=8)
    ax.set(
        xlabel="step, by estimated time: forward, loss, backward, optimizer",
        ylabel=f"in use ({unit})",
        ylim=(0, None),
        xticks=[],
    )
    ax.set_title(plan._title()[0], loc="left", fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)
    return ax
