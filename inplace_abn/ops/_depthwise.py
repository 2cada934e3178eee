"""Depthwise convolution of channels-last images: one channel per group.

The matrix products of `_convolve` would have one row here, and unfolding would copy single values. Instead,
each tap of the window multiplies pixels by one value per channel, one block of rows at a time, so that
results and products stay in the cache. The functions are those of `_convolve`.
"""

import numpy as np

from .._shape_arrays import none_if_planning
from ._rows import BlockWriter, PixelReader, RowReader, RowSums, total_bytes
from ._windows import blocks_within, taps

#: Number of values in a block of products.
BLOCK = 1 << 16


def convolve(ctx, settings, images, weight, out, *, bias=None, correlated=None):
    """Write the convolution of `images` plus `bias` to `out`; return as `_convolve.convolve` does."""
    reader = RowReader(images, settings.axes[0], settings.dtype, settings.channels_last)
    gradients = (
        None if correlated is None else PixelReader(correlated, settings.dtype, settings.channels_last)
    )
    result = BlockWriter(out, settings.dtype, settings.channels_last)
    products = _Products(settings, weight, out)
    total = _zeros(weight, settings) if correlated is not None else None
    for block in products.blocks(ctx, reader, gradients, result):
        rows, written = reader.read(block), _channels_last(result.begin_block(block))
        pixels = _channels_last(rows.images)
        written[...] = 0 if bias is None else bias
        gradient = None if correlated is None else _channels_last(gradients.read(block))
        for tap, inside, source in products.taps(rows):
            written[inside] += products.multiply(pixels[source], products.tiles[tap])
            if correlated is not None:
                total[tap] += products.channel_sums(pixels[source], gradient[inside])
        result.end_block(block)
    return _gradient(total, weight)


def convolve_transposed(ctx, settings, images, weight, out, *, bias=None, correlated=None):
    """Write the transposed convolution of `images` plus `bias` to `out`; return as `_convolve` does."""
    sums = RowSums(
        out,
        settings.axes[0],
        settings.dtype,
        settings.channels_last,
        0 if bias is None else bias[:, None, None],
    )
    reader = (
        None
        if correlated is None
        else RowReader(correlated, settings.axes[0], settings.dtype, settings.channels_last)
    )
    gradients = PixelReader(images, settings.dtype, settings.channels_last)
    products = _Products(settings, weight, images)
    total = _zeros(weight, settings) if correlated is not None else None
    for block in products.blocks(ctx, sums, reader, gradients):
        gradient, rows = _channels_last(gradients.read(block)), sums.begin_block(block)
        read = rows if correlated is None else reader.read(block)
        pixels, inputs = _channels_last(rows.images), _channels_last(read.images)
        for (tap, inside, written), (_, _, source) in zip(
            products.taps(rows), products.taps(read), strict=True
        ):
            pixels[written] += products.multiply(gradient[inside], products.tiles[tap])
            if correlated is not None:
                total[tap] += products.channel_sums(inputs[source], gradient[inside])
        sums.end_block(block)
    return _gradient(total, weight)


def _channels_last(images):
    """Return the view (N, H, W, C)."""
    return images.transpose(0, 2, 3, 1)


def _zeros(weight, settings):
    """Return zeros for the gradient of the weight, (height, width, C)."""
    return np.zeros((*weight.shape[2:], len(weight)), settings.dtype, like=weight)


def _gradient(total, weight):
    """Return the sums of all taps as a gradient with the shape and dtype of the weight; None for None."""
    if total is None:
        return None
    return np.ascontiguousarray(total.transpose(2, 0, 1)[:, None], weight.dtype)


class _Products:
    """Products of the pixels of a block with values per channel or with other pixels, in one buffer.

    `like` has one pixel per window. `tiles[i, j]` has the values of a tap, repeated for every column: NumPy
    multiplies long contiguous rows faster.
    """

    def __init__(self, settings, weight, like):
        self.settings = settings
        self.samples, self.channels, self.rows, self.columns = like.shape
        values_by_tap = weight[:, 0].transpose(1, 2, 0)[:, :, None].astype(settings.dtype, copy=False)
        self.tiles = np.repeat(values_by_tap, self.columns, axis=2)

    def blocks(self, ctx, *buffers):
        """Return the blocks that the batch is cut into; `buffers` are their readers and writers."""
        row, item = self.channels * self.columns, self.settings.dtype.itemsize
        uses = (row * item, 0), total_bytes(*buffers)
        blocks, scratch = blocks_within(BLOCK * item, self.samples, self.rows, *uses)
        sizes = ((b.samples.stop - b.samples.start) * (b.end - b.begin) for b in blocks)
        max_rows = max(sizes, default=0)
        self.buffer = np.empty(max_rows * row, self.settings.dtype)
        self.ones = np.ones(max_rows * self.columns, self.settings.dtype)
        scratch += self.ones.nbytes
        ctx.temporary(scratch)
        return none_if_planning(blocks, self.samples * self.rows * row * len(self.tiles), scratch)

    def taps(self, rows):
        """Iterate over the taps: index of the tap, of its windows in the block, and of its pixels."""
        _, down, block = rows
        for i, j, inner, columns in taps((down, self.settings.axes[1]), block):
            first, last = inner.first - block.begin, inner.last - block.begin
            if last > first and columns.last > columns.first:
                inside = slice(None), slice(first, last), slice(columns.first, columns.last)
                yield (i, j), inside, (block.samples, inner.source, columns.source)

    def multiply(self, images, other):
        """Return `images`, of (samples, rows, columns, C), times an array of that shape or a tile."""
        out = self.buffer[: images.size].reshape(images.shape)
        return np.multiply(images, other[..., : images.shape[2], :], out=out)

    def channel_sums(self, images, other):
        """Return the sum of the products for each channel."""
        flat = self.multiply(images, other).reshape(-1, self.channels)
        return self.ones[: len(flat)] @ flat
