"""Convolution and its transpose through BLAS, one block of rows at a time (im2col).

A block is some rows of one sample or, if the samples are small, some samples. It is unfolded into a matrix
with one column per output pixel, which is multiplied by the weight. The whole batch is never unfolded, so
that the matrix stays in the cache. 1 x 1 convolutions without stride and padding need no unfolding. Depthwise
convolutions with channels-last memory do not use BLAS: see `_depthwise`.

Images are (N, C, H, W) views. Half types are converted to float32 one block at a time, and results are
rounded once. Scratch memory is limited to `SCRATCH` values or, if that is more, the copies of a large weight
and one row of windows.
"""

from typing import NamedTuple

import numpy as np

from .._shape_arrays import none_if_planning
from . import _depthwise
from ._rows import BlockWriter, PixelReader, RowSums, total_bytes
from ._unfold import Columns, weight_from_matrices, weight_matrices
from ._windows import Axis, blocks_within

#: Number of values in scratch memory: columns of a block and copies of the weight. Fits into a level-2 cache.
SCRATCH = 1 << 17
#: Number of values in the columns of a block, also for a large weight: BLAS is slow on smaller matrices.
BLOCK = 60_000
#: Number of values in a term of the weight's gradient, so that it stays in the cache.
TERM = 1 << 17
#: Blocks are larger for a weight that is larger than `SCRATCH`, but only up to this many samples.
SAMPLES = 4


class Settings(NamedTuple):
    """The settings of a convolution.

    Attributes
    ----------
    axes : (Axis, Axis)
        The windows along H and along W.
    groups : int
    channels_last : bool
        True if the images are channels-last in memory.
    dtype : dtype
        The compute dtype.
    """

    axes: tuple
    groups: int
    channels_last: bool
    dtype: np.dtype


def convolve(ctx, settings, images, weight, out, *, bias=None, correlated=None):
    """Write the convolution of `images` plus `bias` to `out`.

    Parameters
    ----------
    ctx : LayerContext
        Records the size of the scratch memory.
    settings : Settings
    images, out : ndarray of shape (N, C, H, W) and (N, O, Ho, Wo)
    weight : ndarray of shape (O, C / groups, kernel height, kernel width)
    bias : ndarray of shape (O,), optional
    correlated : ndarray of out's shape, optional
        The gradient of the result of a convolution of `images`.

    Returns
    -------
    dweight : ndarray or None
        The gradient of the weight of that convolution: the correlation of `images` and `correlated`.
    """
    if _is_depthwise_channels_last(settings, weight):
        return _depthwise.convolve(ctx, settings, images, weight, out, bias=bias, correlated=correlated)
    grouped = _grouped(weight, settings.groups)
    dweight = _convolve(ctx, settings, images, grouped, out, bias, correlated)
    return None if correlated is None else _ungrouped(dweight, weight)


def convolve_transposed(ctx, settings, images, weight, out, *, bias=None, correlated=None):
    """Write the transposed convolution of `images` plus `bias` to `out`.

    This is the gradient of the input of a convolution, if `images` is the gradient of its result.

    Parameters
    ----------
    ctx : LayerContext
        Records the size of the scratch memory.
    settings : Settings
        The convolution from the shape of `out` to the shape of `images`.
    images, out : ndarray of shape (N, O, Ho, Wo) and (N, C, H, W)
    weight : ndarray of shape (O, C / groups, kernel height, kernel width)
    bias : ndarray of shape (C,), optional
        Added to `out`.
    correlated : ndarray of out's shape, optional
        The input of a convolution whose gradient is `images`.

    Returns
    -------
    dweight : ndarray or None
        The gradient of the weight of that convolution: the correlation of `correlated` and `images`.
    """
    if _is_depthwise_channels_last(settings, weight):
        return _depthwise.convolve_transposed(
            ctx, settings, images, weight, out, bias=bias, correlated=correlated
        )
    grouped = _grouped(weight, settings.groups)
    # The columns of `images` are used for both results, `out` and dweight, but are large if `images` has many
    # more channels than `out`.
    cheap = len(weight) <= 2 * out.shape[1] or weight.shape[2:] == (1, 1)
    if cheap and all(axis.stride == 1 for axis in settings.axes):
        dweight = _convolve_rotated(ctx, settings, images, grouped, out, bias, correlated)
    else:
        dweight = _fold(ctx, settings, images, grouped, out, bias, correlated)
    return None if correlated is None else _ungrouped(dweight, weight)


def _is_depthwise_channels_last(settings, weight):
    """Return True for a depthwise convolution of channels-last images."""
    return settings.channels_last and settings.groups == len(weight) and weight.shape[1] == 1


def _grouped(weight, groups):
    """Return (O, C / groups, ...) as a view (groups, O / groups, C / groups, ...)."""
    return weight.reshape(groups, -1, *weight.shape[1:])


def _ungrouped(dweight, weight):
    """Return a grouped gradient with the shape and dtype of the weight."""
    return dweight.astype(weight.dtype, "C", copy=False).reshape(weight.shape)


def _by_row(images, axes, weight):
    """Return True if one matrix product per row of the window is faster than one for the whole window.

    The columns are smaller then, but the products must be added up, and the weight is copied to another
    order.
    """
    outputs, channels, height, width = weight.shape[1:]
    windows = len(images) * axes[0].windows * axes[1].windows
    return axes[0].stride == 1 and height > 1 and outputs <= min(channels * width, windows // 2)


class _Product:
    """Products of the unfolded blocks of images and a weight of (groups, O, C, height, width).

    `gradient` is True if the gradient of the weight is accumulated as well.
    """

    def __init__(self, settings, images, weight, by_row, gradient):
        self.settings, self.gradient, self.weight = settings, gradient, weight
        self.weights = weight_matrices(weight, settings.channels_last, by_row).astype(
            settings.dtype, copy=False
        )
        self.columns = Columns(
            images, settings.groups, settings.axes, settings.channels_last, by_row, settings.dtype
        )
        self.total = np.zeros(self.weights.shape, settings.dtype, like=self.weights) if gradient else None
        self._term = self._empty_term() if gradient else None
        self._partial_product = None  # for one row of the window

    def _empty_term(self):
        """Return the buffer for a term of the gradient: some rows of the weight, at most `TERM` values."""
        _, groups, outputs, size = self.weights.shape
        return np.empty((groups, min(outputs, max(1, TERM // (groups * size))), size), self.weights.dtype)

    def blocks(self, ctx, *buffers):
        """Return the blocks that the batch is cut into; `buffers` are their readers and writers."""
        (down, across), item = self.settings.axes, self.settings.dtype.itemsize
        fixed = 0 if np.may_share_memory(self.weights, self.weight) else self.weights.nbytes
        fixed += self._term.nbytes if self.gradient else 0
        # Every block reads the whole weight: use large blocks for a large weight.
        least = min(self.weights.nbytes, SAMPLES * down.windows * self.columns.row_bytes)
        budget = max(BLOCK * item, SCRATCH * item - fixed, least)
        row_bytes = self.columns.row_bytes
        if len(self.weights) > 1:  # for self._partial_product
            row_bytes += self.settings.groups * self.weight.shape[1] * across.windows * item
        unfolded = row_bytes, self.columns.halo_bytes
        samples = len(self.columns.images)
        blocks, scratch = blocks_within(budget, samples, down.windows, unfolded, total_bytes(*buffers))
        ctx.temporary(fixed + scratch)
        products = samples * down.windows * across.windows * self.weight[0].size
        term = self._term.nbytes if self.gradient else 0
        return none_if_planning(blocks, (1 + self.gradient) * products, term + scratch)

    def multiply_into(self, images, columns, bias):
        """Write the products of weights and columns, added up, plus bias to the images of a block."""
        out = self.columns.matrices(images)
        np.matmul(self.weights[0], columns[0], out=out)
        for weight, matrix in zip(self.weights[1:], columns[1:], strict=True):
            if self._partial_product is None or self._partial_product.shape != out.shape:
                self._partial_product = None  # free it before the next one is allocated
                self._partial_product = np.empty_like(out)
            out += np.matmul(weight, matrix, out=self._partial_product)
        if bias is not None:
            out += bias

    def add_gradient(self, gradient, columns):
        """Add ``gradient @ columns.T`` to the gradient of the weight, one sample at a time."""
        for total, matrices in zip(self.total, columns, strict=True):
            for sample, unfolded in zip(gradient, matrices, strict=True):
                for first in range(0, total.shape[1], self._term.shape[1]):
                    rows = slice(first, first + self._term.shape[1])
                    term = self._term[:, : total.shape[1] - first]
                    total[:, rows] += np.matmul(sample[:, rows], unfolded.swapaxes(1, 2), out=term)

    def weight_gradient(self):
        """Free all scratch memory; return the gradient of the weight, or None."""
        self.weights = self.columns = self._term = self._partial_product = None
        if not self.gradient:
            return None
        return weight_from_matrices(self.total, self.weight.shape, self.settings.channels_last)


def _convolve(ctx, settings, images, weight, out, bias, correlated):
    """Convolve with a grouped weight, one block at a time; see `convolve`."""
    product = _Product(
        settings, images, weight, _by_row(images, settings.axes, weight), correlated is not None
    )
    result = BlockWriter(out, settings.dtype, settings.channels_last)
    bias = None if bias is None else _in_dtype(bias, settings).reshape(settings.groups, -1, 1)
    correlated_reader = (
        None if correlated is None else PixelReader(correlated, settings.dtype, settings.channels_last)
    )
    for block in product.blocks(ctx, product.columns.reader, result, correlated_reader):
        columns = product.columns.unfold(block)
        product.multiply_into(result.begin_block(block), columns, bias)
        result.end_block(block)
        if correlated is not None:
            product.add_gradient(product.columns.matrices(correlated_reader.read(block)), columns)
    return product.weight_gradient()


def _convolve_rotated(ctx, settings, images, weight, out, bias, correlated):
    """Compute the transpose for a stride of 1: a convolution with the weight rotated by 180 degrees.

    The products of the columns of `images` and the pixels of `correlated` are the gradient of the rotated
    weight.
    """
    axes = []
    for axis in settings.axes:
        reach = axis.dilation * (axis.kernel - 1)
        axes.append(
            Axis(axis.windows, axis.kernel, 1, reach - axis.padding, axis.dilation, -axis.end_padding)
        )
    rotated = settings._replace(axes=tuple(axes))
    dweight = _convolve(ctx, rotated, images, _rotated(weight), out, bias, correlated)
    return None if correlated is None else _rotated(dweight)


def _fold(ctx, settings, images, weight, out, bias, correlated):
    """Compute the transpose for any stride: multiply by the transposed weight, add columns to pixels."""
    like = out if correlated is None else correlated
    product = _Product(settings, like, weight, by_row=False, gradient=correlated is not None)
    start = 0 if bias is None else _in_dtype(bias, settings).reshape(-1, 1, 1)
    sums = RowSums(out, settings.axes[0], settings.dtype, settings.channels_last, start)
    reader = PixelReader(images, settings.dtype, settings.channels_last)
    unfolded = None if correlated is None else product.columns.reader
    for block in product.blocks(ctx, sums, unfolded, reader):
        gradient = product.columns.matrices(reader.read(block))
        if correlated is not None:
            product.add_gradient(gradient, product.columns.unfold(block))
        np.matmul(product.weights[0].swapaxes(1, 2), gradient, out=product.columns.buffer(block))
        product.columns.fold(sums.begin_block(block))
        sums.end_block(block)
    return product.weight_gradient()


def _in_dtype(bias, settings):
    return bias.astype(settings.dtype, copy=False)


def _rotated(weight):
    """Return a view of (groups, O, C, height, width) with O and C exchanged and the taps reversed."""
    return weight.swapaxes(1, 2)[..., ::-1, ::-1]
