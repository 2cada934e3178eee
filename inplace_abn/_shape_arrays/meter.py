"""The meter of a plan: bytes allocated and work done. And the mode in which layers make a plan."""

import threading
from contextlib import contextmanager
from itertools import islice

import numpy as np


class _Mode(threading.local):
    meter = None


_mode = _Mode()


class Meter:
    """Counts the bytes of shape arrays and of scratch memory, and estimates the work of a step.

    Attributes
    ----------
    live, peak : int
        Bytes allocated now, and at most, including the scratch memory of operations.
    flops, moved : float
        Multiplications and additions of matrix products, and bytes read and written by other operations.
    at_peak : function of no arguments
        Called at each new peak.
    after : function of int
        Called with the bytes in use after each change.
    """

    def __init__(self):
        self.live = self.peak = 0
        self.flops = self.moved = 0.0
        self.at_peak, self.after = (lambda: None), (lambda used: None)

    def allocated(self, nbytes):
        """Count new memory; negative if it is freed."""
        self.live += nbytes
        self._used(self.live)

    def temporary(self, nbytes):
        """Count scratch memory that an operation uses while it runs."""
        self._used(self.live + nbytes)

    def _used(self, nbytes):
        if nbytes > self.peak:
            self.peak = nbytes
            self.at_peak()
        self.after(nbytes)

    def multiplied(self, count):
        """Count the operations of matrix products."""
        self.flops += 2.0 * count

    def passed(self, *arrays):
        """Count a pass over arrays, each read or written once."""
        self.moved += sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))


@contextmanager
def planning(meter):
    """Let layers of this thread allocate shape arrays inside the block, and count them with `meter`."""
    before, _mode.meter = _mode.meter, meter
    try:
        yield meter
    finally:
        _mode.meter = before


def meter():
    """Return the meter of the plan that this thread makes, or None."""
    return _mode.meter


def first_if_planning(blocks):
    """Return the blocks of an array unchanged; inside `planning`, only the first, which is a largest one."""
    return blocks if _mode.meter is None else list(islice(blocks, 1))


def none_if_planning(blocks, products, scratch):
    """Return the blocks of an array unchanged; inside `planning`, an empty list.

    A plan counts the multiplications of all blocks, and the bytes of scratch memory that they would allocate.
    """
    if _mode.meter is None:
        return blocks
    _mode.meter.multiplied(products)
    _mode.meter.temporary(scratch)
    return []
