"""Operations of convolutional networks, as pairs of functions on NumPy arrays.

Each module is one operation: ``forward(ctx, x, ...) -> z`` and ``backward(ctx, dz, *, overwrite=False) ->
(dx, *gradients of the parameters)``. The forward saves arrays for the backward with
``ctx.save_for_backward(role=array)``, and numbers and shapes as attributes of ctx. Weights are not copied:
the backward reads the array that was passed to the forward.

Arrays are float32, float64, float16 or bfloat16. Half types are computed in float32, block by block, and
rounded once. Images are (N, C, H, W), or (N, H, W, C) with ``channel_axis=-1``, with any strides; z and dx
have the memory layout of x. All arguments are checked before the first write: after an exception the arrays
are unchanged.

>>> import numpy as np
>>> from inplace_abn import layers, ops
>>> ctx = layers.LayerContext()
>>> z = ops.max_pool2d.forward(ctx, np.arange(16.0).reshape(1, 1, 4, 4), 2)
>>> z[0, 0]
array([[ 5.,  7.],
       [13., 15.]])
>>> (dx,) = ops.max_pool2d.backward(ctx, np.ones_like(z))
>>> dx[0, 0, 1]
array([0., 1., 0., 1.])
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
