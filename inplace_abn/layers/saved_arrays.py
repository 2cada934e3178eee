"""The registry of saved arrays, which is searched before a write in place; and arrays that can be recomputed.

The registry is part of the compiled module. Every live context of `inplace_abn.functional` and of the layers
has an entry there for each array that it keeps. Entries are compared by the bytes of memory, so views are
found as well:

- ``is_saved(array)``: True if a live context keeps bytes of the array.
- ``refuse_if_saved(array, writer)``: raises a ValueError in that case, which names the writer and the keeper.
- ``may_overwrite(array)``: True if the array is writeable and no live context keeps bytes of it.

>>> import numpy as np
>>> from inplace_abn import functional
>>> x = np.ones((4, 2))
>>> view = x[2:]
>>> z, ctx = functional.forward(x)
>>> is_saved(view), is_saved(x.copy())
(True, False)
>>> refuse_if_saved(view, "my function")  # doctest: +ELLIPSIS
Traceback (most recent call last):
ValueError: my function writes in place, but functional.forward (...) keeps that memory as 'z' for ...
"""

import weakref
from contextlib import suppress

import numpy as np

from .. import _core

# ---- before writing in place -------------------------------------------------------------------------------


def is_saved(array):
    """Return True if a live context keeps memory of `array`."""
    return _core.saved_by(array) is not None


def refuse_if_saved(array, writer):
    """Raise an error if a live context keeps memory of `array`; otherwise end the offer to recompute it.

    Parameters
    ----------
    array : ndarray
    writer : str
        What writes in place; the message begins with it.

    Raises
    ------
    ValueError
    """
    _core.refuse_if_saved(array, writer=writer)
    withdraw(array)


def may_overwrite(array):
    """Return True if `array` is writeable and not saved; if not saved, end the offer to recompute it."""
    if is_saved(array):
        return False
    withdraw(array)
    return array.flags.writeable


# ---- arrays that can be recomputed -------------------------------------------------------------------------


class _Offer:
    """An array that a checkpointing layer can recompute. Read-only, so that its content stays the same."""

    __slots__ = ("recompute", "reference")

    def __init__(self, array, recompute):
        key = id(array)
        self.reference = weakref.ref(array, lambda _: _offers.pop(key, None))
        self.recompute = recompute


_offers = {}  # id of an array -> its _Offer


def offer(array, recompute):
    """Let contexts save the function ``recompute``, which returns `array`, instead of the array.

    The array becomes read-only. ``recompute`` must hold references to its inputs.
    """
    _offers[id(array)] = _Offer(array, recompute)
    array.flags.writeable = False


def withdraw(array):
    """End an `offer` and make the array writeable. Contexts that saved a `Recipe` can still recompute."""
    found = _offers.pop(id(array), None)
    if found is not None and found.reference() is array:
        unlock(array)


def unlock(array):
    """Make an array writeable, or let the registry do so when the last context that keeps it is released."""
    if not _core.restore_writeable(array):
        with suppress(ValueError):  # a view of a read-only array
            array.flags.writeable = True


class Recipe:
    """A function that recomputes an array, and the shape and strides of the view of it to return."""

    __slots__ = ("recompute", "shape", "strides")

    def __init__(self, recompute, shape, strides):
        self.recompute, self.shape, self.strides = recompute, shape, strides

    def make(self):
        """Return the array."""
        array = self.recompute()
        if (array.shape, array.strides) == (self.shape, self.strides):
            return array
        return np.lib.stride_tricks.as_strided(array, self.shape, self.strides)


def recipe(array):
    """Return the `Recipe` of an offered array, or of a view of it such as a reshaped one; else None.

    The view must begin at the first byte of the array: a flipped array, or one without the first sample,
    has no recipe.
    """
    owner = array if array.base is None else array.base
    found = _offers.get(id(owner))
    if found is None or found.reference() is not owner:
        return None
    if array.dtype != owner.dtype or array.ctypes.data != owner.ctypes.data:
        return None
    return Recipe(found.recompute, array.shape, array.strides)
