"""Convolution of images through BLAS, a block of rows at a time.

A block of the batch (some rows of a sample, or some samples where they are small) is unfolded into a matrix
of one column per output pixel, which is then multiplied by the weight; the whole batch is never unfolded.
The matrix is to stay in the processor's cache, whatever the size of the batch. Convolutions of 1 x 1 without
stride and padding need no such matrix, depthwise ones with the channels last no BLAS.

Scratch is `SCRATCH` values, or the copies of a large weight and one row of windows where that is more.
"""

import numpy as np

from .._numbers import integer, pair
from . import _arguments as arguments
from . import _depthwise
from ._unfold import Columns, pixels, weight_from_matrices, weight_matrices
from ._windows import Axis, make_axes

#: Values of scratch: the columns of a block and the copies of the weight, for a processor's second cache.
SCRATCH = 1 << 17
#: Values of the columns of a block, however large the weight: with less, BLAS has too little to do.
BLOCK = 60_000
#: Values of a product on its way to the gradient of the weight: for the cache again.
TERM = 1 << 17
#: As many samples are unfolded at once for a weight of many more values than that, at most.
SAMPLES = 4


def forward(ctx, x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1, channel_axis=1):
    """Convolve images: ``z[n, o, p] = bias[o] + sum of weight[o, c, tap] * x[n, c, p * stride + tap]``.

    Parameters
    ----------
    ctx : LayerContext
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
    >>> from inplace_abn.layers import LayerContext
    >>> ctx, x = LayerContext(), np.arange(9.0).reshape(1, 1, 3, 3)
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
        "x", images.shape[2:], weight.shape[2:], pair("stride", stride, 1),
        pair("padding", padding, 0), pair("dilation", dilation, 1),
    )  # fmt: skip
    ctx.save_for_backward(input=x)
    ctx.weight, ctx.has_bias = weight, bias is not None
    ctx.axes, ctx.groups, ctx.channel_axis, ctx.input_shape = axes, groups, channel_axis, x.shape
    z = np.empty(_result_shape(ctx), x.dtype)
    if _by_channel(ctx):
        _depthwise.forward(ctx, x, weight, axes, z)
    else:
        _forward(ctx, images, np.moveaxis(z, channel_axis, 1))
    if bias is not None:
        z += bias if channel_axis == -1 else bias[:, None, None]
    return z


def backward(ctx, dz, *, overwrite=False):
    """Gradients of images, weight and bias.

    Parameters
    ----------
    ctx : LayerContext
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
    x = ctx.saved["input"]
    dx = np.empty(ctx.input_shape, dz.dtype)
    if _by_channel(ctx):
        dweight = _depthwise.backward(ctx, x, ctx.weight, ctx.axes, dz, dx)
    else:
        channels = ctx.input_shape[ctx.channel_axis]
        # Unfolding dz serves both gradients, but is too much of a detour if z has many more channels than x.
        turned = all(axis.stride == 1 for axis in ctx.axes) and len(ctx.weight) <= 2 * channels
        images = (np.moveaxis(array, ctx.channel_axis, 1) for array in (x, dz, dx))
        dweight = (_backward_turned if turned else _backward)(ctx, *images)
    others = (0, 2, 3) if ctx.channel_axis == 1 else (0, 1, 2)
    return dx, dweight, dz.sum(axis=others) if ctx.has_bias else None


def _by_channel(ctx):
    """Tell whether this is a depthwise convolution of images with the channels last."""
    return ctx.channel_axis == -1 and ctx.groups == ctx.input_shape[-1] == len(ctx.weight)


def _check(x, weight, bias, groups, channel_axis):
    arguments.floats("x", x, arguments.images(channel_axis))
    arguments.floats("weight", weight, "(O, C / groups, kernel height, kernel width)", x.dtype)
    groups = integer("groups", groups, 1)
    channels = x.shape[channel_axis]
    wanted = weight.shape[1] * groups
    if wanted != channels or len(weight) % groups or 0 in weight.shape:
        raise ValueError(
            f"weight of shape {weight.shape} with {groups=} is for {wanted} channels and a multiple of "
            f"{groups} outputs; x of shape {x.shape} with {channel_axis=} has {channels} channels"
            f"{arguments.elsewhere(x.shape, wanted, channel_axis)}"
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


def _by_row(images, axes, weight):
    """Tell whether it is better to go through the rows of the window one by one.

    Less is unfolded then, but there are sums of results, and the weight is to be copied in another order.
    """
    outputs, channels, height, width = weight.shape[1:]
    windows = len(images) * axes[0].windows * axes[1].windows
    return axes[0].stride == 1 and height > 1 and outputs <= min(channels * width, windows // 2)


class _Product:
    """The unfolded blocks of a convolution's images, times its weight."""

    def __init__(self, ctx, images, axes, weight, by_row, gradient):
        self.last = ctx.channel_axis == -1
        self.weights = weight_matrices(weight, self.last, by_row)
        self.columns = Columns(images, ctx.groups, axes, self.last, by_row)
        beside = 0 if np.may_share_memory(self.weights, ctx.weight) else self.weights.nbytes
        self.total = np.zeros(self.weights.shape, images.dtype) if gradient else None
        self._term = self._empty_term() if gradient else None
        self._part = None
        beside += self._term.nbytes if gradient else 0
        # A large weight is better read not too often.
        least = min(self.weights.nbytes, SAMPLES * axes[0].windows * self.columns.row_bytes)
        budget = max(BLOCK * images.itemsize, SCRATCH * images.itemsize - beside, least)
        sum_bytes = len(ctx.weight) * axes[1].windows * images.itemsize if len(self.weights) > 1 else 0
        self.blocks, most = self.columns.blocks(budget, sum_bytes)
        ctx.temporary(beside + most)

    def _empty_term(self):
        _, groups, outputs, size = self.weights.shape
        return np.empty((groups, min(outputs, max(1, TERM // (groups * size))), size), self.weights.dtype)

    def of(self, images, block):
        """Return the pixels of a block of other images, as matrices that fit the columns."""
        return pixels(images, block, self.columns.groups, self.last, self.columns.merged)

    def into(self, out, columns):
        """Write the sum of the weights times the columns into `out`."""
        np.matmul(self.weights[0], columns[0], out=out)
        for weight, matrix in zip(self.weights[1:], columns[1:], strict=True):
            if self._part is None or self._part.shape != out.shape:
                self._part = None  # not two at a time
                self._part = np.empty_like(out)
            out += np.matmul(weight, matrix, out=self._part)

    def add(self, gradient, columns):
        """Add ``gradient @ columns.T`` to the gradient of the weights, sample by sample."""
        for total, matrix in zip(self.total, columns, strict=True):
            for one, other in zip(gradient, matrix, strict=True):
                for first in range(0, total.shape[1], self._term.shape[1]):
                    rows = slice(first, first + self._term.shape[1])
                    term = self._term[:, : total.shape[1] - first]
                    total[:, rows] += np.matmul(one[:, rows], other.swapaxes(1, 2), out=term)

    def weight_gradient(self, shape):
        """Return the gradient of the weight, of `shape`; scratch is let go."""
        self.weights = self.columns = self._term = self._part = None
        return weight_from_matrices(self.total, shape, self.last)


def _forward(ctx, images, z):
    weight = _grouped(ctx.weight, ctx.groups)
    product = _Product(ctx, images, ctx.axes, weight, _by_row(images, ctx.axes, weight), gradient=False)
    for block in product.blocks:
        product.into(product.of(z, block), product.columns.of(block))


def _backward_turned(ctx, x, dz, dx):
    """Return dweight and fill dx, which is the convolution of dz with the weight turned by half a circle.

    The blocks of dz that are unfolded for it, times the pixels of x, are the gradient of the turned weight.
    """
    axes = tuple(
        Axis(axis.windows, axis.kernel, 1, axis.dilation * (axis.kernel - 1) - axis.padding, axis.dilation)
        for axis in ctx.axes
    )
    turned = _turn(_grouped(ctx.weight, ctx.groups))
    product = _Product(ctx, dz, axes, turned, _by_row(dz, axes, turned), gradient=True)
    for block in product.blocks:
        columns = product.columns.of(block)
        product.into(product.of(dx, block), columns)
        product.add(product.of(x, block), columns)
    dweight = _turn(product.weight_gradient(turned.shape))
    return np.ascontiguousarray(dweight).reshape(ctx.weight.shape)


def _backward(ctx, x, dz, dx):
    """Return dweight and fill dx, for any stride: unfold x for the one, fold back for the other."""
    weight = _grouped(ctx.weight, ctx.groups)
    product = _Product(ctx, x, ctx.axes, weight, by_row=False, gradient=True)
    dx[...] = 0
    for block in product.blocks:
        gradient = product.of(dz, block)
        product.add(gradient, product.columns.of(block))
        np.matmul(product.weights[0].swapaxes(1, 2), gradient, out=product.columns.room(block))
        product.columns.fold(dx, block)
    return np.ascontiguousarray(product.weight_gradient(weight.shape)).reshape(ctx.weight.shape)


def _turn(weight):
    """Return a view of (groups, O, C, height, width) with O and C exchanged and the taps reversed."""
    return weight.swapaxes(1, 2)[..., ::-1, ::-1]
