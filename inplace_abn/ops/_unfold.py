"""Unfolding (im2col): blocks of images as matrices that BLAS multiplies.

Images are (N, C, H, W) views of memory in that order or, with `channels_last`, of (N, H, W, C) memory.
Matrices are (samples, groups, rows, pixels). A convolution is ``sum over i of weights[i] @ columns[i]``.

By default there is one i, and a column has all elements of a window. With `by_row` there is one i per row of
the window. Windows at consecutive rows overlap, so that one matrix is enough for all i: the columns of row i
start i rows of pixels later. For a window of three rows, the matrix has a third of the elements.

All matrices are views. Images are copied, one block at a time, if their memory has another order or their
dtype is not the compute dtype.
"""

from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ._rows import PixelReader, RowReader
from ._windows import Axis, Block, taps


def pixels(images, groups, channels_last, merged=False):
    """Return images as matrices of (C / groups, pixels).

    With `merged`, which requires `channels_last`, one matrix has the pixels of all samples.
    """
    samples, channels, rows, columns = images.shape
    if not channels_last:
        return images.reshape(samples, groups, channels // groups, rows * columns)
    samples, rows = (1, samples * rows) if merged else (samples, rows)
    flat = images.transpose(0, 2, 3, 1).reshape(samples, rows * columns, groups, channels // groups)
    return flat.transpose(0, 2, 3, 1)


def weight_matrices(weight, channels_last, by_row):
    """Return (groups, O, C, kernel height, kernel width) as (i, groups, O, taps and channels).

    It is a view if possible. Taps and channels are in the order of the columns.
    """
    groups, outputs, channels, height, width = weight.shape
    count = height if by_row else 1
    split = weight.reshape(groups, outputs, channels, count, height // count, width)
    ordered = split.transpose((3, 0, 1, 4, 5, 2) if channels_last else (3, 0, 1, 2, 4, 5))
    return ordered.reshape(count, groups, outputs, -1)


def weight_from_matrices(matrices, shape, channels_last):
    """Invert `weight_matrices`: return the matrices as an array of `shape`."""
    groups, outputs, channels, height, width = shape
    count = len(matrices)
    if channels_last:
        split = matrices.reshape(count, groups, outputs, height // count, width, channels)
        return split.transpose(1, 2, 5, 0, 3, 4).reshape(shape)
    split = matrices.reshape(count, groups, outputs, channels, height // count, width)
    return split.transpose(1, 2, 3, 0, 4, 5).reshape(shape)


class Columns:
    """Unfolds images one block at a time: a column for each window, in one buffer.

    Parameters
    ----------
    images : ndarray of shape (N, C, H, W)
    groups : int
    axes : (Axis, Axis)
    channels_last, by_row : bool
        See the top of this file. `by_row` requires a stride of 1 along H.
    dtype : dtype
        The compute dtype, which the columns have.

    Attributes
    ----------
    direct : bool
        True if each window is one pixel: the images themselves are the columns.
    row_bytes, halo_bytes : int
        Bytes of the columns per row of windows, and in addition per sample of a block.
    reader : RowReader, or PixelReader if `direct`
    """

    def __init__(self, images, groups, axes, channels_last, by_row, dtype):
        self.images, self.groups, self.axes = images, groups, axes
        self.channels_last, self.by_row = channels_last, by_row
        self.dtype, self.merged = dtype, channels_last and not by_row
        self.direct = all(axis == Axis(axis.length, 1, 1, 0, axis.dilation) for axis in axes)
        down, across = axes
        self._group_channels = images.shape[1] // groups
        self._down = Axis(down.length, 1, 1, down.padding, 1, down.end_padding) if by_row else down
        self._step = down.dilation if by_row else 0
        self._halo = (down.kernel - 1) * down.dilation if by_row else 0
        self._count = down.kernel if by_row else 1
        tap_count = self._down.kernel * across.kernel
        self.row_bytes = images.shape[1] * tap_count * across.windows * dtype.itemsize
        if self.direct:
            self.row_bytes = 0  # not unfolded
        self.halo_bytes = self._halo * self.row_bytes
        self._source = None
        if self.direct:
            self.reader = PixelReader(images, dtype, channels_last)
        else:
            self.reader = RowReader(images, self._down, dtype, channels_last)
            if self.reader.in_place:
                self._source = self._source_of(images, self._down)
        self._buffer = np.empty(0, dtype)
        self._views = None, None, None, None

    def matrices(self, images):
        """Return images as matrices of pixels that match the columns of the same block."""
        return pixels(images, self.groups, self.channels_last, self.merged)

    def unfold(self, block):
        """Return the columns of a block, a list of matrices of (K, windows), valid until the next call."""
        if self.direct:
            return [self.matrices(self.reader.read(block))]
        _, view, _, columns = self._block_views(block)
        samples, begin, end = block.samples, block.begin, block.end + self._halo
        if not self.reader.in_place:
            images, down, (samples, begin, end) = self.reader.read(Block(samples, begin, end))
            if self._source is None or not self._source.fits(images, down):
                self._source = self._source_of(images, down)
        self._source.copy(view, samples, begin, end)
        return columns

    def _source_of(self, images, down):
        split = images.reshape(len(images), self.groups, self._group_channels, *images.shape[2:])
        return _Source(split, down, self.axes[1], self.channels_last)

    def buffer(self, block):
        """Return uninitialized matrices for a block; not with `by_row`."""
        return self._block_views(block)[2]

    def fold(self, rows):
        """Add the matrices of a block to the pixels of `rows` that its windows cover; not with `by_row`."""
        view = self._views[1]
        self._views = None, None, None, None  # the borders of the buffer are no longer zero
        images, down, block = rows
        images = images[block.samples]
        images = images.reshape(view.shape[:3] + images.shape[2:])
        for i, j, inside, columns in taps((down, self.axes[1]), block):
            tap = view[:, :, :, i, j, inside.first - block.begin : inside.last - block.begin]
            images[..., inside.source, columns.source] += tap[..., columns.first : columns.last]

    def _block_views(self, block):
        """Return four views of the buffer for a block, with zeros left and right of the images.

        Its shape, (samples, rows); the buffer as (samples, groups, C, i, j, rows, columns); as matrices; and
        the list of matrices that `unfold` returns.
        """
        shape = block.samples.stop - block.samples.start, block.end - block.begin
        if shape == self._views[0]:
            return self._views
        view, matrix = self._reshaped(shape[0], shape[1] + self._halo)
        clear_borders(view, self.axes[1])
        width = self.axes[1].windows
        starts = [i * self._step * width for i in range(self._count)]
        count = matrix.shape[3] - self._halo * width
        self._views = shape, view, matrix, [matrix[..., first : first + count] for first in starts]
        return self._views

    def _reshaped(self, samples, rows):
        height, width, columns = self._down.kernel, self.axes[1].kernel, self.axes[1].windows
        groups, group_channels, tap_count = self.groups, self._group_channels, height * width
        size = samples * rows * columns * groups * group_channels * tap_count
        if self._buffer.size < size:
            self._buffer = np.empty(size, self._buffer.dtype)
        buffer = self._buffer[:size]
        if not self.channels_last:
            view = buffer.reshape(samples, groups, group_channels, height, width, rows, columns)
            return view, view.reshape(samples, groups, group_channels * tap_count, rows * columns)
        view = buffer.reshape(groups, samples, rows, columns, height, width, group_channels)
        if self.merged:
            matrix = buffer.reshape(groups, 1, samples * rows * columns, tap_count * group_channels)
        else:
            matrix = buffer.reshape(groups, samples, rows * columns, tap_count * group_channels)
        return view.transpose(1, 0, 6, 4, 5, 2, 3), matrix.transpose(1, 0, 3, 2)


class _Source:
    """Copies the pixels of images (N, groups, C, H, W) that each tap of the windows reads.

    A view of the images with axes for the taps copies most of a block in one assignment. In channels-last
    memory the taps along W and the channels are contiguous.
    """

    def __init__(self, images, down, across, channels_last):
        self.images, self.down = images, down
        self.columns = [across.span(j, 0, across.windows) for j in range(across.kernel)]
        # Bounds of the windows with all taps inside; views of their pixels with an axis for the taps along H
        # (below), and with another one for the taps along W (inside).
        self.top, self.bottom = _common(down)
        self.below = _all_taps(images, down, self.top, self.bottom)
        self.left, self.right = _common(across) if channels_last else (0, 0)
        self.inside = _all_taps(self.below.swapaxes(4, 5), across, self.left, self.right).swapaxes(5, 6)
        ends = (0, self.left), (self.right, across.windows)
        edges = [(j, across.span(j, *bounds)) for j in range(across.kernel) for bounds in ends]
        self.edges = [(j, span) for j, span in edges if span.first < span.last]

    def fits(self, images, down):
        """Return True if this is the source of `images`: the same memory and the same windows."""
        own = self.images
        return (
            down == self.down
            and images.shape[:1] + images.shape[2:] == own.shape[:1] + own.shape[3:]
            and images.ctypes.data == own.ctypes.data
        )

    def copy(self, view, samples, begin, end):
        """Copy rows of windows to a view (samples, groups, C, i, j, rows, columns)."""
        inner = (min(max(row, begin), end) for row in (self.top, self.bottom))
        for first, last in pairwise(sorted({begin, end, *inner})):
            part = view[..., first - begin : last - begin, :]
            if first < self.top or last > self.bottom:
                self._copy_border(part, samples, first, last)
                continue
            rows = slice(first - self.top, last - self.top)
            if self.right > self.left:
                part[..., self.left : self.right] = self.inside[samples, ..., rows, :]
            for j, (begin_column, end_column, columns) in self.edges:
                part[:, :, :, :, j, :, begin_column:end_column] = self.below[samples, ..., rows, columns]

    def _copy_border(self, view, samples, begin, end):
        """Copy rows of windows that have taps above or below the images."""
        for i in range(self.down.kernel):
            tap = view[:, :, :, i]
            top, bottom, rows = self.down.span(i, begin, end)
            tap[..., : top - begin, :] = 0
            tap[..., bottom - begin :, :] = 0
            if top < bottom:
                for j, (first, last, columns) in enumerate(self.columns):
                    inside = tap[:, :, :, j, top - begin : bottom - begin]
                    inside[..., first:last] = self.images[samples, ..., rows, columns]


def clear_borders(view, across):
    """Set the elements left and right of the images to zero; `_Source.copy` does not write them."""
    for j in range(across.kernel):
        first, last, _ = across.span(j, 0, across.windows)
        view[:, :, :, :, j, :, :first] = 0
        view[:, :, :, :, j, :, last:] = 0


def _common(axis):
    """Return the bounds of the windows that lie completely inside the images."""
    spans = [axis.span(tap, 0, axis.windows) for tap in range(axis.kernel)]
    first, last = max(span.first for span in spans), min(span.last for span in spans)
    return (first, last) if first < last else (0, 0)


def _all_taps(images, axis, begin, end):
    """Return a view of the images for the windows in [begin, end), with an axis for the taps before H."""
    *outer, along, across = images.strides
    first = images[..., max(0, begin * axis.stride - axis.padding) :, :]
    shape = (*images.shape[:-2], axis.kernel, end - begin, images.shape[-1])
    strides = (*outer, along * axis.dilation, along * axis.stride, across)
    return as_strided(first, shape, strides, writeable=False)
