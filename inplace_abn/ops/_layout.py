"""Memory layouts of batches, and fresh arrays in the layout of a given one.

A batch is seen as (N, C, *spatial), ``channel_axis=1``, or as (N, *spatial, C), ``channel_axis=-1``. Its
memory has one of these two orders as well, independently: ``nhwc.transpose(0, 3, 1, 2)`` is seen with the
channels first and has them last in memory. An operation runs on `Layout.in_memory_order` of its arrays, with
`Layout.memory_axis` as the channel axis. So a view costs no copy and gives the same bits as the contiguous
array with the same memory.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np


class Layout(NamedTuple):
    """Order of the axes of a batch in memory.

    Attributes
    ----------
    order : tuple of int
        Axes of the array, from the largest stride to the smallest.
    memory_axis : int or None
        1 if the channels come second in memory, -1 if they come last; None from `order_of`.
    """

    order: tuple
    memory_axis: int | None

    def in_memory_order(self, array):
        """Return a view with the axes in memory order: C-contiguous if `array` is as `empty` makes it."""
        return array.transpose(self.order)

    def empty(self, shape, dtype):
        """Return an array of `shape` with this layout, without gaps, that owns its memory."""
        strides, step = [0] * len(shape), np.dtype(dtype).itemsize
        for axis in reversed(self.order):
            strides[axis] = step
            step *= max(1, shape[axis])
        return np.ndarray(shape, dtype, strides=strides)

    def full(self, shape, dtype, value):
        """Return an array as `empty` does, filled with `value`."""
        array = self.empty(shape, dtype)
        array[...] = value
        return array

    def has(self, array):
        """Return True if `array` has this layout, apart from axes of length 1 and gaps."""
        strides = [array.strides[axis] for axis in self.order if array.shape[axis] > 1]
        return all(left >= right for left, right in pairwise(strides))


def layout_of(x, channel_axis):
    """Return the `Layout` of a batch.

    Parameters
    ----------
    x : ndarray of shape (N, C, *spatial), or (N, *spatial, C) with ``channel_axis=-1``
        With any strides. The channels are second in memory if their stride spans all positions of an image.
    channel_axis : {1, -1}

    Examples
    --------
    >>> x = np.zeros((2, 5, 7, 3)).transpose(0, 3, 1, 2)
    >>> layout = layout_of(x, 1)
    >>> layout
    Layout(order=(0, 2, 3, 1), memory_axis=-1)
    >>> layout.in_memory_order(x).shape
    (2, 5, 7, 3)
    >>> layout.empty((2, 8, 4, 4), np.float32).transpose(0, 2, 3, 1).flags.c_contiguous
    True
    """
    channel = channel_axis % x.ndim
    spatial = tuple(axis for axis in range(1, x.ndim) if axis != channel)
    if x.flags.c_contiguous or all(x.shape[axis] == 1 for axis in (channel, *spatial)):
        # One channel or one position has both orders at once: choose that of the axes.
        return Layout(tuple(range(x.ndim)), channel_axis)
    # The stride of an axis of length 1 says nothing.
    reach = max((abs(x.strides[axis]) * x.shape[axis] for axis in spatial if x.shape[axis] > 1), default=0)
    if abs(x.strides[channel]) < reach:
        return Layout((0, *spatial, channel), -1)
    return Layout((0, channel, *spatial), 1)


def order_of(x):
    """Return the `Layout` of an array of any axes, for results of its shape.

    >>> order_of(np.zeros((2, 5, 7, 3)).transpose(0, 3, 1, 2)).order
    (0, 2, 3, 1)
    """
    return Layout(tuple(sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis]))), None)
