"""The bytes kept after each step, as numbers, as a line of text, and as SVG for notebooks."""

import itertools
from collections import Counter
from typing import NamedTuple

import numpy as np

from . import events
from .tables import ACCENT, escape, human, plural

_BARS = " ▁▂▃▄▅▆▇█"


class History(NamedTuple):
    """Bytes and buffers kept after each step; in a step, the contexts of one call save or free their arrays.

    For each step, ``calls`` has (layer, number of the call of this layer), and ``frees`` True if it frees.
    ``spikes`` are the temporaries: (index of the step before, bytes kept + temporary, layer, seconds).
    ``forward_ends`` are the indices of the steps that end a forward: the next step is the first one that
    frees since the start, or since nothing was kept.
    """

    seconds: np.ndarray
    nbytes: np.ndarray
    buffers: np.ndarray
    calls: list
    frees: list
    spikes: list
    forward_ends: list

    @property
    def is_one_step(self):
        """True if all saves come before all frees, as in one step of training without `Recompute`."""
        return len(self.forward_ends) <= 1 and sorted(self.frees) == self.frees


def of_events(known, began):
    """Return the `History` of all events of a ledger; `began` is the time at which it was made."""
    count, calls, numbers, last, saving = events.Count(), {}, {}, None, True
    waiting = Counter()  # call -> number of its contexts that are not freed yet
    rows, spikes, forward_ends = [(0.0, 0, 0, None, False)], [], []
    for event in known:
        if isinstance(event, events.Temporary):
            count.add(event)
            spikes.append((len(rows) - 1, count.total, event.layer, event.seconds - began))
            continue
        frees, is_known = isinstance(event, events.Freed), bool(count.of(event.context))
        if frees and not is_known:
            continue  # the context saved nothing
        if frees and saving:
            forward_ends.append(len(rows) - 1)
        count.add(event)
        if not frees and event.call not in calls:
            numbers[event.layer] = numbers.get(event.layer, 0) + 1
            calls[event.call] = event.layer, numbers[event.layer]
        if (event.call, frees) != last:
            rows.append(None)
        rows[-1] = event.seconds - began, count.live, count.buffers, calls[event.call], frees
        waiting[event.call] += -1 if frees else not is_known
        if not waiting[event.call]:
            del calls[event.call], waiting[event.call]  # an id may be reused
        last = event.call, frees
        saving = not count.buffers if frees else saving
    seconds, nbytes, buffers, called, freed = zip(*rows, strict=True)
    return History(
        np.array(seconds),
        np.array(nbytes),
        np.array(buffers),
        list(called),
        list(freed),
        spikes,
        forward_ends,
    )


def line(history, width=60):
    """Return the bytes kept, step by step, as one line of bars; "│" marks the end of the forward."""
    nbytes, top = history.nbytes, max(history.nbytes.max(), 1)
    if not history.forward_ends:
        return f"forward {_bars(nbytes, width, top)}".rstrip()
    middle = history.forward_ends[0] + 1
    share = max(1, round(width * middle / len(nbytes)))
    before, after = _bars(nbytes[:middle], share, top), _bars(nbytes[middle:], width - share, top)
    return f"forward {before}│{after} backward"


def _bars(nbytes, width, top):
    edges = np.linspace(0, len(nbytes), min(max(width, 1), len(nbytes)) + 1).astype(int)
    heights = (int(nbytes[a:b].max()) for a, b in itertools.pairwise(edges))
    return "".join(_BARS[-(-height * (len(_BARS) - 1) // top)] for height in heights)


def svg(history, width=520, height=90):
    """Return the bytes kept, step by step, as an SVG picture for HTML."""
    margin = 16
    count, top = len(history.nbytes), int(history.nbytes.max())
    x = np.arange(len(history.nbytes)) / count * width
    y = margin + (1 - history.nbytes / max(top, 1)) * (height - margin)
    corners = [f"0,{height}"]
    for i in range(len(x)):
        corners.append(f"{x[i]:.1f},{y[max(i - 1, 0)]:.1f}")
        corners.append(f"{x[i]:.1f},{y[i]:.1f}")
    corners += [f"{width},{y[-1]:.1f}", f"{width},{height}"]
    highest = int(history.nbytes.argmax())
    summary = f"{human(top)} in {plural(int(history.buffers[highest]), 'buffer')}"
    marks = "".join(
        f'<line x1="{x[end + 1]:.1f}" x2="{x[end + 1]:.1f}" y1="{margin}" y2="{height}" '
        f'stroke="currentColor" stroke-dasharray="3 3"/>'
        for end in history.forward_ends
    )
    on_the_right = x[highest] > width / 2
    place = f'x="{x[highest]:.1f}" text-anchor="middle"'
    if not width / 4 < x[highest] < 3 * width / 4:
        place = f'x="{width}" text-anchor="end"' if on_the_right else 'x="0"'
    texts = f'<text {place} y="11" font-weight="bold">{summary}</text>'
    if len(history.forward_ends) == 1:
        texts += '<text x="0" y="11">forward</text>' if x[highest] >= width / 4 else ""
        texts += (
            f'<text x="{width}" y="11" text-anchor="end">backward</text>' if x[highest] < width * 0.75 else ""
        )
    title = f"Bytes kept for the backward, step by step: at most {summary}"
    return (
        f'<svg width="{width}" height="{height}" role="img" style="border-bottom:1px solid #888" '
        f'font-family="sans-serif" font-size="11" fill="currentColor"><title>{escape(title)}</title>'
        f'<polygon fill="{ACCENT}" fill-opacity="0.8" points="{" ".join(corners)}"/>{marks}{texts}</svg>'
    )
