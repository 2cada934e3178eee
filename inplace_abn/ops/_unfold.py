"""Blocks of images as matrices: of their channels and pixels, and of all that a convolution's windows see.

Images are (N, C, H, W) views here, of memory in that order or, `last`, with the channels last. Matrices are
(samples, groups, rows, pixels), and a convolution is ``sum over i of weights[i] @ columns[i]``. Either there
is one i, and a column holds all of a window. Or, `by_row`, every i is a row of the window: windows one below
the other share most of their rows, so that one matrix serves every i, from a row of pixels more for each on.
That takes a third of the memory and of the copying where the window has three rows.

All matrices are views that BLAS can take: no copy is made but of images whose memory is in neither order, a
block at a time.
"""

from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ._windows import Axis, blocks, taps


def pixels(images, block, groups, last, merged=False):
    """Return a block of images as matrices of (C / groups, pixels); `merged`: all samples in one.

    That takes channels that are `last`.
    """
    part = images[block.samples, :, block.begin : block.end]
    samples, channels, rows, columns = part.shape
    if not last:
        return part.reshape(samples, groups, channels // groups, rows * columns)
    samples, rows = (1, samples * rows) if merged else (samples, rows)
    flat = np.moveaxis(part, 1, -1).reshape(samples, rows * columns, groups, channels // groups)
    return flat.transpose(0, 2, 3, 1)


def weight_matrices(weight, last, by_row):
    """Return (groups, O, C, kernel height, kernel width) as (i, groups, O, taps and channels).

    A view if possible. The order of taps and channels is that of the columns.
    """
    groups, outputs, channels, height, width = weight.shape
    count = height if by_row else 1
    split = weight.reshape(groups, outputs, channels, count, height // count, width)
    ordered = split.transpose((3, 0, 1, 4, 5, 2) if last else (3, 0, 1, 2, 4, 5))
    return ordered.reshape(count, groups, outputs, -1)


def weight_from_matrices(matrices, shape, last):
    """Undo `weight_matrices`; `shape` is of its argument."""
    groups, outputs, channels, height, width = shape
    count = len(matrices)
    if last:
        split = matrices.reshape(count, groups, outputs, height // count, width, channels)
        return split.transpose(1, 2, 5, 0, 3, 4).reshape(shape)
    split = matrices.reshape(count, groups, outputs, channels, height // count, width)
    return split.transpose(1, 2, 3, 0, 4, 5).reshape(shape)


class Columns:
    """What the windows see of images, a block at a time, in one buffer.

    Parameters
    ----------
    images : ndarray of shape (N, C, H, W)
    groups : int
    axes : (Axis, Axis)
    last, by_row : bool
        See the top of this page. `by_row` needs a stride of 1 along H.

    Attributes
    ----------
    direct : bool
        The windows are of one pixel: the images themselves are their columns.
    row_bytes, halo_bytes : int
        What the columns of a sample take, for a row of windows and beside.
    """

    def __init__(self, images, groups, axes, last, by_row):
        self.images, self.groups, self.axes, self.last, self.by_row = images, groups, axes, last, by_row
        self.merged = last and not by_row
        self.direct = all(axis == Axis(axis.length, 1, 1, 0, axis.dilation) for axis in axes)
        down, across = axes
        self._each = images.shape[1] // groups
        self._down = Axis(down.length, 1, 1, down.padding, 1) if by_row else down
        self._step = down.dilation if by_row else 0
        self._halo = (down.kernel - 1) * down.dilation if by_row else 0
        self._count = down.kernel if by_row else 1
        taps_ = self._down.kernel * across.kernel
        self.row_bytes = images.shape[1] * taps_ * across.windows * images.itemsize
        if self.direct and images.transpose((0, 2, 3, 1) if last else (0, 1, 2, 3)).flags.c_contiguous:
            self.row_bytes = 0  # neither unfolded nor copied
        self.halo_bytes = self._halo * self.row_bytes
        split = images.reshape(images.shape[0], groups, self._each, *images.shape[2:])
        self._source = _Source(split, self._down, across, last)
        self._buffer = np.empty(0, images.dtype)
        self._views = None, None, None, None

    def blocks(self, budget, beside):
        """Cut the batch, for `budget` bytes of columns with `beside` bytes more for every row of windows."""
        rows = self.axes[0].windows
        found = list(blocks(len(self.images), rows, self.row_bytes + beside, budget, self.halo_bytes))
        sizes = ((b.samples.stop - b.samples.start, b.end - b.begin) for b in found)
        most = max((n * (r * (self.row_bytes + beside) + self.halo_bytes) for n, r in sizes), default=0)
        return found, most

    def of(self, block):
        """Return the columns of a block, a list of matrices of (K, windows), good until the next call."""
        if self.direct:
            return [pixels(self.images, block, self.groups, self.last, self.merged)]
        _, view, _, columns = self._room(block)
        self._source.copy(view, block.samples, block.begin, block.end + self._halo)
        return columns

    def room(self, block):
        """Return the matrices of a block, to be filled by the caller; not `by_row`."""
        return self._room(block)[2]

    def fold(self, images, block):
        """Add what the matrices of a block hold to what the windows see of images; not `by_row`."""
        view = self._views[1]
        self._views = None, None, None, None  # what is left and right of the images is not zero any more
        images = images[block.samples].reshape(view.shape[:3] + images.shape[2:])
        for i, j, rows, columns in taps(self.axes, block):
            tap = view[:, :, :, i, j, rows.first - block.begin : rows.last - block.begin]
            images[..., rows.source, columns.source] += tap[..., columns.first : columns.last]

    def _room(self, block):
        """Return a block's shape, its buffer as (samples, groups, C, i, j, rows, columns), and as matrices.

        The last of the four is the matrices as `of` returns them. Left and right of the images is zero.
        """
        shape = block.samples.stop - block.samples.start, block.end - block.begin
        if shape == self._views[0]:
            return self._views
        view, matrix = self._reshaped(shape[0], shape[1] + self._halo)
        self._source.clear(view)
        width = self.axes[1].windows
        starts = [i * self._step * width for i in range(self._count)]
        count = matrix.shape[3] - self._halo * width
        self._views = shape, view, matrix, [matrix[..., first : first + count] for first in starts]
        return self._views

    def _reshaped(self, samples, rows):
        height, width, columns = self._down.kernel, self.axes[1].kernel, self.axes[1].windows
        groups, each, taps_ = self.groups, self._each, height * width
        size = samples * rows * columns * groups * each * taps_
        if self._buffer.size < size:
            self._buffer = np.empty(size, self._buffer.dtype)
        buffer = self._buffer[:size]
        if not self.last:
            view = buffer.reshape(samples, groups, each, height, width, rows, columns)
            return view, view.reshape(samples, groups, each * taps_, rows * columns)
        view = buffer.reshape(groups, samples, rows, columns, height, width, each)
        if self.merged:
            matrix = buffer.reshape(groups, 1, samples * rows * columns, taps_ * each)
        else:
            matrix = buffer.reshape(groups, samples, rows * columns, taps_ * each)
        return view.transpose(1, 0, 6, 4, 5, 2, 3), matrix.transpose(1, 0, 3, 2)


class _Source:
    """Images (N, groups, C, H, W), and what every tap of the windows sees of them.

    Views of the images with axes for the taps do most of the copying in one go. With the channels last, the
    taps along W are one run of memory with the channels.
    """

    def __init__(self, images, down, across, last):
        self.images, self.down = images, down
        self.columns = [across.span(j, 0, across.windows) for j in range(across.kernel)]
        self.top, self.bottom = _common(down)
        self.below = _all_taps(images, down, self.top, self.bottom)
        self.left, self.right = _common(across) if last else (0, 0)
        self.inside = _all_taps(self.below.swapaxes(4, 5), across, self.left, self.right).swapaxes(5, 6)
        ends = (0, self.left), (self.right, across.windows)
        edges = [(j, across.span(j, *bounds)) for j in range(across.kernel) for bounds in ends]
        self.edges = [(j, span) for j, span in edges if span.first < span.last]

    def clear(self, view):
        """Write the zeros left and right of the images, where `copy` does not write."""
        for j, (first, last, _) in enumerate(self.columns):
            view[:, :, :, :, j, :, :first] = 0
            view[:, :, :, :, j, :, last:] = 0

    def copy(self, view, samples, begin, end):
        """Copy rows of windows into a view (samples, groups, C, i, j, rows, columns)."""
        inner = (min(max(row, begin), end) for row in (self.top, self.bottom))
        for first, last in pairwise(sorted({begin, end, *inner})):
            part = view[..., first - begin : last - begin, :]
            if first < self.top or last > self.bottom:
                self._copy_border(part, samples, first, last)
                continue
            rows = slice(first - self.top, last - self.top)
            if self.right > self.left:
                part[..., self.left : self.right] = self.inside[samples, ..., rows, :]
            for j, (one, other, columns) in self.edges:
                part[:, :, :, :, j, :, one:other] = self.below[samples, ..., rows, columns]

    def _copy_border(self, view, samples, begin, end):
        """Do the same where taps are above or below the images."""
        for i in range(self.down.kernel):
            tap = view[:, :, :, i]
            top, bottom, rows = self.down.span(i, begin, end)
            tap[..., : top - begin, :] = 0
            tap[..., bottom - begin :, :] = 0
            if top < bottom:
                for j, (first, last, columns) in enumerate(self.columns):
                    inside = tap[:, :, :, j, top - begin : bottom - begin]
                    inside[..., first:last] = self.images[samples, ..., rows, columns]


def _common(axis):
    """Return the first window all of whose taps are inside of the images, and the first after those."""
    spans = [axis.span(tap, 0, axis.windows) for tap in range(axis.kernel)]
    first, last = max(span.first for span in spans), min(span.last for span in spans)
    return (first, last) if first < last else (0, 0)


def _all_taps(images, axis, begin, end):
    """Return a view of images with an axis for the taps, before the last but one, of the windows."""
    *outer, along, across = images.strides
    first = images[..., max(0, begin * axis.stride - axis.padding) :, :]
    shape = (*images.shape[:-2], axis.kernel, end - begin, images.shape[-1])
    strides = (*outer, along * axis.dilation, along * axis.stride, across)
    return as_strided(first, shape, strides, writeable=False)
