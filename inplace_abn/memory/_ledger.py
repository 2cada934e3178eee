"""The ledger: the list of events that contexts report."""

import time

from . import events
from ._results import Results


class Ledger(Results):
    """A record of the arrays kept for the backward; returned by `inplace_abn.memory.ledger`.

    Parameters
    ----------
    model : Layer, optional
        Its parameters and gradients are added to the table.
    label : str
        Its name in plots.

    Attributes
    ----------
    label : str
    """

    def __init__(self, model=None, label="", outer=None):
        super().__init__(model, label)
        self._outer = outer

    def saved(self, context, layer, role, array, activation=None):
        """Record that `context` starts to keep `array`, for `layer`, as `role`.

        Parameters
        ----------
        context : hashable
            Identifies the call; pass the same to `freed`.
        layer, role : str
        array : ndarray
            The ledger does not keep it alive.
        activation : str, optional
            Activation of a normalization, for the advice of `explain`.

        Examples
        --------
        Contexts of `inplace_abn.functional` and of layers report themselves. A custom operation:

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
        """Record that `context` frees all its arrays. An unknown context is ignored."""
        if self._outer is not None:
            self._outer.freed(context)
        key = context if isinstance(context, int) else id(context)
        self._events.append(events.Freed(key, time.perf_counter(), key))

    def temporary(self, layer, nbytes):
        """Record that an operation of `layer` uses `nbytes` of scratch memory; consecutive calls add up."""
        if self._outer is not None:
            self._outer.temporary(layer, nbytes)
        self._events.append(events.Temporary(layer, int(nbytes), time.perf_counter()))
