"""Depthwise convolution of images with the channels last: every channel by itself.

BLAS has next to nothing to do there, and unfolding would move single values about. Instead every tap of the
window is one multiplication of pixels by a value per channel, a block of rows at a time, so that results and
products stay in the cache.
"""

import numpy as np

from ._windows import blocks, taps

#: Values of a block of products.
BLOCK = 1 << 16


def forward(ctx, images, weight, axes, z):
    """Fill z with the convolution of images, both (N, H, W, C), and weight, (C, 1, height, width)."""
    products = _Products(ctx, axes, z)
    tiles = products.tiles(weight)
    for block in products.blocks:
        out = z[block.samples, block.begin : block.end]
        out[...] = 0
        for i, j, inside, source in products.taps(block):
            out[inside] += products.of(images[block.samples][source], tiles[i, j])


def backward(ctx, images, weight, axes, dz, dx):
    """Fill dx and return the gradient of weight."""
    products = _Products(ctx, axes, dz)
    tiles = products.tiles(weight)
    dweight = np.zeros_like(weight, order="C")
    dx[...] = 0
    for block in products.blocks:
        gradient = dz[block.samples, block.begin : block.end]
        for i, j, inside, source in products.taps(block):
            dx[block.samples][source] += products.of(gradient[inside], tiles[i, j])
            dweight[:, 0, i, j] += products.sum(images[block.samples][source], gradient[inside])
    return dweight


class _Products:
    """Products of the pixels of a block and something else, in one buffer."""

    def __init__(self, ctx, axes, like):
        samples, rows, self.columns, self.channels = like.shape
        self.axes, row = axes, self.channels * self.columns
        self.blocks = list(blocks(samples, rows, row, BLOCK))
        most = max(((b.samples.stop - b.samples.start) * (b.end - b.begin) for b in self.blocks), default=0)
        self.buffer = np.empty(most * row, like.dtype)
        self.ones = np.ones(most * self.columns, like.dtype)
        ctx.temporary(self.buffer.nbytes + self.ones.nbytes)

    def tiles(self, weight):
        """Return the values of the taps, [i, j], for every column: the longer a run of memory, the faster."""
        return np.repeat(weight[:, 0].transpose(1, 2, 0)[:, :, None], self.columns, axis=2)

    def taps(self, block):
        """Go through the taps: i, j, where in the block, and which pixels of the images."""
        for i, j, rows, columns in taps(self.axes, block):
            first, last = rows.first - block.begin, rows.last - block.begin
            if last > first and columns.last > columns.first:
                inside = slice(None), slice(first, last), slice(columns.first, columns.last)
                yield i, j, inside, (slice(None), rows.source, columns.source)

    def of(self, images, other):
        """Return the product of (samples, rows, columns, C) and something of that shape, or a tile."""
        out = self.buffer[: images.size].reshape(images.shape)
        return np.multiply(images, other[..., : images.shape[2], :], out=out)

    def sum(self, images, other):
        """Return the sum of the products for every channel."""
        flat = self.of(images, other).reshape(-1, self.channels)
        return self.ones[: len(flat)] @ flat
