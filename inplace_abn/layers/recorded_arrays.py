"""The arrays that a tape has recorded: the value that each contains, the layer that wrote it, and the lock.

A layer that works in place returns its input array with new content. So an array object does not identify a
result. Instead, each content that an array has in succession gets a number, called a value.
"""

import weakref

import numpy as np

from . import saved_arrays


class RecordedArrays:
    """Table of the known arrays by identity, with weak references.

    Attributes
    ----------
    entries : dict
        id of an array -> (weak reference to it, value or None, layer or None). The value is None if no
        gradient passes through the array, the layer None if it came from outside.
    """

    def __init__(self):
        self.entries = {}
        self._overwritten = {}  # id of an array -> (weak reference to it, layer)
        self._bases = set()  # ids of the arrays that known views belong to
        self._locked = {}  # id of an array -> weak reference to it

    def add(self, array, value, source):
        """Enter an array that contains `value`, written by `source`. Lock it unless the value is None."""
        reference = weakref.ref(array)
        self.entries[id(array)] = reference, value, source
        if array.base is not None:
            self._bases.add(id(array.base))
        if value is not None and array.flags.writeable:
            array.setflags(False)  # faster than array.flags.writeable = False
            self._locked[id(array)] = reference

    def find(self, array):
        """Return the entry of an array, or None if it is not recorded or has been overwritten."""
        entry = self.entries.get(id(array))
        return entry if entry is not None and entry[0]() is array else None

    def overwritten_by(self, array):
        """Return the layer that has overwritten a known array, or None."""
        entry = self._overwritten.get(id(array))
        return entry[1] if entry is not None and entry[0]() is array else None

    # ---- locks -----------------------------------------------------------------------------------------

    def unlock(self, array):
        """Make a known array and its base writeable; return the arrays that were locked."""
        unlocked = []
        for candidate in (getattr(array, "base", None), array):
            reference = self._locked.get(id(candidate))
            if reference is not None and reference() is candidate:
                del self._locked[id(candidate)]
                saved_arrays.unlock(candidate)
                unlocked.append(candidate)
        return unlocked

    def lock(self, array):
        """Undo `unlock`."""
        if array.flags.writeable:
            array.flags.writeable = False
            self._locked[id(array)] = weakref.ref(array)

    def unlock_all(self):
        """Unlock all arrays."""
        for reference in list(self._locked.values()):
            array = reference()
            if array is not None:
                self.unlock(array)

    # ---- memory ----------------------------------------------------------------------------------------

    def sharing(self, array):
        """Yield the (array, source) of all other known arrays that share memory with this one."""
        for reference, _, source in list(self.entries.values()):
            other = reference()
            if other is not None and other is not array and share_memory(other, array):
                yield other, source

    def mark_overwritten(self, array, layer):
        """Note that `layer` has overwritten an array, and with it all known arrays that share its memory."""
        overwritten = [array] if self.find(array) is not None else []
        if array.base is not None or id(array) in self._bases:  # else no known array is a view of that memory
            overwritten += [other for other, _ in self.sharing(array)]
        for known in overwritten:
            self._overwritten[id(known)] = self.entries.pop(id(known))[0], layer


def share_memory(array, other):
    """Return True if two arrays have elements in common, or if deciding this would take too long."""
    if not np.may_share_memory(array, other):
        return False
    try:
        return np.shares_memory(array, other, max_work=10**6)
    except np.exceptions.TooHardError:
        return True


def describe(array, source):
    """Return a description of a known array, for messages."""
    whose = "an array from outside" if source is None else f"the result of {source.label}"
    return f"{whose} of shape {array.shape}"
