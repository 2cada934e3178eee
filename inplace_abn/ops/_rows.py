"""Rows of images that a block of windows reads or writes, in the dtype of the arithmetic.

Images are (N, C, H, W) views. Those of the arithmetic's dtype are used in place. Those of a half type are
converted to float32 a block at a time, and a result is rounded once, after its last term is added.
"""

import math
from typing import NamedTuple

import numpy as np

from ._windows import Axis, Block


class Rows(NamedTuple):
    """Some rows of images, and the windows of a block in their coordinates.

    Attributes
    ----------
    images : ndarray of shape (samples, C, rows, W)
    axis : Axis
        The windows along H, counted from the first row of `images`.
    block : Block
        The samples of `images`, and the windows of `axis`, that the block is made of.
    """

    images: np.ndarray
    axis: Axis
    block: Block


class Scratch:
    """One buffer for images of changing shapes, in one of the two memory orders."""

    def __init__(self, dtype, last):
        self.last, self._flat = last, np.empty(0, dtype)

    def of(self, shape):
        """Return uninitialized images of `shape`, valid until the next call."""
        size = math.prod(shape)
        if self._flat.size < size:
            self._flat = np.empty(size, self._flat.dtype)
        samples, channels, rows, columns = shape
        if not self.last:
            return self._flat[:size].reshape(shape)
        return np.moveaxis(self._flat[:size].reshape(samples, rows, columns, channels), -1, 1)


class RowReader:
    """Reads the rows of images that the windows of a block see.

    Attributes
    ----------
    row_bytes, sample_bytes : int
        Scratch for a row of windows, and for every sample of a block in addition.
    """

    def __init__(self, images, axis, dtype, last):
        self.images, self.axis = images, axis
        self.in_place = images.dtype == dtype
        self.row_bytes, self.sample_bytes = (0, 0) if self.in_place else _bytes(images, axis, dtype)
        self._scratch = Scratch(dtype, last)

    def of(self, block):
        """Return the `Rows` of a block, valid until the next call."""
        if self.in_place:
            return Rows(self.images, self.axis, block)
        top, bottom = self.axis.reach(block.begin, block.end)
        part = self.images[block.samples, :, top:bottom]
        rows = self._scratch.of(part.shape)
        rows[...] = part
        return _cut_out(rows, self.axis, block, top)


class RowSums:
    """Sums, over the windows that see it, for every pixel of images; blocks come in order.

    Parameters
    ----------
    out : ndarray of shape (N, C, H, W)
        The images. Overwritten.
    start : ndarray, or 0
        Where the sums begin: it is broadcast to (N, C, H, W).

    Attributes
    ----------
    row_bytes, sample_bytes : int
        As for `RowReader`.
    """

    def __init__(self, out, axis, dtype, last, start):
        self.out, self.axis, self.start = out, axis, start
        self.in_place = out.dtype == dtype
        self.row_bytes, self.sample_bytes = (0, 0) if self.in_place else _bytes(out, axis, dtype)
        self._scratch = Scratch(dtype, last)
        self._carry = None
        if self.in_place:
            out[...] = start

    def of(self, block):
        """Return the `Rows` that the terms of a block are to be added to."""
        if self.in_place:
            return Rows(self.out, self.axis, block)
        if block.begin == 0:
            self._top, self._carry = 0, None
        _, bottom = self.axis.reach(block.begin, block.end)
        self._complete = max(self._top, self._first_open_row(block))
        samples = len(self.out[block.samples])
        height = max(bottom, self._complete) - self._top
        rows = self._scratch.of((samples, self.out.shape[1], height, self.out.shape[3]))
        rows[...] = self.start
        if self._carry is not None:
            rows[:, :, : self._carry.shape[2]] = self._carry
        self._rows = rows
        return _cut_out(rows, self.axis, block, self._top)

    def done(self, block):
        """Write the rows that no later block adds to."""
        if self.in_place:
            return
        count = self._complete - self._top
        self.out[block.samples, :, self._top : self._complete] = self._rows[:, :, :count]
        self._carry = self._rows[:, :, count:].copy(order="K")
        self._top = self._complete

    def _first_open_row(self, block):
        axis = self.axis
        if block.end == axis.windows:
            return axis.length
        return axis.reach(block.end, block.end + 1)[0]


class BlockResult:
    """Images that are written a block at a time.

    Parameters
    ----------
    out : ndarray of shape (N, C, H, W)
    in_place : bool
        False if blocks are computed elsewhere and copied: `out` has another dtype or memory order.

    Attributes
    ----------
    row_bytes : int
        Scratch for a row.
    """

    def __init__(self, out, dtype, last, in_place):
        self.out, self.in_place = out, in_place
        self.row_bytes = 0 if in_place else out.shape[1] * out.shape[3] * dtype.itemsize
        self._scratch = Scratch(dtype, last)

    def of(self, block):
        """Return the images (samples, C, rows, W) of a block, to be filled."""
        part = self.out[block.samples, :, block.begin : block.end]
        self._filled = part if self.in_place else self._scratch.of(part.shape)
        return self._filled

    def done(self, block):
        """Copy what was filled in to where it belongs."""
        if not self.in_place:
            self.out[block.samples, :, block.begin : block.end] = self._filled


def _bytes(images, axis, dtype):
    """Return the bytes of the rows that a row of windows sees first, and of those it shares with others."""
    row = images.shape[1] * images.shape[3] * dtype.itemsize
    shared = max(0, axis.dilation * (axis.kernel - 1) + 1 - axis.stride)
    return row * axis.stride, row * shared


def _cut_out(rows, axis, block, top):
    """Return `Rows` for rows that begin with row `top` of the images of `axis`."""
    height, windows = rows.shape[2], block.end - block.begin
    padding = axis.padding + top - block.begin * axis.stride
    needed = (windows - 1) * axis.stride + axis.dilation * (axis.kernel - 1) + 1
    axis = axis._replace(length=height, padding=padding, uneven=needed - height - 2 * padding)
    return Rows(rows, axis, Block(slice(0, len(rows)), 0, windows))
