"""Convolution of images through BLAS, a block of rows at a time.

A block of the batch (some rows of a sample, or some samples where they are small) is unfolded into a matrix
of one column per output pixel and one row per channel and tap, which is then multiplied by the weight; the
batch as a whole is never unfolded. The matrix is to stay in the processor's cache, whatever the size of
the batch. Convolutions of 1 x 1 without stride and padding need no such matrix.
"""

import numpy as np

from . import _arguments as arguments
from ._unfold import Unfolding, pixels, weight_from_matrix, weight_matrix
from ._windows import Axis, blocks, make_axes

#: Bytes of an unfolded block and of the copies of the weight beside it: within a processor's second cache.
SCRATCH_BYTES = 1 << 19
#: Bytes of an unfolded block, however large the weight: with less, BLAS has too little to do in a call.
BLOCK_BYTES = 1 << 18


def forward(ctx, x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1, channel_axis=1):
    """Convolve images: ``z[n, o, p] = bias[o] + sum of weight[o, c, tap] * x[n, c, p * stride + tap]``.

    Parameters
    ----------
    ctx : Context
    x : ndarray of shape (N, C, H, W), or (N, H, W, C) with ``channel_axis=-1``
        float32 or float64; read only, and kept for the backward.
    weight : ndarray of shape (O, C / groups, kernel height, kernel width)
        Of x's dtype, in this order of axes for both layouts. Read again by the backward.
    bias : ndarray of shape (O,), optional
    stride, padding, dilation : int or (int, int)
        Along H and W, as in `torch.nn.functional.conv2d`. Padding is by zeros.
    groups : int
        Group g of the outputs sees only group g of the channels. C of them: depthwise.
    channel_axis : {1, -1}

    Returns
    -------
    z : ndarray of shape (N, O, Ho, Wo), or (N, Ho, Wo, O)
        Fresh, ``Ho = (H + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1``.

    Raises
    ------
    TypeError, ValueError
        For arrays of other dtypes, shapes that do not fit together, images smaller than the window.

    Examples
    --------
    >>> import numpy as np
    >>> from inplace_abn.layers import Context
    >>> ctx, x = Context(), np.arange(9.0).reshape(1, 1, 3, 3)
    >>> forward(ctx, x, np.ones((1, 1, 2, 2)))
    array([[[[ 8., 12.],
             [20., 24.]]]])
    >>> dx, dweight, dbias = backward(ctx, np.ones((1, 1, 2, 2)))
    >>> dweight, dbias
    (array([[[[ 8., 12.],
             [20., 24.]]]]), None)
    """
    arguments.channel_axis_of(channel_axis)
    groups = _check(x, weight, bias, groups, channel_axis)
    images = np.moveaxis(x, channel_axis, 1)
    axes = make_axes(
        "x", images.shape[2:], weight.shape[2:], arguments.pair("stride", stride, 1),
        arguments.pair("padding", padding, 0), arguments.pair("dilation", dilation, 1),
    )  # fmt: skip
    ctx.save_for_backward(input=x)
    ctx.weight, ctx.has_bias = weight, bias is not None
    ctx.axes, ctx.groups, ctx.channel_axis, ctx.input_shape = axes, groups, channel_axis, x.shape
    z = np.empty(_result_shape(ctx), x.dtype)
    _forward(ctx, images, np.moveaxis(z, channel_axis, 1), bias)
    return z


def backward(ctx, dz, *, overwrite=False):
    """Gradients of images, weight and bias.

    Parameters
    ----------
    ctx : Context
        From `forward`.
    dz : ndarray
        Of z's shape and dtype; read only.
    overwrite : bool
        Makes no difference: dx is of another shape than dz, or needs it until the end.

    Returns
    -------
    dx, dweight, dbias : ndarray
        Fresh; dbias is None where there was no bias.

    Raises
    ------
    TypeError, ValueError
        For a dz that does not fit the result of the forward.
    """
    arguments.gradient("dz", dz, _result_shape(ctx), ctx.weight.dtype)
    x = np.moveaxis(ctx.saved["input"], ctx.channel_axis, 1)
    gradient = np.moveaxis(dz, ctx.channel_axis, 1)
    dbias = gradient.sum(axis=(0, 2, 3)) if ctx.has_bias else None
    dx = np.empty(ctx.input_shape, dz.dtype)
    images = np.moveaxis(dx, ctx.channel_axis, 1)
    # Unfolding dz serves both gradients, but is too much of a detour if z has many more channels than x.
    turned = all(axis.stride == 1 for axis in ctx.axes) and len(ctx.weight) <= 2 * x.shape[1]
    dweight = (_backward_turned if turned else _backward)(ctx, x, gradient, images)
    return dx, dweight, dbias


def _check(x, weight, bias, groups, channel_axis):
    arguments.floats("x", x, arguments.images(channel_axis))
    arguments.floats("weight", weight, "(O, C / groups, kernel height, kernel width)", x.dtype)
    groups = arguments.integer("groups", groups, 1)
    channels = x.shape[channel_axis]
    if weight.shape[1] * groups != channels or len(weight) % groups or 0 in weight.shape:
        raise ValueError(
            f"weight of shape {weight.shape} with {groups=} is for {weight.shape[1] * groups} channels and a "
            f"multiple of {groups} outputs; x of shape {x.shape} with {channel_axis=} has {channels} channels"
        )
    if bias is not None:
        arguments.floats("bias", bias, "(O,)", x.dtype)
        arguments.same_shape("bias", bias, weight.shape[:1], f"one per output of weight {weight.shape}")
    return groups


def _result_shape(ctx):
    (down, across), outputs = ctx.axes, len(ctx.weight)
    shape = (outputs, down.windows, across.windows)
    return (ctx.input_shape[0], *(shape if ctx.channel_axis == 1 else shape[1:] + shape[:1]))


def _grouped(weight, groups):
    return weight.reshape(groups, -1, *weight.shape[1:])


class _Columns:
    """The unfolded blocks of some images; of a 1 x 1 convolution the images themselves."""

    def __init__(self, ctx, images, axes, beside):
        self.images, self.groups, self.last = images, ctx.groups, ctx.channel_axis == -1
        self.buffer = Unfolding(images.shape[1], ctx.groups, axes, self.last, images.dtype)
        self.direct = all(axis == Axis(axis.length, 1, 1, 0, axis.dilation) for axis in axes)
        row_bytes, budget = self.buffer.row_bytes, max(BLOCK_BYTES, SCRATCH_BYTES - beside)
        if self.direct and np.moveaxis(images, 1, ctx.channel_axis).flags.c_contiguous:
            row_bytes = 0  # neither unfolded nor copied
        self.blocks = list(blocks(len(images), axes[0].windows, row_bytes, budget))
        ctx.temporary(beside + (0 if self.direct else self._largest() * self.buffer.row_bytes))

    def _largest(self):
        return max(((b.samples.stop - b.samples.start) * (b.end - b.begin) for b in self.blocks), default=0)

    def of(self, block):
        """Return the unfolded block, as matrices of (C / groups * taps, windows)."""
        if self.direct:
            return pixels(self.images, block, self.groups, self.last)
        return self.buffer.fill(self.images, block)


def _forward(ctx, images, z, bias):
    last = ctx.channel_axis == -1
    matrix = weight_matrix(_grouped(ctx.weight, ctx.groups), last)
    columns = _Columns(ctx, images, ctx.axes, _copied(matrix, ctx.weight))
    for block in columns.blocks:
        out = pixels(z, block, ctx.groups, last)
        np.matmul(matrix, columns.of(block), out=out)
        if bias is not None:
            out += bias.reshape(ctx.groups, -1, 1)


def _backward_turned(ctx, x, dz, dx):
    """Return dweight and fill dx, which is the convolution of dz with the weight turned by half a circle.

    The blocks of dz that are unfolded for it, times the pixels of x, are the gradient of the turned weight.
    """
    last = ctx.channel_axis == -1
    axes = tuple(
        Axis(axis.windows, axis.kernel, 1, axis.dilation * (axis.kernel - 1) - axis.padding, axis.dilation)
        for axis in ctx.axes
    )
    turned = _turn(_grouped(ctx.weight, ctx.groups))
    matrix = weight_matrix(turned, last)
    columns = _Columns(ctx, dz, axes, _copied(matrix, ctx.weight) + matrix.nbytes)
    total = _Sum(matrix)
    for block in columns.blocks:
        unfolded = columns.of(block)
        np.matmul(matrix, unfolded, out=pixels(dx, block, ctx.groups, last))
        total.add(pixels(x, block, ctx.groups, last), unfolded)
    del matrix, columns
    dweight = _turn(weight_from_matrix(total.value(), turned.shape, last))
    return np.ascontiguousarray(dweight).reshape(ctx.weight.shape)


def _backward(ctx, x, dz, dx):
    """Return dweight and fill dx, for any stride: unfold x for the one, fold back for the other."""
    last = ctx.channel_axis == -1
    weight = _grouped(ctx.weight, ctx.groups)
    matrix = weight_matrix(weight, last)
    columns = _Columns(ctx, x, ctx.axes, _copied(matrix, ctx.weight) + matrix.nbytes)
    total = _Sum(matrix)
    dx[...] = 0
    for block in columns.blocks:
        gradient = pixels(dz, block, ctx.groups, last)
        total.add(gradient, columns.of(block))
        np.matmul(matrix.swapaxes(1, 2), gradient, out=columns.buffer.matrix(block))
        columns.buffer.add_to(dx, block)
    del matrix, columns
    dweight = weight_from_matrix(total.value(), weight.shape, last)
    return np.ascontiguousarray(dweight).reshape(ctx.weight.shape)


def _turn(weight):
    """Return a view of (groups, O, C, height, width) with O and C exchanged and the taps reversed."""
    return weight.swapaxes(1, 2)[..., ::-1, ::-1]


def _copied(matrix, weight):
    return 0 if np.may_share_memory(matrix, weight) else matrix.nbytes


class _Sum:
    """The sum over all samples of products of matrices."""

    def __init__(self, like):
        self._total, self._term = np.zeros_like(like), None

    def add(self, left, right):
        """Add ``left @ right.T``, sample by sample."""
        for one, other in zip(left, right, strict=True):
            if self._term is None:
                self._term = np.matmul(one, other.swapaxes(1, 2), out=np.empty_like(self._total))
            else:
                np.matmul(one, other.swapaxes(1, 2), out=self._term)
            self._total += self._term

    def value(self):
        """Return the sum; nothing more can be added."""
        self._term = None
        return self._total
