"""The events of a ledger, and how they are counted.

A ledger is a list of events. Events are only appended, which is safe in any thread and any destructor; all
results are computed from the list. A buffer is the object that owns the memory of one or more arrays.
"""

import time
import weakref
from collections.abc import Callable, Hashable
from typing import NamedTuple

import numpy as np


class Saved(NamedTuple):
    """A context starts to keep an array.

    ``buffer`` is the id of the object that owns the memory, ``buffer_nbytes`` its size; ``first`` and ``end``
    are the bounds of the addresses of the array. An event keeps no array alive. ``owner()`` is None once the
    memory is freed; ``owner`` is None if that is not known. The contexts of one ``call`` are one step of a
    history.
    """

    context: Hashable
    layer: str
    role: str
    shape: tuple
    dtype: np.dtype
    nbytes: int
    buffer: int
    buffer_nbytes: int
    first: int
    end: int
    owner: Callable | None
    seconds: float
    activation: str | None
    call: Hashable


class Freed(NamedTuple):
    """A context frees all that it keeps."""

    context: Hashable
    seconds: float
    call: Hashable


class Temporary(NamedTuple):
    """An operation of a layer uses ``nbytes`` of scratch memory while it runs."""

    layer: str
    nbytes: int
    seconds: float


def owner_of(array):
    """Return the object that owns the memory of `array`: the end of its chain of bases."""
    while True:
        base = array.base if isinstance(array, np.ndarray) else getattr(array, "obj", None)
        if base is None:
            return array
        array = base


def saved(context, layer, role, array, activation=None):
    """Return the `Saved` of an array."""
    owner = owner_of(array)
    first, end = np.lib.array_utils.byte_bounds(array)
    return Saved(
        context, layer, role, array.shape, array.dtype, array.nbytes, id(owner),
        getattr(owner, "nbytes", array.nbytes), first, end,
        weakref.ref(owner) if isinstance(owner, np.ndarray) else None, time.perf_counter(), activation,
        context,
    )  # fmt: skip


def bytes_of(entries):
    """Return the number of bytes that arrays in one buffer cover together.

    This is the size of the union of their address ranges, limited by the sum of their sizes: strided arrays,
    such as slices of channels, cover less than their range.

    >>> memory = np.zeros(100, np.uint8)
    >>> views = {"front": memory[:60], "back": memory[40:], "even": memory[::2], "odd": memory[1::2]}
    >>> def count(*names):
    ...     return bytes_of([saved(0, "", name, views[name]) for name in names])
    >>> count("front", "front"), count("front", "back"), count("even"), count("even", "odd")
    (60, 100, 50, 100)
    """
    covered, reached = 0, 0
    for first, end in sorted({(entry.first, entry.end) for entry in entries}):
        covered += max(0, end - max(first, reached))
        reached = max(reached, end)
    elements = sum({(entry.first, entry.end, entry.shape): entry.nbytes for entry in entries}.values())
    return min(covered, elements)


class Count:
    """The bytes that are kept after each event.

    Attributes
    ----------
    live : int
        Bytes kept by contexts.
    total : int
        The same, including the scratch memory of the running operation.
    """

    def __init__(self):
        self.live = self.total = 0
        self._contexts = {}
        self._buffers = {}
        self._sizes = {}
        self._running = None

    def add(self, event):
        """Apply the next event."""
        if isinstance(event, Temporary):
            self.total = (self.total if event.layer == self._running else self.live) + event.nbytes
            self._running = event.layer
            return
        self._running = None
        if isinstance(event, Saved):
            self._contexts.setdefault(event.context, []).append(event)
            self._buffers.setdefault(event.buffer, []).append(event)
            self._measure({event.buffer})
        else:
            freed = self._contexts.pop(event.context, [])
            for buffer in {entry.buffer for entry in freed}:
                self._buffers[buffer] = [e for e in self._buffers[buffer] if e.context != event.context]
            self._measure({entry.buffer for entry in freed})
        self.total = self.live

    def _measure(self, buffers):
        """Update the sizes of buffers, and their sum."""
        for buffer in buffers:
            size = bytes_of(self._buffers[buffer])
            self.live += size - self._sizes.get(buffer, 0)
            self._sizes[buffer] = size
            if not self._buffers[buffer]:
                del self._buffers[buffer], self._sizes[buffer]

    @property
    def buffers(self):
        """The number of buffers kept by contexts."""
        return len(self._buffers)

    def of(self, context):
        """Return the entries of one context."""
        return self._contexts.get(context, [])

    def entries(self):
        """Return the entries of all contexts, in the order in which they were saved."""
        return [entry for entries in self._contexts.values() for entry in entries]


def at(events, count):
    """Return the `Count` after the first `count` of some events."""
    result = Count()
    for event in events[:count]:
        result.add(event)
    return result
