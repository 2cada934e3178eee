"""Operations of convolutional networks, as pairs of plain functions on NumPy arrays.

Every module here is one operation: ``forward(ctx, x, ...) -> z`` and
``backward(ctx, dz, *, overwrite=False) -> (dx, *gradients of the parameters)``. Arrays for the backward go
through ``ctx.save_for_backward(role=array)`` and ``ctx.saved``, and all that is small is an attribute of ctx.
Weights stay with their owner: what the backward reads is the array that the forward was given.

Arrays are float32, float64, float16 or bfloat16; half types are computed in float32, block by block, and
rounded once. Images are (N, C, H, W), or (N, H, W, C) with ``channel_axis=-1``, in memory of any strides: z
and dx have the memory layout of x. Everything is checked before the first write: an exception means untouched
arrays.
"""

from . import (
    activation,
    avg_pool2d,
    conv2d,
    conv_transpose2d,
    cross_entropy,
    dropout,
    flatten,
    global_avg_pool2d,
    group_norm,
    linear,
    max_pool2d,
    mean_squared_error,
    upsample_bilinear2d,
    upsample_nearest2d,
)

__all__ = [
    "activation",
    "avg_pool2d",
    "conv2d",
    "conv_transpose2d",
    "cross_entropy",
    "dropout",
    "flatten",
    "global_avg_pool2d",
    "group_norm",
    "linear",
    "max_pool2d",
    "mean_squared_error",
    "upsample_bilinear2d",
    "upsample_nearest2d",
]
