"""The ledger itself."""

import time

import numpy as np

from . import events, explain, plot, tables


class Ledger:
    """A record of what layers keep for their backward; made by `inplace_abn.memory.ledger`.

    Parameters
    ----------
    model : Layer, optional
        Its parameters and gradients go into the table.
    label : str
        Its name in plots.

    Attributes
    ----------
    label : str
    """

    def __init__(self, model=None, label="", outer=None):
        self.label = label
        self._model, self._outer = model, outer
        self._events, self._began = [], time.perf_counter()
        self._summary = 0, 0, 0, 0

    # ---- what layers tell it: here to be written, or called for operations of one's own ------------------

    def saved(self, context, layer, role, array, activation=None):
        """Note that `context`, any hashable, keeps `array` from now on, on behalf of `layer` and as `role`.

        Parameters
        ----------
        context : hashable
            The same one as in `freed`; of each call its own.
        layer, role : str
        array : ndarray
            It is not kept alive by this.
        activation : str, optional
            Of a normalization: `explain` gives no advice that it makes pointless.

        Examples
        --------
        Contexts of `inplace_abn.functional` and of layers report by themselves; for anything else:

        >>> import numpy as np
        >>> from inplace_abn import memory
        >>> with memory.ledger() as ledger:
        ...     ledger.saved("call 1", "my operation", "input", np.eye(3))
        ...     ledger.freed("call 1")
        >>> ledger.kept, ledger.live
        (72, 0)
        """
        if self._outer is not None:
            self._outer.saved(context, layer, role, array, activation)
        key = context if isinstance(context, int) else id(context)
        self._events.append(events.saved(key, layer, role, array, activation))

    def freed(self, context):
        """Note that `context` lets go of everything it kept. One that is not known does no harm."""
        if self._outer is not None:
            self._outer.freed(context)
        key = context if isinstance(context, int) else id(context)
        self._events.append(events.Freed(key, time.perf_counter()))

    def temporary(self, layer, nbytes):
        """Note that an operation of `layer` needs `nbytes` for itself; several calls in a row add up."""
        if self._outer is not None:
            self._outer.temporary(layer, nbytes)
        self._events.append(events.Temporary(layer, int(nbytes), time.perf_counter()))

    # ---- what it answers -----------------------------------------------------------------------------------

    @property
    def live(self):
        """Bytes kept now, or when the ledger was switched off."""
        return self._summarize()[1]

    @property
    def kept(self):
        """Bytes kept for the backward at the highest point: in training, at the end of the forward."""
        return self._summarize()[2]

    @property
    def peak(self):
        """The same with what operations hold for themselves while they run."""
        return self._summarize()[3]

    def table(self, when="kept"):
        """Return what was kept, per layer and role: to print, to show in a notebook, to go through.

        Memory that several of them keep is counted where it appears first.

        Parameters
        ----------
        when : {"kept", "now"}
            At the highest point, or now.

        Returns
        -------
        Table
            A sequence of rows with layer, role, shape, dtype, count (how many such arrays), nbytes and
            shared_with (layer and role that keep the same memory and come before).
        """
        return tables.make(self._entries(when), self._model, self._events)

    def explain(self, when="kept", most=5):
        """Return in words which buffers take most, who keeps them, and what would free them.

        Parameters
        ----------
        when : {"kept", "now"}
        most : int
            How many buffers.
        """
        return explain.make(self._entries(when), self._events, when, most)

    def timeline(self):
        """Return arrays: seconds since the ledger was switched on, bytes kept, and these with temporaries."""
        count, rows = events.Count(), [(0.0, 0, 0)]
        for event in list(self._events):
            count.add(event)
            rows.append((event.seconds - self._began, count.live, count.total))
        seconds, live, total = zip(*rows, strict=True)
        return np.array(seconds), np.array(live), np.array(total)

    def plot(self, *others, ax=None):
        """Draw bytes kept over time, with those of other ledgers, by matplotlib.

        Parameters
        ----------
        *others : Ledger
        ax : matplotlib.axes.Axes, optional
            Default: of a new figure.

        Returns
        -------
        ax : matplotlib.axes.Axes
        """
        return plot.draw((self, *others), ax)

    def __repr__(self):
        name = f" {self.label!r}" if self.label else ""
        kept, peak, live = (tables.human(n) for n in (self.kept, self.peak, self.live))
        return f"<Ledger{name}: {kept} kept for the backward, peak with temporaries {peak}, {live} now>"

    def __str__(self):
        return f"{self!r}\n{self.table()}\n{plot.line(self)}"

    def _repr_html_(self):
        return f"<p>{tables.escape(repr(self))}</p>{plot.svg(self)}{self.table()._repr_html_()}"

    # ---- counting --------------------------------------------------------------------------------------

    def _summarize(self):
        """Return (number of events, live, kept, peak), going through the events that are new."""
        known = list(self._events)
        if self._summary[0] != len(known):
            count, kept, peak = events.Count(), 0, 0
            for event in known:
                count.add(event)
                kept, peak = max(kept, count.live), max(peak, count.total)
            self._summary = len(known), count.live, kept, peak
        return self._summary

    def _entries(self, when):
        if when not in ("kept", "now"):
            raise ValueError(f"when must be 'kept', at the highest point, or 'now', got {when!r}")
        known = list(self._events)
        if when == "now":
            return events.at(known, len(known)).entries()
        count, highest, where, growing = events.Count(), 0, 0, True
        for index, event in enumerate(known, 1):
            count.add(event)
            growing = growing and not isinstance(event, events.Freed)
            if count.live > highest or (growing and count.live == highest):  # also who shares what is there
                highest, where, growing = count.live, index, True
        return events.at(known, where).entries()
