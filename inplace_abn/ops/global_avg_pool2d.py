"""Global average pooling of images."""

import numpy as np

from .. import _arguments as arguments
from .._dtypes import compute_dtype
from ._blocks import widened
from ._layout import image_shape, layout_of


def forward(ctx, x, *, keepdims=False, channel_axis=1):
    """Mean over the pixels of each channel and image.

    Parameters
    ----------
    ctx : LayerContext
    x : ndarray of shape (N, C, H, W), or (N, H, W, C) with ``channel_axis=-1``
        float32, float64, float16 or bfloat16; read only, and not kept.
    keepdims : bool
        True keeps the axes H and W with length 1, as `torch.nn.AdaptiveAvgPool2d(1)` does.
    channel_axis : {1, -1}

    Returns
    -------
    z : ndarray of shape (N, C), or with `keepdims` (N, C, 1, 1) or (N, 1, 1, C)
        A fresh array. Half types are summed in float32 and rounded once.

    Raises
    ------
    TypeError, ValueError
        For an x of another dtype or shape, or without pixels.

    Examples
    --------
    >>> import numpy as np
    >>> from inplace_abn.layers import LayerContext
    >>> ctx = LayerContext()
    >>> forward(ctx, np.array([[[[1.0, 2.0], [3.0, 4.0]]]]))
    array([[2.5]])
    >>> backward(ctx, np.ones((1, 1)))
    (array([[[[0.25, 0.25],
             [0.25, 0.25]]]]),)
    """
    arguments.image_batch("x", x, channel_axis)
    layout = layout_of(x, channel_axis)
    images = layout.in_memory_order(x)
    ctx.spatial = (2, 3) if layout.memory_axis == 1 else (1, 2)
    ctx.count = images.shape[ctx.spatial[0]] * images.shape[ctx.spatial[1]]
    if ctx.count == 0:
        raise ValueError(f"x must have at least one pixel, got shape {x.shape}")
    ctx.input_shape, ctx.dtype, ctx.layout, ctx.channel_axis = x.shape, x.dtype, layout, channel_axis
    ctx.keepdims = keepdims
    means = images.mean(axis=ctx.spatial, dtype=compute_dtype(x.dtype))
    z = layout.empty(_shape(ctx), x.dtype) if keepdims else np.empty(means.shape, x.dtype, like=x)
    z.reshape(means.shape)[...] = means
    return z


def backward(ctx, dz, *, overwrite=False):
    """Gradient of x: ``dz / (H * W)`` for every pixel.

    Parameters
    ----------
    ctx : LayerContext
        From `forward`.
    dz : ndarray
        Shape and dtype of z; read only.
    overwrite : bool
        Ignored: dx has another shape than dz.

    Returns
    -------
    tuple of ndarray
        (dx,): a fresh array in the memory layout of x.

    Raises
    ------
    TypeError, ValueError
        If dz does not have the shape and dtype of z.
    """
    arguments.gradient("dz", dz, _shape(ctx), ctx.dtype)
    dx = ctx.layout.empty(ctx.input_shape, ctx.dtype)
    shares = widened(dz.reshape(_shape(ctx, keepdims=False))) / ctx.count
    ctx.layout.in_memory_order(dx)[...] = np.expand_dims(shares, ctx.spatial)
    return (dx,)


def _shape(ctx, keepdims=None):
    """Return the shape of z."""
    samples, channels = ctx.input_shape[0], ctx.input_shape[ctx.channel_axis]
    if not (ctx.keepdims if keepdims is None else keepdims):
        return samples, channels
    return image_shape(samples, channels, (1, 1), ctx.channel_axis)
