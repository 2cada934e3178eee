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
    """Convolution: ``z[n, o, p] = bias[o] + sum(weight[o, c, tap] * x[n, c, p * stride + tap * dilation])``.

    The sum is over channels c of the group and taps, as in `torch.nn.functional.conv2d`; x is padded.

    Parameters
    ----------
    ctx : LayerContext
    x : ndarray of shape (N, C, H, W), or (N, H, W, C) with ``channel_axis=-1``
        float32, float64, float16 or bfloat16, any strides. Read only, and kept for the backward.
    weight : ndarray of shape (O, C / groups, kernel height, kernel width)
        dtype of x, or float32 for a half type; the axes have this order for both layouts. Not copied: the
        backward reads the same array.
    bias : ndarray of shape (O,), optional
        dtype of x, or float32 for a half type.
    stride, dilation : int or (int, int)
        Along H and W.
    padding : int, (int, int), "valid" or "same"
        Zeros on both sides of the images. "valid" is 0. "same" gives z the size of x and requires a stride of
        1; if the total is odd, there is one more zero at the end.
    groups : int
        Outputs of group g depend on the channels of group g only. A depthwise convolution has C groups.
    channel_axis : {1, -1}
    out : ndarray, optional
        Array for z: shape of z, dtype of x, any strides, no overlap with another argument.
    weight_gradient, bias_gradient : bool
        False for a frozen parameter: the backward returns None for its gradient. x is kept only for the
        gradient of the weight.

    Returns
    -------
    z : ndarray of shape (N, O, Ho, Wo), or (N, Ho, Wo, O)
        `out`, or a fresh array in the memory layout of x.
        ``Ho = (H + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1``.

    Raises
    ------
    TypeError, ValueError
        For other dtypes, shapes that do not match, images smaller than the window, and an `out` that is
        read-only, overlaps an argument or is kept by a live context.

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
    groups = _check_arguments(x, weight, bias, groups, channel_axis)
    images = np.moveaxis(x, channel_axis, 1)
    stride, dilation = pair("stride", stride, 1), pair("dilation", dilation, 1)
    padding, end_padding = padding_of(padding, weight.shape[2:], stride, dilation)
    axes = make_axes("x", images.shape[2:], weight.shape[2:], stride, padding, dilation, end_padding)
    return run_forward(
        ctx, convolve, x, weight, bias, axes=axes, groups=groups, channels=len(weight),
        size=[axis.windows for axis in axes], channel_axis=channel_axis, out=out,
        weight_gradient=weight_gradient, bias_gradient=bias_gradient,
    )  # fmt: skip


def backward(ctx, dz, *, overwrite=False):
    """Gradients of x, weight and bias.

    Parameters
    ----------
    ctx : LayerContext
        From `forward`.
    dz : ndarray
        Shape and dtype of z, any strides; read only.
    overwrite : bool
        Ignored: dx has another shape than dz, or reads it until the end.

    Returns
    -------
    dx : ndarray
        A fresh array in the memory layout of x.
    dweight, dbias : ndarray or None
        Fresh arrays with the dtypes of weight and bias; None for a frozen parameter or a missing bias.

    Raises
    ------
    TypeError, ValueError
        If dz does not have the shape and dtype of z.
    """
    return run_backward(ctx, convolve_transposed, dz)


def padding_of(padding, kernel, stride, dilation):
    """Return the zeros on both sides, along H and along W, and the additional ones at the end."""
    if not isinstance(padding, str):
        return pair("padding", padding, 0), (0, 0)
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding != "same":
        raise ValueError(
            f'padding must be "valid", "same" or one integer or two, (along H, along W), got {padding!r}'
        )
    if tuple(stride) != (1, 1):
        raise ValueError(f'padding="same" requires a stride of 1, got stride {tuple(stride)}')
    total = [step * (length - 1) for step, length in zip(dilation, kernel, strict=True)]
    return tuple(zeros // 2 for zeros in total), tuple(zeros % 2 for zeros in total)


def _check_arguments(x, weight, bias, groups, channel_axis):
    arguments.image_batch("x", x, channel_axis)
    arguments.parameter("weight", weight, "(O, C / groups, kernel height, kernel width)", x.dtype)
    groups = integer("groups", groups, 1)
    channels = x.shape[channel_axis]
    wanted = weight.shape[1] * groups
    if wanted != channels or len(weight) % groups or 0 in weight.shape:
        grouped, outputs = "", ""
        if groups > 1:
            grouped, outputs = f" with {groups=}", f", and outputs that are a multiple of {groups}"
        raise ValueError(
            f"weight of shape {weight.shape}{grouped} requires C = {wanted}{outputs}; x of shape {x.shape} "
            f"with {channel_axis=} has C = {channels}"
            f"{arguments.channel_axis_hint(x.shape, wanted, channel_axis)}"
        )
    if bias is not None:
        arguments.parameter("bias", bias, "(O,)", x.dtype)
        arguments.same_shape("bias", bias, weight.shape[:1], f"one per output of weight {weight.shape}")
    return groups
