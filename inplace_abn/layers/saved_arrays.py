"""What to ask before writing in place, and arrays that can be computed again instead of being saved.

The registry of saved memory is part of the compiled module: every live context of `inplace_abn.functional`
and of the layers has an entry there for each array that it keeps. Three functions ask it, about the exact
bytes of an array, through whatever view:

- ``is_saved(array)``: True if a live context needs what is in it.
- ``refuse_if_saved(array, writer)``: ValueError in that case; it names who writes and who needs the memory.
- ``may_overwrite(array)``: True if it is writeable and nobody needs what is in it.

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
    """Return True if a live context needs what is in `array`."""
    return _core.saved_by(array) is not None


def refuse_if_saved(array, writer):
    """Refuse to overwrite an array that a live context needs; end the offer to compute it again.

    Parameters
    ----------
    array : ndarray
    writer : str
        Who writes, at the beginning of the message.

    Raises
    ------
    ValueError
    """
    _core.refuse_if_saved(array, writer=writer)
    withdraw(array)


def may_overwrite(array):
    """Return True if `array` is writeable and no live context needs it; end the offer to compute it again."""
    if is_saved(array):
        return False
    withdraw(array)
    return array.flags.writeable


# ---- arrays that can be computed again ---------------------------------------------------------------------


class _Offer:
    """An array that a checkpointing layer can compute again; read-only, so that it stays what it was."""

    __slots__ = ("recompute", "reference")

    def __init__(self, array, recompute):
        key = id(array)
        self.reference = weakref.ref(array, lambda _: _offers.pop(key, None))
        self.recompute = recompute


_offers = {}  # id of an array -> its _Offer


def offer(array, recompute):
    """Let contexts keep the function ``recompute``, which returns `array` again, instead of the array.

    The array becomes read-only. ``recompute`` has to keep what it needs.
    """
    _offers[id(array)] = _Offer(array, recompute)
    array.flags.writeable = False


def withdraw(array):
    """End an `offer` and make the array writeable; contexts that keep a `Recipe` still can recompute."""
    found = _offers.pop(id(array), None)
    if found is not None and found.reference() is array:
        unlock(array)


def unlock(array):
    """Make an array writeable: now, or as soon as no context keeps it."""
    if not _core.restore_writeable(array):
        with suppress(ValueError):  # a view of an array that is read-only itself
            array.flags.writeable = True


class Recipe:
    """The means to compute an array again, or a view that begins where it does."""

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
    """Return the `Recipe` of an array on offer or of a view of it, such as a reshaped one; else None.

    A view has to begin where the array does: not a flipped one, not a slice from the second sample on.
    """
    owner = array if array.base is None else array.base
    found = _offers.get(id(owner))
    if found is None or found.reference() is not owner:
        return None
    if array.dtype != owner.dtype or array.ctypes.data != owner.ctypes.data:
        return None
    return Recipe(found.recompute, array.shape, array.strides)
