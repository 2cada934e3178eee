"""Reading and writing the rows of images that a block of windows needs, in the compute dtype.

Images are (N, C, H, W) views. Images of the compute dtype are used in place. Images of a half type are
converted to float32 one block at a time, and results are rounded once, after the last term is added.
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
        The samples of `images` and the windows of `axis` in the block.
    """

    images: np.ndarray
    axis: Axis
    block: Block


class Scratch:
    """One buffer that is reused for images of several shapes, channels-first or channels-last in memory."""

    def __init__(self, dtype, channels_last):
        self.channels_last, self._flat = channels_last, np.empty(0, dtype)

    def images(self, shape, most_rows=0):
        """Return uninitialized images of `shape`, valid until the next call.

        The buffer is allocated for images of `most_rows` rows, so that later calls need no larger one.
        """
        samples, channels, rows, columns = shape
        size, room = math.prod(shape), samples * channels * max(rows, most_rows) * columns
        if self._flat.size < size:
            self._flat = np.empty(room, self._flat.dtype)
        if not self.channels_last:
            return self._flat[:size].reshape(shape)
        return np.moveaxis(self._flat[:size].reshape(samples, rows, columns, channels), -1, 1)


def is_ordered(images, channels_last):
    """Return True if the pixels of (N, C, H, W) images are contiguous in the given memory order."""
    samples, _, rows, columns = images.shape
    outer, channel, along, across = images.strides
    return (
        (channel if channels_last else across) == images.itemsize
        and (rows == 1 or along == across * columns)
        and (not channels_last or samples == 1 or outer == along * rows)
    )


class PixelReader:
    """Reads the pixels of a block of images, in the given memory order and the compute dtype.

    Attributes
    ----------
    bytes : (int, int)
        Scratch memory per row of a block, and in addition per sample.
    """

    def __init__(self, images, dtype, channels_last):
        self.images = images
        self.in_place = images.dtype == dtype and is_ordered(images, channels_last)
        self.bytes = (0 if self.in_place else _row_bytes(images, dtype)), 0
        self._scratch = Scratch(dtype, channels_last)

    def read(self, block):
        """Return the pixels (samples, C, rows, W) of a block, valid until the next call."""
        part = self.images[block.samples, :, block.begin : block.end]
        if self.in_place:
            return part
        pixels = self._scratch.images(part.shape)
        pixels[...] = part
        return pixels


class RowReader:
    """Reads the rows of images that the windows of a block cover.

    Attributes
    ----------
    bytes : (int, int)
        As for `PixelReader`, per row of windows.
    """

    def __init__(self, images, axis, dtype, channels_last):
        self.images, self.axis = images, axis
        self.in_place = images.dtype == dtype
        self.bytes = (0, 0) if self.in_place else _window_bytes(images, axis, dtype)
        self._scratch = Scratch(dtype, channels_last)

    def read(self, block):
        """Return the `Rows` of a block, valid until the next call."""
        if self.in_place:
            return Rows(self.images, self.axis, block)
        top, bottom = self.axis.reach(block.begin, block.end)
        part = self.images[block.samples, :, top:bottom]
        rows = self._scratch.images(part.shape, _most_rows(self.axis, block))
        rows[...] = part
        return _shifted(rows, self.axis, block, top)


class RowSums:
    """Accumulates the terms of all windows in the pixels of images. Blocks must be processed in order.

    Parameters
    ----------
    out : ndarray of shape (N, C, H, W)
        The images; overwritten.
    start : ndarray, or 0
        The initial value of the sums, broadcast to (N, C, H, W).

    Attributes
    ----------
    bytes : (int, int)
        As for `RowReader`.
    """

    def __init__(self, out, axis, dtype, channels_last, start):
        self.out, self.axis, self.start = out, axis, start
        self.in_place = out.dtype == dtype
        row, shared = (0, 0) if self.in_place else _window_bytes(out, axis, dtype)
        self.bytes = row, 2 * shared  # the rows that the next block adds to as well are copied
        self._scratch = Scratch(dtype, channels_last)
        self._carry = None
        if self.in_place:
            out[...] = start

    def begin_block(self, block):
        """Return the `Rows` to which the caller adds the terms of a block."""
        if self.in_place:
            return Rows(self.out, self.axis, block)
        if block.begin == 0:
            self._top, self._carry = 0, None
        _, bottom = self.axis.reach(block.begin, block.end)
        self._complete = max(self._top, self._first_open_row(block))
        samples = len(self.out[block.samples])
        height = max(bottom, self._complete) - self._top
        shape = samples, self.out.shape[1], height, self.out.shape[3]
        rows = self._scratch.images(shape, _most_rows(self.axis, block))
        rows[...] = self.start
        if self._carry is not None:
            rows[:, :, : self._carry.shape[2]] = self._carry
        self._rows = rows
        return _shifted(rows, self.axis, block, self._top)

    def end_block(self, block):
        """Write the rows that no later block adds to."""
        if self.in_place:
            return
        count = self._complete - self._top
        self.out[block.samples, :, self._top : self._complete] = self._rows[:, :, :count]
        self._carry = self._rows[:, :, count:].copy(order="K")
        self._top = self._complete

    def _first_open_row(self, block):
        """Return the first row that a later block adds to."""
        axis = self.axis
        if block.end == axis.windows:
            return axis.length
        return axis.reach(block.end, block.end + 1)[0]


class BlockWriter:
    """Writes images one block at a time, in place if they have the given memory order and the compute dtype.

    Parameters
    ----------
    out : ndarray of shape (N, C, H, W)

    Attributes
    ----------
    bytes : (int, int)
        As for `PixelReader`.
    """

    def __init__(self, out, dtype, channels_last):
        self.out, self.in_place = out, out.dtype == dtype and is_ordered(out, channels_last)
        self.bytes = (0 if self.in_place else _row_bytes(out, dtype)), 0
        self._scratch = Scratch(dtype, channels_last)

    def begin_block(self, block):
        """Return the images (samples, C, rows, W) of a block for the caller to fill."""
        part = self.out[block.samples, :, block.begin : block.end]
        self._filled = part if self.in_place else self._scratch.images(part.shape)
        return self._filled

    def end_block(self, block):
        """Convert the block and write it to `out`, if it was not computed in place."""
        if not self.in_place:
            self.out[block.samples, :, block.begin : block.end] = self._filled


def total_bytes(*buffers):
    """Return the sum of the `bytes` of readers and writers; None is ignored."""
    pairs = [buffer.bytes for buffer in buffers if buffer is not None]
    return tuple(sum(parts) for parts in zip(*pairs, strict=True))


def _row_bytes(images, dtype):
    return images.shape[1] * images.shape[3] * dtype.itemsize


def _window_bytes(images, axis, dtype):
    """Return the bytes of the rows that each row of windows adds, and of those it shares with others."""
    row = _row_bytes(images, dtype)
    shared = max(0, axis.extent(1) - axis.stride)
    return row * axis.stride, row * shared


def _most_rows(axis, block):
    """Return the most rows of images that a block of as many rows of windows covers."""
    return min(axis.length, axis.extent(block.end - block.begin))


def _shifted(rows, axis, block, top):
    """Return the `Rows` for a copy of rows that begins with row `top` of the images of `axis`."""
    height, windows = rows.shape[2], block.end - block.begin
    padding = axis.padding + top - block.begin * axis.stride
    end_padding = axis.extent(windows) - height - 2 * padding
    axis = axis._replace(length=height, padding=padding, end_padding=end_padding)
    return Rows(rows, axis, Block(slice(0, len(rows)), 0, windows))
