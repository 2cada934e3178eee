"""Memory layouts of batches, fresh arrays in a given layout, and the shapes of images.

The axes of a batch are (N, C, *spatial), ``channel_axis=1``, or (N, *spatial, C), ``channel_axis=-1``. Its
memory has one of these two orders, independently of the axes: ``nhwc.transpose(0, 3, 1, 2)`` has
channels-first axes and channels-last memory. An operation runs on `Layout.in_memory_order` of its arrays,
with `Layout.memory_axis` as the channel axis. A transposed view is therefore not copied, and gives bitwise
the same result as the contiguous array of the same memory.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from .._shape_arrays import new_array


class Layout(NamedTuple):
    """Order of the axes of a batch in memory.

    Attributes
    ----------
    order : tuple of int
        Axes of the array, from the largest stride to the smallest one.
    memory_axis : int or None
        1 for channels-first memory, -1 for channels-last memory; None from `order_of`.
    """

    order: tuple
    memory_axis: int | None

    def in_memory_order(self, array):
        """Return a view with the axes in memory order; it is C-contiguous for an array from `empty`."""
        return array.transpose(self.order)

    def empty(self, shape, dtype):
        """Return an uninitialized array of `shape` with this layout, without gaps, that owns its memory."""
        strides, step = [0] * len(shape), np.dtype(dtype).itemsize
        for axis in reversed(self.order):
            strides[axis] = step
            step *= max(1, shape[axis])
        return new_array(shape, dtype, strides)

    def full(self, shape, dtype, value):
        """Return an array like that of `empty`, filled with `value`."""
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
        Any strides. It is channels-first in memory if the stride of C spans all positions of an image.
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
        # One channel or one position: both orders are the same memory. Use the order of the axes.
        return Layout(tuple(range(x.ndim)), channel_axis)
    # The stride of an axis of length 1 is arbitrary.
    reach = max((abs(x.strides[axis]) * x.shape[axis] for axis in spatial if x.shape[axis] > 1), default=0)
    if abs(x.strides[channel]) < reach:
        return Layout((0, *spatial, channel), -1)
    return Layout((0, channel, *spatial), 1)


def order_of(x):
    """Return the `Layout` of an array without a channel axis, for results of the same shape.

    >>> order_of(np.zeros((2, 5, 7, 3)).transpose(0, 3, 1, 2)).order
    (0, 2, 3, 1)
    """
    return Layout(tuple(sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis]))), None)


def spatial_shape(shape, channel_axis):
    """Return (H, W) of a batch of images of `shape`."""
    return shape[2:] if channel_axis == 1 else shape[1:3]


def image_shape(samples, channels, size, channel_axis):
    """Return the shape of a batch of images of `size`, (H, W).

    >>> image_shape(2, 3, (4, 5), -1)
    (2, 4, 5, 3)
    """
    return (samples, channels, *size) if channel_axis == 1 else (samples, *size, channels)
