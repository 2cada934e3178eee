"""The arrays that live contexts keep: locks, keepers, and arrays that can be had again instead."""

import itertools
import threading
import weakref
from contextlib import suppress

import numpy as np

# ---- arrays that live contexts keep ------------------------------------------------------------------------


class _Lock:
    """One array, kept `count` times and read-only until the last of them is over."""

    __slots__ = ("array", "count", "writeable")

    def __init__(self, array, writeable):
        self.array, self.count, self.writeable = array, 0, writeable


_tokens = itertools.count()
_one_at_a_time = threading.RLock()  # a context may be dropped, and so freed, by whatever runs in between
_locks = {}  # id of an array -> its _Lock
_entries = {}  # token -> (first byte, last byte + 1, array, function that returns the keeper's name, role)


def add(array, name, role, writeable=None):
    """Lock an array that is kept, and note by whom.

    Parameters
    ----------
    array : ndarray
    name : callable
        Returns the keeper's name; called for messages only.
    role : str
    writeable : bool, optional
        What the array will be when nobody keeps it. Default: what it is now.

    Returns
    -------
    token
        For `remove`.
    """
    with _one_at_a_time:
        after = array.flags.writeable if writeable is None else writeable
        lock = _locks.setdefault(id(array), _Lock(array, after))
        lock.count += 1
        array.flags.writeable = False
        token = next(_tokens)
        _entries[token] = (*_bounds(array), array, name, role)
    return token


def remove(token):
    """Undo one `add`."""
    with _one_at_a_time:
        array = _entries.pop(token)[2]
        lock = _locks[id(array)]
        lock.count -= 1
        if lock.count:
            array.flags.writeable = False  # the compiled core may just have unlocked it, for another context
            return
        del _locks[id(array)]
        if lock.writeable:
            _make_writeable(array)


def _make_writeable(array):
    with suppress(ValueError):  # a view of an array that is locked itself: it stays as it is
        array.flags.writeable = True


def _bounds(array):
    if not array.flags.forc:
        return np.lib.array_utils.byte_bounds(array)
    low = array.__array_interface__["data"][0]
    return low, low + array.nbytes


def _keeper_of(array):
    """Return (name, role) of a live context that keeps memory of `array`, or None."""
    low, high = _bounds(array)
    for first, end, kept, name, role in list(_entries.values()):
        if first < high and low < end and _share(array, kept):
            return name(), role
    return None


def _share(array, other):
    try:
        return np.shares_memory(array, other, max_work=10**6)
    except np.exceptions.TooHardError:
        return True


def claim(array, why):
    """Refuse to overwrite an array that a live context keeps; one on offer is unlocked.

    Parameters
    ----------
    array : ndarray
    why : str
        Who overwrites it, at the beginning of the message.
    """
    found = _keeper_of(array)
    if found is not None:
        raise ValueError(
            f"{why} overwrites its input, but {found[0]} keeps that memory as {found[1]!r} until its "
            "backward has run; use here what does not overwrite, such as ABN with strategy='standard' or "
            "'checkpoint', or pass a copy"
        )
    withdraw(array)


def may_overwrite(array):
    """Return whether nobody needs what is in `array`; an array on offer is unlocked first.

    True only if it is writeable and no live context keeps memory of it.
    """
    if _keeper_of(array) is not None:
        return False
    withdraw(array)
    return array.flags.writeable


# ---- arrays that can be had again --------------------------------------------------------------------------


class _Offer:
    """An array that a checkpointing layer can compute once more; locked, so that it stays what it was."""

    __slots__ = ("recompute", "reference", "source")

    def __init__(self, array, recompute, source):
        key = id(array)
        self.reference = weakref.ref(array, lambda _: _offers.pop(key, None))
        self.recompute, self.source = recompute, source


_offers = {}  # id of an array -> its _Offer


def offer(array, recompute, *source):
    """Let contexts keep ``recompute``, which returns `array` once more, instead of it; it is locked.

    source: the array that it is computed from, its keeper's name and role, as for `add`.
    """
    _offers[id(array)] = _Offer(array, recompute, source)
    array.flags.writeable = False


def withdraw(array):
    """Take back an `offer`, and unlock the array; contexts that have taken it up still can recompute."""
    found = _offers.pop(id(array), None)
    if found is not None and found.reference() is array:
        unlock(array)


def unlock(array):
    """Make an array writeable: now, or as soon as no context keeps it."""
    if id(array) in _locks:
        _locks[id(array)].writeable = True
    else:
        _make_writeable(array)


class Recipe:
    """The means to have an array, or a view that begins where it does, once more.

    What it is computed from stays locked as long as there is a recipe, even if its layer is gone.
    """

    __slots__ = ("recompute", "shape", "strides", "token")

    def __init__(self, found, shape, strides):
        self.recompute, self.shape, self.strides = found.recompute, shape, strides
        self.token = add(*found.source)

    def __del__(self):
        remove(self.token)

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
    return Recipe(found, array.shape, array.strides)
