"""Where the memory goes: a ledger of all arrays that layers keep for their backward.

>>> import numpy as np
>>> from inplace_abn import memory
>>> from inplace_abn.layers import ABN, InPlaceABN, Sequential
>>> net = Sequential(ABN(8), InPlaceABN(8))
>>> with memory.ledger() as ledger:
...     z = net(np.random.default_rng(0).normal(size=(16, 8, 32)).astype(np.float32))
...     dx = net.backward(np.ones_like(z))
>>> print(ledger.table())
layer           role  shape        dtype     KiB
------------------------------------------------
0 (ABN)         x     (16, 8, 32)  float32  16.0
1 (InPlaceABN)  z     (16, 8, 32)  float32  16.0
------------------------------------------------
kept for the backward, 2 buffers            32.0
>>> ledger.kept, ledger.live
(32768, 0)

Memory that several layers keep is counted once; of an array of which a slice is kept, that slice, although
the rest lives as long. `Ledger.explain` says what it is kept for and what would free it, `Ledger.plot` draws
it over time. While no ledger is on, all this costs a comparison with None per saved array.
"""

from contextlib import contextmanager

from .. import _core
from .ledger import Ledger

__all__ = ["Ledger", "ledger", "recorder"]

#: The ledger that is on, or None. `inplace_abn.layers.LayerContext` tells it what it keeps and lets go.
recorder = None


@contextmanager
def ledger(model=None, label=""):
    """Switch on a new `Ledger` while the block runs.

    What contexts from before the block keep is not counted. A ledger inside another hides nothing from it.
    There is one ledger for all threads.

    Parameters
    ----------
    model : Layer, optional
        Its parameters and their gradients are listed as well.
    label : str, optional
        What the ledger is called in plots, such as the name of a strategy.

    Yields
    ------
    Ledger

    Raises
    ------
    TypeError
        For a model that has no ``parameters()``.

    Examples
    --------
    >>> import numpy as np
    >>> from inplace_abn import memory
    >>> from inplace_abn.layers import InPlaceABN
    >>> layer = InPlaceABN(2)
    >>> with memory.ledger() as ledger:
    ...     z = layer(np.eye(4, 2, dtype=np.float32))
    >>> ledger.live == z.nbytes == 32
    True
    """
    global recorder
    if model is not None and not callable(getattr(model, "parameters", None)):
        raise TypeError(f"model must be a Layer or None, got {model!r}; a name goes into label=")
    before = recorder
    recorder = Ledger(model, label, outer=before)
    _core.set_recorder(recorder)
    try:
        yield recorder
    finally:
        recorder = before
        _core.set_recorder(before)
