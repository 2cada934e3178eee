"""The memory over a training step as a figure of matplotlib."""

from ..memory import plot, tables


def draw(plan, ax=None):
    """Plot the bytes in use over the step of each strategy, with its peak at the right; return the axes."""
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=(9, 4.5), layout="constrained")
    steps = {planned.strategy: planned.step for planned in plan.strategies if planned.step is not None}
    most = max([step.peak for step in steps.values()] + [plan.budget or 0], default=1)
    unit = next(
        name for name in ("GiB", "MiB", "KiB", "bytes") if most >= tables.in_unit(name) or name == "bytes"
    )
    ends, peaks_at = [], []
    for (name, step), look in zip(steps.items(), plot.styles(list(steps)), strict=True):
        places = [point[3] / (step.work or 1) for point in step.timeline]
        used = [point[1] / tables.in_unit(unit) for point in step.timeline]
        ax.plot(places, used, **look)
        peaks_at.append(places[used.index(max(used))])
        ends.append((step.peak / tables.in_unit(unit), f"{name}: {tables.human(step.peak)}", look["color"]))
    ax.set(
        xlabel="step, by estimated time: forward, loss, backward, optimizer",
        ylabel=f"in use ({unit})",
        xlim=(0, 1),
        ylim=(0, 1.05 * most / tables.in_unit(unit)),
        xticks=[],
    )
    if plan.budget is not None:
        ax.axhline(plan.budget / tables.in_unit(unit), color=plot.INK, linestyle="--", linewidth=1)
        ax.text(0.005, plan.budget / tables.in_unit(unit), "budget", va="bottom", color=plot.INK)
    ax.set_title("\n".join([*_message(steps), *plan._title()]), loc="left", fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)
    plot.label_ends(ax, ends, peaks_at)
    return ax


def _message(steps):
    """Return a line that compares the last in-place strategy with "standard", if both are there."""
    in_place = [step for name, step in steps.items() if name.startswith("inplace")]
    if not in_place or "standard" not in steps:
        return []
    return [
        f"In place, the peak is {in_place[-1].peak / steps['standard'].peak:.0%} of that of standard layers"
    ]
