"""The results of a ledger: numbers, table, explanation and plot, computed from its list of events."""

import time

import numpy as np

from . import events, explain, history, plot, tables
from .advice import Advice


class Results:
    """What every ledger reports; subclasses append to the list of events.

    Parameters
    ----------
    model : object, optional
        Its parameters and gradients are added to the table. It has a method ``parameters``.
    label : str
        Its name in plots.
    """

    def __init__(self, model=None, label=""):
        self.label = label
        self._model = model
        self._events, self._began = [], time.perf_counter()
        self._summary = 0, 0, 0, 0

    @property
    def live(self):
        """Bytes kept now, or at the end of the block."""
        return self._summarize()[1]

    @property
    def kept(self):
        """The most bytes kept for the backward: in training, those at the end of the forward."""
        return self._summarize()[2]

    @property
    def peak(self):
        """The most bytes kept, including the scratch memory of running operations."""
        return self._summarize()[3]

    def table(self, when="kept"):
        """Return the arrays kept, by layer and role: a sequence that prints as a table.

        Memory that several layers keep is counted in the first row of them.

        Parameters
        ----------
        when : {"kept", "now"}
            "kept": at the time when the most bytes were kept. "now": now, or at the end of the block.

        Returns
        -------
        Table
            A sequence of rows with layer, role, shape, dtype, count (how many such arrays), nbytes and
            shared_with (layer and role of an earlier row that keeps the same memory).
        """
        return tables.make(self._entries(when), self._model, self._events)

    def explain(self, when="kept", most=5):
        """Return a text: the largest buffers, which layers keep them, and what would free them.

        Parameters
        ----------
        when : {"kept", "now"}
            As for `table`.
        most : int
            The largest number of buffers to list.
        """
        entries = self._entries(when)
        return explain.make(entries, self._all_events(), when, most, self._advice(entries))

    def timeline(self):
        """Return three arrays: seconds since the start, bytes kept, and bytes kept including temporaries."""
        count, rows = events.Count(), [(0.0, 0, 0)]
        for event in list(self._events):
            count.add(event)
            rows.append((event.seconds - self._began, count.live, count.total))
        seconds, live, total = zip(*rows, strict=True)
        return np.array(seconds), np.array(live), np.array(total)

    def plot(self, *others, x="event", y="bytes", ax=None):
        """Plot what is kept for the backward, with other ledgers for comparison, by matplotlib.

        A dashed line marks the end of the forward. Thin vertical lines are temporaries: scratch memory of
        running operations. Where curves are equal, one is drawn as dashes on the line of the other.

        Parameters
        ----------
        *others : Ledger
        x : {"event", "time"}
            "event": one step for each layer that saves or frees arrays; the ends of the forward are aligned.
            "time": milliseconds of this run. A single step of training is slower than later ones.
        y : {"bytes", "buffers"}
            "bytes": in the unit of the table. "buffers": the number of buffers.
        ax : matplotlib.axes.Axes, optional
            Default: of a new figure.

        Returns
        -------
        ax : matplotlib.axes.Axes
            ``ax.figure.savefig("kept.svg")`` or ``.pdf`` writes vectors.

        Raises
        ------
        ValueError
            For another `x` or `y`.
        ImportError
            If matplotlib is not installed and `ax` is None.
        """
        ledgers = (self, *others)
        return plot.draw(
            [ledger._history() for ledger in ledgers],
            [ledger.label for ledger in ledgers],
            tables.largest_unit(ledger.table().unit for ledger in ledgers),
            x, y, ax,
        )  # fmt: skip

    def __repr__(self):
        name = f" {self.label!r}" if self.label else ""
        kept, peak, live = (tables.human(n) for n in (self.kept, self.peak, self.live))
        return f"<Ledger{name}: {kept} kept for the backward, peak with temporaries {peak}, {live} now>"

    def __str__(self):
        return f"{self!r}\n{self.table()}\n{history.line(self._history())}"

    def _repr_html_(self):
        return f"<p>{tables.escape(repr(self))}</p>{history.svg(self._history())}{self.table()._repr_html_()}"

    # ---- counting --------------------------------------------------------------------------------------

    def _summarize(self):
        """Return (number of events, live, kept, peak)."""
        known = list(self._events)
        if self._summary[0] != len(known):
            count, kept, peak = events.Count(), 0, 0
            for event in known:
                count.add(event)
                kept, peak = max(kept, count.live), max(peak, count.total)
            self._summary = len(known), count.live, kept, peak
        return self._summary

    def _all_events(self):
        """Return all events, for `explain`."""
        return self._events

    def _advice(self, entries):
        """Return what `explain` says about entries, an `Advice`."""
        return Advice(entries)

    def _history(self):
        """Return the `History` of all events."""
        return history.of_events(list(self._events), self._began)

    def _entries(self, when):
        """Return the entries that are kept now, or were kept when the most bytes were."""
        if when not in ("kept", "now"):
            raise ValueError(f"when must be 'kept' or 'now', got {when!r}")
        known = list(self._events)
        if when == "now":
            return events.at(known, len(known)).entries()
        count, highest, where, growing = events.Count(), 0, 0, True
        for index, event in enumerate(known, 1):
            count.add(event)
            growing = growing and not isinstance(event, events.Freed)
            # At equal size, advance until the next free: a later entry may share a buffer.
            if count.live > highest or (growing and count.live == highest):
                highest, where, growing = count.live, index, True
        return events.at(known, where).entries()
