"""Forward and backward of both convolutions: arrays, context and result of a call."""

import numpy as np

from .. import _arguments as arguments
from .._dtypes import compute_dtype
from ._convolve import Settings
from ._layout import image_shape, layout_of


def run_forward(
    ctx, compute, x, weight, bias, *, axes, groups, channels, size, channel_axis, out,
    weight_gradient, bias_gradient,
):  # fmt: skip
    """Compute z of `channels` channels and `size`, (H, W); set the attributes of ctx for `run_backward`.

    `compute` is `_convolve.convolve` or `_convolve.convolve_transposed`.
    """
    shape = image_shape(len(x), channels, size, channel_axis)
    layout = layout_of(x, channel_axis)
    if out is not None:
        arguments.output("out", out, shape, x.dtype, {"x": x, "weight": weight, "bias": bias})
    ctx.settings = Settings(axes, groups, layout.memory_axis == -1, compute_dtype(x.dtype))
    ctx.input_shape, ctx.output_shape, ctx.channel_axis, ctx.layout = x.shape, shape, channel_axis, layout
    ctx.weight, ctx.weight_gradient, ctx.dtype = weight, weight_gradient, x.dtype
    ctx.bias_dtype = bias.dtype if bias is not None and bias_gradient else None
    ctx.save_for_backward(input=x if weight_gradient else None)
    z = layout.empty(shape, x.dtype) if out is None else out
    compute(ctx, ctx.settings, _images(ctx, x), weight, _images(ctx, z), bias=bias)
    return z


def run_backward(ctx, compute, dz):
    """Return dx, dweight and dbias.

    `compute` is the transpose of that of `run_forward`: `convolve_transposed` for `convolve` and vice versa.
    """
    arguments.gradient("dz", dz, ctx.output_shape, ctx.dtype)
    dx = ctx.layout.empty(ctx.input_shape, ctx.dtype)
    x = _images(ctx, ctx.saved["input"]) if ctx.weight_gradient else None
    dweight = compute(ctx, ctx.settings, _images(ctx, dz), ctx.weight, _images(ctx, dx), correlated=x)
    return dx, dweight, _bias_gradient(ctx, dz)


def _images(ctx, array):
    """Return the view (N, C, H, W)."""
    return np.moveaxis(array, ctx.channel_axis, 1)


def _bias_gradient(ctx, dz):
    """Return the sum of dz over samples and pixels, or None for a missing or frozen bias."""
    if ctx.bias_dtype is None:
        return None
    others = (0, 2, 3) if ctx.channel_axis == 1 else (0, 1, 2)
    return dz.sum(axis=others, dtype=ctx.settings.dtype).astype(ctx.bias_dtype, copy=False)
