"""Blocks of images as matrices: of their channels and pixels, and of all that a convolution's windows see.

Images are (N, C, H, W) views here, of memory in that order or, `last`, with the channels last. Matrices are
(samples, groups, rows, pixels), with the pixels of all samples in one where the channels are last. They are
views that BLAS can take: no copy is made but of images whose memory is in neither order, a block at a time.
"""

import numpy as np

from ._windows import taps


def pixels(images, block, groups, last):
    """Return a block of images as matrices of (C / groups, pixels)."""
    part = images[block.samples, :, block.begin : block.end]
    samples, channels, rows, columns = part.shape
    if last:
        flat = np.moveaxis(part, 1, -1).reshape(-1, groups, channels // groups)
        return flat.transpose(1, 2, 0)[None]
    return part.reshape(samples, groups, channels // groups, rows * columns)


def weight_matrix(weight, last):
    """Return (groups, O, C, kernel height, kernel width) as matrices of (O, taps and channels)."""
    ordered = weight.transpose(0, 1, 3, 4, 2) if last else weight
    return ordered.reshape(*weight.shape[:2], -1)


def weight_from_matrix(matrix, shape, last):
    """Undo `weight_matrix`; `shape` is of its argument."""
    groups, outputs, channels, height, width = shape
    if last:
        return matrix.reshape(groups, outputs, height, width, channels).transpose(0, 1, 4, 2, 3)
    return matrix.reshape(shape)


class Unfolding:
    """One buffer for blocks of images unfolded: a column of C * taps values for every window.

    Parameters
    ----------
    channels, groups : int
    axes : (Axis, Axis)
    last : bool
    dtype : dtype
    """

    def __init__(self, channels, groups, axes, last, dtype):
        self.channels, self.groups, self.axes, self.last, self.dtype = channels, groups, axes, last, dtype
        self.row_bytes = channels * axes[0].kernel * axes[1].kernel * axes[1].windows * dtype.itemsize
        self._buffer = np.empty(0, dtype)
        self._shape = None

    @property
    def nbytes(self):
        """Bytes of the buffer."""
        return self._buffer.nbytes

    def fill(self, images, block):
        """Unfold a block of images; returns matrices of (C / groups * taps, windows)."""
        view, matrix, fresh = self._views(block)
        if fresh:  # the zeros left and right stay there for all blocks of this shape
            self._buffer[: matrix.size] = 0
        images = images[block.samples].reshape(view.shape[:3] + images.shape[2:])
        for i, j, rows, columns in taps(self.axes, block):
            tap = view[:, :, :, i, j]
            tap[..., : rows.first - block.begin, :] = 0
            tap[..., rows.last - block.begin :, :] = 0
            inside = tap[..., rows.first - block.begin : rows.last - block.begin, :]
            inside[..., columns.first : columns.last] = images[..., rows.source, columns.source]
        return matrix

    def matrix(self, block):
        """Return the matrices of a block, whatever they hold."""
        self._shape = None
        return self._views(block)[1]

    def add_to(self, images, block):
        """Add what the matrices of a block hold to the pixels of images from which `fill` takes it."""
        view = self._views(block)[0]
        self._shape = None
        images = images[block.samples].reshape(view.shape[:3] + images.shape[2:])
        for i, j, rows, columns in taps(self.axes, block):
            tap = view[:, :, :, i, j, rows.first - block.begin : rows.last - block.begin]
            images[..., rows.source, columns.source] += tap[..., columns.first : columns.last]

    def _views(self, block):
        """Return the buffer as (samples, groups, C, i, j, rows, columns), as matrices, and if that is new."""
        samples, rows = block.samples.stop - block.samples.start, block.end - block.begin
        (height, width), each = (axis.kernel for axis in self.axes), self.channels // self.groups
        columns = self.axes[1].windows
        size = samples * rows * columns * self.channels * height * width
        if self._buffer.size < size:
            self._buffer, self._shape = np.empty(size, self.dtype), None
        fresh, self._shape = self._shape != (samples, rows), (samples, rows)
        buffer = self._buffer[:size]
        if self.last:
            view = buffer.reshape(self.groups, samples, rows, columns, height, width, each)
            matrix = buffer.reshape(1, self.groups, samples * rows * columns, height * width * each)
            return view.transpose(1, 0, 6, 4, 5, 2, 3), matrix.swapaxes(2, 3), fresh
        view = buffer.reshape(samples, self.groups, each, height, width, rows, columns)
        return view, view.reshape(samples, self.groups, each * height * width, rows * columns), fresh
