"""Memory accounting: a ledger of the arrays that layers and functions keep for their backward.

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

Contexts of `inplace_abn.functional` are listed under "functional.forward" or "functional.normalize", unless a
layer made the call. Memory that several contexts keep is counted once. Of a view, only the bytes of the view
are counted, although the whole array stays allocated. `Ledger.explain` lists the reasons why memory is kept
and what would free it; `Ledger.plot` plots it layer by layer. Without an active ledger, a call costs one
comparison.
"""

from contextlib import contextmanager

from .. import _core
from ._ledger import Ledger

__all__ = ["Ledger", "ledger", "recorder"]

#: The active ledger, or None. `inplace_abn.layers.LayerContext` reports to it.
recorder = None


@contextmanager
def ledger(model=None, label=""):
    """Activate a new `Ledger` inside the block.

    Contexts made before the block are not counted. An inner ledger also reports to the outer one. A ledger
    counts the contexts of all threads.

    Parameters
    ----------
    model : Layer, optional
        Its parameters and their gradients are added to the table.
    label : str, optional
        The name of the ledger in plots, such as the strategy.

    Yields
    ------
    Ledger

    Raises
    ------
    TypeError
        If `model` has no method ``parameters``.

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
