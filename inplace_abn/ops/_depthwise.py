"""Depthwise convolution of images with the channels last in memory: every channel by itself.

BLAS has next to nothing to do there, and unfolding would move single values. Instead every tap of the window
is one multiplication of pixels by a value per channel, a block of rows at a time: results and products
stay in the cache. The functions are those of `_convolve`, for one channel per group.
"""

import numpy as np

from ._rows import BlockResult, PixelReader, RowReader, RowSums, total_bytes
from ._windows import blocks_within, taps

#: Values of a block of products.
BLOCK = 1 << 16


def convolve(ctx, plan, images, weight, out, *, bias=None, other=None):
    """Write the convolution of images, plus bias, into `out`; return the gradient of weight for `other`."""
    reader = RowReader(images, plan.axes[0], plan.dtype, plan.last)
    gradients = None if other is None else PixelReader(other, plan.dtype, plan.last)
    result = BlockResult(out, plan.dtype, plan.last)
    products = _Products(plan, weight, out)
    total = _zeros(weight, plan) if other is not None else None
    for block in products.blocks(ctx, reader, gradients, result):
        rows, written = reader.of(block), _channels_last(result.of(block))
        pixels = _channels_last(rows.images)
        written[...] = 0 if bias is None else bias
        gradient = None if other is None else _channels_last(gradients.of(block))
        for tap, inside, source in products.taps(rows):
            written[inside] += products.of(pixels[source], products.tiles[tap])
            if other is not None:
                total[tap] += products.sum(pixels[source], gradient[inside])
        result.done(block)
    return _gradient(total, weight)


def convolve_transposed(ctx, plan, images, weight, out, *, bias=None, other=None):
    """Write the transposed convolution of images, plus bias, into `out`; return as `convolve` does."""
    sums = RowSums(out, plan.axes[0], plan.dtype, plan.last, 0 if bias is None else bias[:, None, None])
    reader = None if other is None else RowReader(other, plan.axes[0], plan.dtype, plan.last)
    gradients = PixelReader(images, plan.dtype, plan.last)
    products = _Products(plan, weight, images)
    total = _zeros(weight, plan) if other is not None else None
    for block in products.blocks(ctx, sums, reader, gradients):
        gradient, rows = _channels_last(gradients.of(block)), sums.of(block)
        read = rows if other is None else reader.of(block)
        pixels, seen = _channels_last(rows.images), _channels_last(read.images)
        for (tap, inside, written), (_, _, source) in zip(
            products.taps(rows), products.taps(read), strict=True
        ):
            pixels[written] += products.of(gradient[inside], products.tiles[tap])
            if other is not None:
                total[tap] += products.sum(seen[source], gradient[inside])
        sums.done(block)
    return _gradient(total, weight)


def _channels_last(images):
    return images.transpose(0, 2, 3, 1)


def _zeros(weight, plan):
    """Return zeros for the gradient of the weight, (height, width, C)."""
    return np.zeros((*weight.shape[2:], len(weight)), plan.dtype)


def _gradient(total, weight):
    if total is None:
        return None
    return np.ascontiguousarray(total.transpose(2, 0, 1)[:, None], weight.dtype)


class _Products:
    """Products of the pixels of a block with values per channel or with other pixels, in one buffer.

    `like` has as many pixels as there are windows. `tiles` has the values of the taps, [i, j], repeated for
    every column, since long runs of memory are faster.
    """

    def __init__(self, plan, weight, like):
        self.plan = plan
        self.samples, self.channels, self.rows, self.columns = like.shape
        taps_ = weight[:, 0].transpose(1, 2, 0)[:, :, None].astype(plan.dtype, copy=False)
        self.tiles = np.repeat(taps_, self.columns, axis=2)

    def blocks(self, ctx, *users):
        """Return the blocks; `users`, readers and results, need scratch for conversions."""
        row, item = self.channels * self.columns, self.plan.dtype.itemsize
        uses = (row * item, 0), total_bytes(*users)
        found, scratch = blocks_within(BLOCK * item, self.samples, self.rows, *uses)
        most = max(((b.samples.stop - b.samples.start) * (b.end - b.begin) for b in found), default=0)
        self.buffer = np.empty(most * row, self.plan.dtype)
        self.ones = np.ones(most * self.columns, self.plan.dtype)
        ctx.temporary(scratch + self.ones.nbytes)
        return found

    def taps(self, rows):
        """Iterate over the taps: [i, j], where in the block, and which pixels of `rows.images`."""
        _, down, block = rows
        for i, j, inner, columns in taps((down, self.plan.axes[1]), block):
            first, last = inner.first - block.begin, inner.last - block.begin
            if last > first and columns.last > columns.first:
                inside = slice(None), slice(first, last), slice(columns.first, columns.last)
                yield (i, j), inside, (block.samples, inner.source, columns.source)

    def of(self, images, other):
        """Return the product of (samples, rows, columns, C) and something of that shape, or a tile."""
        out = self.buffer[: images.size].reshape(images.shape)
        return np.multiply(images, other[..., : images.shape[2], :], out=out)

    def sum(self, images, other):
        """Return the sum of the products for every channel."""
        flat = self.of(images, other).reshape(-1, self.channels)
        return self.ones[: len(flat)] @ flat
