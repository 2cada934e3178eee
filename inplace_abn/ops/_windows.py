"""Sliding windows over an image: their number, the pixels that each tap reads, and blocks of windows.

A tap is one element of the window: of the kernel of a convolution, or of the pixels that a pooling combines.
``down`` is the `Axis` along H, ``across`` the one along W.
"""

import math
from itertools import pairwise
from typing import NamedTuple

from .. import _arguments as arguments
from .._arguments import pair
from .._shape_arrays import first_if_planning
from ._layout import image_shape, spatial_shape


class Span(NamedTuple):
    """Along one axis: the windows whose tap lies inside the image, and the pixels that the tap reads.

    The windows are [first, last); `source` is the slice of the pixels.
    """

    first: int
    last: int
    source: slice


class Axis(NamedTuple):
    """The windows along one axis: tap t of window w reads pixel ``w * stride + t * dilation - padding``.

    There are `padding` zeros at both ends and `end_padding` further ones, which may be negative, at the end.
    """

    length: int
    kernel: int
    stride: int
    padding: int
    dilation: int
    end_padding: int = 0

    @property
    def windows(self):
        """The number of windows; less than 1 if the image is too small."""
        padded = self.length + 2 * self.padding + self.end_padding
        return (padded - self.dilation * (self.kernel - 1) - 1) // self.stride + 1

    def extent(self, windows):
        """Return the length that `windows` consecutive windows cover, including padding."""
        return (windows - 1) * self.stride + self.dilation * (self.kernel - 1) + 1

    def reach(self, begin, end):
        """Return the bounds of the pixels that the windows in [begin, end) cover."""
        start = begin * self.stride - self.padding
        stop = start + self.extent(end - begin)
        start = min(max(0, start), self.length)
        return start, min(max(start, stop), self.length)

    def span(self, tap, begin, end):
        """Return the `Span` of a tap for the windows in [begin, end)."""
        offset = tap * self.dilation - self.padding
        first = min(end, max(begin, -(offset // self.stride)))
        last = max(first, min(end, (self.length - 1 - offset) // self.stride + 1))
        start = first * self.stride + offset
        if first == last:
            return Span(first, first, slice(0, 0))
        return Span(first, last, slice(start, start + (last - first - 1) * self.stride + 1, self.stride))


class Block(NamedTuple):
    """A part of a batch: whole samples, or the rows [begin, end) of one sample."""

    samples: slice
    begin: int
    end: int


def make_axes(name, size, kernel, stride, padding, dilation, end_padding=(0, 0)):
    """Return the `Axis` along H and along W; raise a ValueError for images smaller than the window."""
    axes = tuple(map(Axis, size, kernel, stride, padding, dilation, end_padding))
    if any(axis.windows < 1 for axis in axes):
        reach = tuple(axis.dilation * (axis.kernel - 1) + 1 for axis in axes)
        raise ValueError(
            f"a window of {reach[0]} x {reach[1]} pixels does not fit into {name} with images of "
            f"{size[0]} x {size[1]} and padding {padding[0]} x {padding[1]}"
        )
    return axes


def blocks(samples, rows, row_bytes, budget, sample_bytes=0):
    """Cut a batch of images into blocks of at most `budget` bytes, but at least one row.

    A block takes `row_bytes` per row and in addition `sample_bytes` per sample. The blocks have nearly equal
    sizes.

    >>> [(block.samples.start, block.begin, block.end) for block in blocks(2, 5, 10, 20)]
    [(0, 0, 2), (0, 2, 4), (0, 4, 5), (1, 0, 2), (1, 2, 4), (1, 4, 5)]
    >>> [(block.samples.start, block.samples.stop) for block in blocks(5, 1, 10, 20)]
    [(0, 2), (2, 4), (4, 5)]
    """
    whole = budget // max(1, rows * row_bytes + sample_bytes)
    if whole >= 1:
        for first, last in _parts(samples, whole):
            yield Block(slice(first, last), 0, rows)
        return
    parts = _parts(rows, max(1, (budget - sample_bytes) // row_bytes))
    for sample in range(samples):
        for begin, end in parts:
            yield Block(slice(sample, sample + 1), begin, end)


def blocks_within(budget, samples, rows, *buffers):
    """Cut a batch of images into blocks for which each scratch buffer has at most `budget` bytes.

    `buffers` are pairs: bytes per row of a block, and in addition per sample. Returns the blocks, and the
    maximum over the blocks of the bytes of all buffers together.

    >>> found, scratch = blocks_within(20, 2, 5, (10, 0), (2, 4))
    >>> len(found), scratch
    (10, 16)
    """
    row_bytes, sample_bytes = (max(parts) for parts in zip(*buffers, strict=True))
    found = list(first_if_planning(blocks(samples, rows, row_bytes, budget, sample_bytes)))
    row_bytes, sample_bytes = (sum(parts) for parts in zip(*buffers, strict=True))
    sizes = ((b.samples.stop - b.samples.start, b.end - b.begin) for b in found)
    return found, max((n * (r * row_bytes + sample_bytes) for n, r in sizes), default=0)


def sample_slices(shape, least=1 << 16):
    """Cut a batch of `shape` into slices of whole samples with at least `least` elements each.

    >>> sample_slices((5, 3), 6)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 6, None)]
    """
    step = -(-least // max(1, math.prod(shape[1:])))
    return first_if_planning([slice(first, first + step) for first in range(0, shape[0], step)])


def _parts(total, max_length):
    """Cut range(total) into parts of at most `max_length`, of nearly equal lengths; return their bounds."""
    count = max(1, -(-total // max_length))
    bounds = [-(-total * i // count) for i in range(count + 1)]
    return list(pairwise(bounds)) if total else []


def taps(axes, block):
    """Iterate over the taps of the window: (row, column, `Span` along H, `Span` along W) in a block."""
    down, across = axes
    columns = [(j, across.span(j, 0, across.windows)) for j in range(across.kernel)]
    for i in range(down.kernel):
        rows = down.span(i, block.begin, block.end)
        for j, column in columns:
            yield i, j, rows, column


def make_pooling_axes(x, kernel_size, stride, padding, dilation, channel_axis):
    """Check the arguments of a pooling; return the `Axis` along H and the one along W."""
    arguments.image_batch("x", x, channel_axis)
    kernel = pair("kernel_size", kernel_size, 1)
    stride = kernel if stride is None else pair("stride", stride, 1)
    padding = pair("padding", padding, 0)
    if any(2 * pad > width for pad, width in zip(padding, kernel, strict=True)):
        raise ValueError(f"padding must be at most half of kernel_size, got {padding} for {kernel}")
    size = spatial_shape(x.shape, channel_axis)
    return make_axes("x", size, kernel, stride, padding, pair("dilation", dilation, 1))


def pooled_shape(ctx):
    """Return the shape of the result of a pooling."""
    size = tuple(axis.windows for axis in ctx.axes)
    return image_shape(ctx.input_shape[0], ctx.input_shape[ctx.channel_axis], size, ctx.channel_axis)
