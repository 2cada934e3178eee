"""Convolution of images."""

import numpy as np

from .. import _arguments as arguments
from .._arguments import integer, pair
from ._convolution_call import run_backward, run_forward
from ._convolve import convolve, convolve_transposed
from ._windows import make_axes


def forward(
    ctx, x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1, channel_axis=1, out=None,
    weight_gradient=True, bias_gradient=True,
):  # fmt: skip
    """Convolve images: ``z[n, o, p] = bias[o] + sum of weight[o, c, tap] * x[n, c, p * stride + tap]``.

    Parameters
    ----------
    ctx : LayerContext
    x : ndarray of shape (N, C, H, W), or (N, H, W, C) with ``channel_axis=-1``
        float32, float64, float16 or bfloat16, in memory of any strides. Read only, and kept for the backward.
    weight : ndarray of shape (O, C / groups, kernel height, kernel width)
        Of x's dtype, or float32 for an x of a half type; in this order of axes for both layouts. Read again
        by the backward.
    bias : ndarray of shape (O,), optional
        Of one of the dtypes that the weight may have.
    stride, dilation : int or (int, int)
        Along H and W, as in `torch.nn.functional.conv2d`.
    padding : int, (int, int), "valid" or "same"
        Zeros around the images. "valid" is 0. "same" gives z the size of x and needs a stride of 1; of an odd
        number of zeros, the end gets one more.
    groups : int
        Group g of the outputs sees only group g of the channels. C of them: depthwise.
    channel_axis : {1, -1}
    out : ndarray, optional
        Where z is written: of z's shape and x's dtype, with any strides, not overlapping an argument.
    weight_gradient, bias_gradient : bool
        False for a frozen parameter: the backward returns None for its gradient. x is kept for that of the
        weight alone.

    Returns
    -------
    z : ndarray of shape (N, O, Ho, Wo), or (N, Ho, Wo, O)
        `out`, or a fresh array with the memory layout of x.
        ``Ho = (H + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1``.

    Raises
    ------
    TypeError, ValueError
        For arrays of other dtypes, shapes that do not fit together, images smaller than the window, an `out`
        that cannot be written.

    Notes
    -----
    Half types are computed in float32 and rounded once.

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
    groups = _check(x, weight, bias, groups, channel_axis)
    images = np.moveaxis(x, channel_axis, 1)
    stride, dilation = pair("stride", stride, 1), pair("dilation", dilation, 1)
    padding, uneven = padding_of(padding, weight.shape[2:], stride, dilation)
    axes = make_axes("x", images.shape[2:], weight.shape[2:], stride, padding, dilation, uneven)
    return run_forward(
        ctx, convolve, x, weight, bias, axes=axes, groups=groups, channels=len(weight),
        size=[axis.windows for axis in axes], channel_axis=channel_axis, out=out,
        weight_gradient=weight_gradient, bias_gradient=bias_gradient,
    )  # fmt: skip


def backward(ctx, dz, *, overwrite=False):
    """Gradients of images, weight and bias.

    Parameters
    ----------
    ctx : LayerContext
        From `forward`.
    dz : ndarray
        Of z's shape and dtype, in memory of any strides; read only.
    overwrite : bool
        Makes no difference: dx is of another shape than dz, or needs it until the end.

    Returns
    -------
    dx : ndarray
        Fresh, with the memory layout of x.
    dweight, dbias : ndarray or None
        Fresh, of the dtypes of weight and bias; None for a frozen parameter, and without a bias.

    Raises
    ------
    TypeError, ValueError
        For a dz that does not fit the result of the forward.
    """
    return run_backward(ctx, convolve_transposed, dz)


def padding_of(padding, kernel, stride, dilation):
    """Return the zeros at both ends, along H and along W, and how many more there are at the second end."""
    if not isinstance(padding, str):
        return pair("padding", padding, 0), (0, 0)
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding != "same":
        raise ValueError(
            f'padding must be "valid", "same" or one integer or two, (along H, along W), got {padding!r}'
        )
    if tuple(stride) != (1, 1):
        raise ValueError(f'padding="same" needs a stride of 1, got stride {tuple(stride)}')
    total = [step * (length - 1) for step, length in zip(dilation, kernel, strict=True)]
    return tuple(zeros // 2 for zeros in total), tuple(zeros % 2 for zeros in total)


def _check(x, weight, bias, groups, channel_axis):
    arguments.image_batch("x", x, channel_axis)
    arguments.parameter("weight", weight, "(O, C / groups, kernel height, kernel width)", x.dtype)
    groups = integer("groups", groups, 1)
    channels = x.shape[channel_axis]
    wanted = weight.shape[1] * groups
    if wanted != channels or len(weight) % groups or 0 in weight.shape:
        raise ValueError(
            f"weight of shape {weight.shape} with {groups=} is for {wanted} channels and a multiple of "
            f"{groups} outputs; x of shape {x.shape} with {channel_axis=} has {channels} channels"
            f"{arguments.channel_axis_hint(x.shape, wanted, channel_axis)}"
        )
    if bias is not None:
        arguments.parameter("bias", bias, "(O,)", x.dtype)
        arguments.same_shape("bias", bias, weight.shape[:1], f"one per output of weight {weight.shape}")
    return groups
