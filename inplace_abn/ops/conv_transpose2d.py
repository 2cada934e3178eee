"""Transposed convolution of images."""

from .. import _arguments as arguments
from .._arguments import integer, pair
from ._convolution_call import run_backward, run_forward
from ._convolve import convolve, convolve_transposed
from ._layout import spatial_shape
from ._windows import Axis


def forward(
    ctx, x, weight, bias=None, *, stride=1, padding=0, output_padding=0, groups=1, dilation=1, channel_axis=1,
    out=None, weight_gradient=True, bias_gradient=True,
):  # fmt: skip
    """Transposed convolution: ``z[n, o, p * stride + tap * dilation] += weight[c, o, tap] * x[n, c, p]``.

    For all channels c of the group, pixels p and taps, starting from the bias, as in
    `torch.nn.functional.conv_transpose2d`.

    Parameters
    ----------
    ctx : LayerContext
    x : ndarray of shape (N, C, H, W), or (N, H, W, C) with ``channel_axis=-1``
        float32, float64, float16 or bfloat16, any strides. Read only, and kept for the backward.
    weight : ndarray of shape (C, O / groups, kernel height, kernel width)
        dtype of x, or float32 for a half type; the axes have this order for both layouts. Not copied: the
        backward reads the same array.
    bias : ndarray of shape (O,), optional
        dtype of x, or float32 for a half type.
    stride, dilation : int or (int, int)
        Along H and W.
    padding : int or (int, int)
        Number of rows and columns that are removed from z on both sides.
    output_padding : int or (int, int)
        Number of additional rows and columns at the end of z. Less than stride or dilation.
    groups : int
        Outputs of group g depend on the channels of group g only.
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
        ``Ho = (H - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1``.

    Raises
    ------
    TypeError, ValueError
        For other dtypes, shapes that do not match, results without pixels, and an `out` that is read-only,
        overlaps an argument or is kept by a live context.

    Notes
    -----
    Half types are computed in float32 and rounded once.

    References
    ----------
    Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016, section 4.

    Examples
    --------
    >>> import numpy as np
    >>> from inplace_abn.layers import LayerContext
    >>> ctx, x = LayerContext(), np.array([[[[1.0, 2.0]]]])
    >>> forward(ctx, x, np.ones((1, 1, 1, 2)), stride=2)
    array([[[[1., 1., 2., 2.]]]])
    >>> dx, dweight, dbias = backward(ctx, np.arange(4.0).reshape(1, 1, 1, 4))
    >>> dx, dweight, dbias
    (array([[[[1., 5.]]]]), array([[[[4., 7.]]]]), None)
    """
    groups = _check_arguments(x, weight, bias, groups, channel_axis)
    size = spatial_shape(x.shape, channel_axis)
    stride, dilation = pair("stride", stride, 1), pair("dilation", dilation, 1)
    padding, more = pair("padding", padding, 0), output_padding_of(output_padding, stride, dilation)
    axes = tuple(map(_axis, size, weight.shape[2:], stride, padding, dilation, more))
    if 0 in size or any(axis.length < 1 for axis in axes):
        raise ValueError(
            f"x with images of {size[0]} x {size[1]} and padding {padding} gives images without pixels"
        )
    return run_forward(
        ctx, convolve_transposed, x, weight, bias, axes=axes, groups=groups,
        channels=weight.shape[1] * groups, size=[axis.length for axis in axes], channel_axis=channel_axis,
        out=out, weight_gradient=weight_gradient, bias_gradient=bias_gradient,
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
    return run_backward(ctx, convolve, dz)


def output_padding_of(output_padding, stride, dilation):
    """Return `output_padding` along H and along W; it must be less than stride or dilation."""
    padding = pair("output_padding", output_padding, 0)
    if any(more >= max(steps) for more, *steps in zip(padding, stride, dilation, strict=True)):
        raise ValueError(
            f"output_padding must be less than stride or dilation, got {padding} for stride {tuple(stride)} "
            f"and dilation {tuple(dilation)}"
        )
    return padding


def _axis(size, kernel, stride, padding, dilation, more):
    """Return the `Axis` of the convolution from images of z to images of `size`.

    It has exactly `size` windows: a negative `end_padding` removes further ones if `more` exceeds the stride.
    """
    length = (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + more + 1
    return Axis(length, kernel, stride, padding, dilation, -max(0, more - stride + 1))


def _check_arguments(x, weight, bias, groups, channel_axis):
    arguments.image_batch("x", x, channel_axis)
    arguments.parameter("weight", weight, "(C, O / groups, kernel height, kernel width)", x.dtype)
    groups = integer("groups", groups, 1)
    channels, wanted = x.shape[channel_axis], len(weight)
    if wanted != channels or wanted % groups or 0 in weight.shape:
        raise ValueError(
            f"weight of shape {weight.shape} with {groups=} requires C = {wanted}, a multiple of "
            f"{groups}; x of shape {x.shape} with {channel_axis=} has C = {channels}"
            f"{arguments.channel_axis_hint(x.shape, wanted, channel_axis)}"
        )
    if bias is not None:
        outputs = weight.shape[1] * groups
        arguments.parameter("bias", bias, "(O,)", x.dtype)
        arguments.same_shape(
            "bias", bias, (outputs,), f"one per output of weight {weight.shape} with {groups=}"
        )
    return groups
