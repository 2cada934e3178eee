"""Convolution and its transpose through BLAS, a block of rows at a time.

A block of the batch (some rows of a sample, or some samples where they are small) is unfolded into a matrix
with one column per output pixel, which is multiplied by the weight. The whole batch is never unfolded, so the
matrix stays in the processor's cache. Convolutions of 1 x 1 without stride and padding need no such matrix,
and depthwise ones with the channels last in memory no BLAS: see `_depthwise`.

Images are (N, C, H, W) views. Half types are converted to float32 a block at a time, and results are rounded
once. Scratch is `SCRATCH` values, or the copies of a large weight and one row of windows if that is more.
"""

from typing import NamedTuple

import numpy as np

from . import _depthwise
from ._rows import BlockResult, PixelReader, RowSums, total_bytes
from ._unfold import Columns, weight_from_matrices, weight_matrices
from ._windows import Axis, blocks_within

#: Values of scratch: the columns of a block and the copies of the weight, for a processor's second cache.
SCRATCH = 1 << 17
#: Values of the columns of a block, however large the weight: with less, BLAS has too little to do.
BLOCK = 60_000
#: Values of a term of the weight's gradient, which is to stay in the cache as well.
TERM = 1 << 17
#: For a weight of many more values than that, at most this many samples are unfolded at once.
SAMPLES = 4


class Plan(NamedTuple):
    """How images are convolved.

    Attributes
    ----------
    axes : (Axis, Axis)
        The windows along H and along W.
    groups : int
    last : bool
        True if the memory of images has the channels last.
    dtype : dtype
        Of the arithmetic.
    """

    axes: tuple
    groups: int
    last: bool
    dtype: np.dtype


def convolve(ctx, plan, images, weight, out, *, bias=None, other=None):
    """Write the convolution of images, plus bias, into `out`.

    Parameters
    ----------
    ctx : LayerContext
        Is informed of scratch memory.
    plan : Plan
    images, out : ndarray of shape (N, C, H, W) and (N, O, Ho, Wo)
    weight : ndarray of shape (O, C / groups, kernel height, kernel width)
    bias : ndarray of shape (O,), optional
    other : ndarray of out's shape, optional

    Returns
    -------
    dweight : ndarray or None
        The gradient of the weight if `other` is that of a convolution of `images`.
    """
    if _by_channel(plan, weight):
        return _depthwise.convolve(ctx, plan, images, weight, out, bias=bias, other=other)
    grouped = _grouped(weight, plan.groups)
    dweight = _convolve(ctx, plan, images, grouped, out, bias, other)
    return None if other is None else _ungrouped(dweight, weight)


def convolve_transposed(ctx, plan, images, weight, out, *, bias=None, other=None):
    """Write the gradient by its input of a convolution, for `images` as that by its result, into `out`.

    Parameters
    ----------
    ctx : LayerContext
        Is informed of scratch memory.
    plan : Plan
        Of the convolution from the shape of `out` to that of `images`.
    images, out : ndarray of shape (N, O, Ho, Wo) and (N, C, H, W)
    weight : ndarray of shape (O, C / groups, kernel height, kernel width)
    bias : ndarray of shape (C,), optional
        Added to `out`.
    other : ndarray of out's shape, optional

    Returns
    -------
    dweight : ndarray or None
        The gradient of the weight if `other` is the input of that convolution.
    """
    if _by_channel(plan, weight):
        return _depthwise.convolve_transposed(ctx, plan, images, weight, out, bias=bias, other=other)
    grouped = _grouped(weight, plan.groups)
    # Unfolding `images` serves both results, but is expensive if they have many more channels than `out`.
    cheap = len(weight) <= 2 * out.shape[1] or weight.shape[2:] == (1, 1)
    if cheap and all(axis.stride == 1 for axis in plan.axes):
        dweight = _convolve_rotated(ctx, plan, images, grouped, out, bias, other)
    else:
        dweight = _fold(ctx, plan, images, grouped, out, bias, other)
    return None if other is None else _ungrouped(dweight, weight)


def _by_channel(plan, weight):
    """Return whether this is a depthwise convolution of images with the channels last."""
    return plan.last and plan.groups == len(weight) and weight.shape[1] == 1


def _grouped(weight, groups):
    return weight.reshape(groups, -1, *weight.shape[1:])


def _ungrouped(dweight, weight):
    return np.ascontiguousarray(dweight, weight.dtype).reshape(weight.shape)


def _by_row(images, axes, weight):
    """Return whether to multiply by the rows of the window one by one.

    Less is unfolded then, but partial results are added, and the weight is copied in another order.
    """
    outputs, channels, height, width = weight.shape[1:]
    windows = len(images) * axes[0].windows * axes[1].windows
    return axes[0].stride == 1 and height > 1 and outputs <= min(channels * width, windows // 2)


class _Product:
    """The unfolded blocks of a convolution's images, times its weight, (groups, O, C, height, width)."""

    def __init__(self, plan, images, weight, by_row, gradient):
        self.plan, self.gradient, self.weight = plan, gradient, weight
        self.weights = weight_matrices(weight, plan.last, by_row).astype(plan.dtype, copy=False)
        self.columns = Columns(images, plan.groups, plan.axes, plan.last, by_row, plan.dtype)
        self.total = np.zeros(self.weights.shape, plan.dtype) if gradient else None
        self._term = self._empty_term() if gradient else None
        self._part = None

    def _empty_term(self):
        _, groups, outputs, size = self.weights.shape
        return np.empty((groups, min(outputs, max(1, TERM // (groups * size))), size), self.weights.dtype)

    def blocks(self, ctx, *users):
        """Return the blocks; `users`, readers and results, need scratch for conversions."""
        (down, across), item = self.plan.axes, self.plan.dtype.itemsize
        beside = 0 if np.may_share_memory(self.weights, self.weight) else self.weights.nbytes
        beside += self._term.nbytes if self.gradient else 0
        # Each block reads the whole weight, so a large one calls for large blocks.
        least = min(self.weights.nbytes, SAMPLES * down.windows * self.columns.row_bytes)
        budget = max(BLOCK * item, SCRATCH * item - beside, least)
        row_bytes = self.columns.row_bytes
        if len(self.weights) > 1:  # for self._part
            row_bytes += self.plan.groups * self.weight.shape[1] * across.windows * item
        unfolded = row_bytes, self.columns.halo_bytes
        samples = len(self.columns.images)
        found, most = blocks_within(budget, samples, down.windows, unfolded, total_bytes(*users))
        ctx.temporary(beside + most)
        return found

    def into(self, images, columns, bias):
        """Write the sum of the weights times the columns, plus bias, into the images of a block."""
        out = self.columns.matrices(images)
        np.matmul(self.weights[0], columns[0], out=out)
        for weight, matrix in zip(self.weights[1:], columns[1:], strict=True):
            if self._part is None or self._part.shape != out.shape:
                self._part = None  # free it before the next one is allocated
                self._part = np.empty_like(out)
            out += np.matmul(weight, matrix, out=self._part)
        if bias is not None:
            out += bias

    def add(self, gradient, columns):
        """Add ``gradient @ columns.T`` to the gradient of the weights, sample by sample."""
        for total, matrix in zip(self.total, columns, strict=True):
            for one, other in zip(gradient, matrix, strict=True):
                for first in range(0, total.shape[1], self._term.shape[1]):
                    rows = slice(first, first + self._term.shape[1])
                    term = self._term[:, : total.shape[1] - first]
                    total[:, rows] += np.matmul(one[:, rows], other.swapaxes(1, 2), out=term)

    def weight_gradient(self):
        """Return the gradient of the weight, having freed all scratch; None without one."""
        self.weights = self.columns = self._term = self._part = None
        return weight_from_matrices(self.total, self.weight.shape, self.plan.last) if self.gradient else None


def _convolve(ctx, plan, images, weight, out, bias, other):
    product = _Product(plan, images, weight, _by_row(images, plan.axes, weight), other is not None)
    result = BlockResult(out, plan.dtype, plan.last)
    bias = None if bias is None else _in_dtype(bias, plan).reshape(plan.groups, -1, 1)
    other_pixels = None if other is None else PixelReader(other, plan.dtype, plan.last)
    for block in product.blocks(ctx, product.columns.reader, result, other_pixels):
        columns = product.columns.of(block)
        product.into(result.of(block), columns, bias)
        result.done(block)
        if other is not None:
            product.add(product.columns.matrices(other_pixels.of(block)), columns)
    return product.weight_gradient()


def _convolve_rotated(ctx, plan, images, weight, out, bias, other):
    """Convolve with the weight rotated by half a circle, which is the transpose where the stride is 1.

    The unfolded blocks of `images`, times the pixels of `other`, give the gradient of the rotated weight.
    """
    axes = []
    for axis in plan.axes:
        reach = axis.dilation * (axis.kernel - 1)
        axes.append(Axis(axis.windows, axis.kernel, 1, reach - axis.padding, axis.dilation, -axis.uneven))
    dweight = _convolve(ctx, plan._replace(axes=tuple(axes)), images, _rotated(weight), out, bias, other)
    return None if other is None else _rotated(dweight)


def _fold(ctx, plan, images, weight, out, bias, other):
    """Multiply by the transposed weight and add the columns to the pixels they belong to, for any stride."""
    like = out if other is None else other
    product = _Product(plan, like, weight, by_row=False, gradient=other is not None)
    start = 0 if bias is None else _in_dtype(bias, plan).reshape(-1, 1, 1)
    sums = RowSums(out, plan.axes[0], plan.dtype, plan.last, start)
    reader = PixelReader(images, plan.dtype, plan.last)
    unfolded = None if other is None else product.columns.reader
    for block in product.blocks(ctx, sums, unfolded, reader):
        gradient = product.columns.matrices(reader.of(block))
        if other is not None:
            product.add(gradient, product.columns.of(block))
        np.matmul(product.weights[0].swapaxes(1, 2), gradient, out=product.columns.room(block))
        product.columns.fold(sums.of(block))
        sums.done(block)
    return product.weight_gradient()


def _in_dtype(bias, plan):
    return bias.astype(plan.dtype, copy=False)


def _rotated(weight):
    """Return a view of (groups, O, C, height, width) with O and C exchanged and the taps reversed."""
    return weight.swapaxes(1, 2)[..., ::-1, ::-1]
