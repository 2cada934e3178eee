"""Plots of bytes over time: one line of text, SVG for notebooks, and matplotlib."""

import itertools

import numpy as np

from .tables import escape, human

_BARS = " ▁▂▃▄▅▆▇█"


def line(ledger, width=60):
    """Return what is kept, event by event, in one line of text."""
    live = ledger.timeline()[1]
    edges = np.linspace(0, len(live), min(width, len(live)) + 1).astype(int)
    heights = [live[a:b].max() for a, b in itertools.pairwise(edges)]
    top = max(*heights, 1)
    return "".join(_BARS[-(-height * (len(_BARS) - 1) // top)] for height in heights)


def svg(ledger, width=480, height=80):
    """Return what is kept over time as a picture in HTML."""
    seconds, live, _ = ledger.timeline()
    x = seconds / (seconds[-1] or 1) * width
    y = height - live / (live.max() or 1) * (height - 2)
    corners = [f"0,{height}"]
    for i in range(len(x)):
        corners.append(f"{x[i]:.1f},{y[max(i - 1, 0)]:.1f}")
        corners.append(f"{x[i]:.1f},{y[i]:.1f}")
    corners.append(f"{width},{height}")
    title = f"kept for the backward over {seconds[-1] * 1e3:.1f} ms, at most {human(int(live.max()))}"
    return (
        f'<svg width="{width}" height="{height}" role="img" style="border-bottom:1px solid #888">'
        f'<title>{escape(title)}</title><polygon fill="#4c72b0" points="{" ".join(corners)}"/></svg>'
    )


def draw(ledgers, ax=None):
    """Plot several ledgers in one figure; see `Ledger.plot`."""
    if ax is None:
        try:
            from matplotlib import pyplot
        except ImportError as error:
            raise ImportError("a plot needs matplotlib: pip install 'inplace-abn-numpy[demo]'") from error
        _, ax = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    for index, ledger in enumerate(ledgers):
        seconds, live, total = ledger.timeline()
        time, live, total = seconds * 1e3, live / 2**20, total / 2**20
        label = f"{ledger.label or f'ledger {index + 1}'}: {human(ledger.kept)} kept"
        (steps,) = ax.step(time, live, where="post", label=label)
        spikes = total > live
        ax.vlines(time[spikes], live[spikes], total[spikes], color=steps.get_color(), alpha=0.35, linewidth=1)
    ax.set(xlabel="time (ms)", ylabel="kept for the backward (MiB)")
    highest = max(ledger.peak for ledger in ledgers) / 2**20 or 1
    ax.set_ylim(0, highest * (1.08 + 0.08 * len(ledgers)))  # the legend goes above
    ax.set_xlim(left=0)
    ax.legend(loc="upper center", fontsize="small", ncols=2)
    return ax
