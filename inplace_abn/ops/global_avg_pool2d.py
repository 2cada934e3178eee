"""The mean of every channel of an image."""

import numpy as np

from . import _arguments as arguments


def forward(ctx, x, *, keepdims=False, channel_axis=1):
    """Mean of every channel of every image.

    Parameters
    ----------
    ctx : LayerContext
    x : ndarray of shape (N, C, H, W), or (N, H, W, C) with ``channel_axis=-1``
        float32 or float64; read only, and not kept.
    keepdims : bool
        True leaves the axes of H and W, of length 1, as `torch.nn.AdaptiveAvgPool2d(1)` does.
    channel_axis : {1, -1}

    Returns
    -------
    z : ndarray of shape (N, C), or with `keepdims` (N, C, 1, 1) or (N, 1, 1, C)

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
    arguments.channel_axis_of(channel_axis)
    arguments.floats("x", x, arguments.images(channel_axis))
    spatial = (2, 3) if channel_axis == 1 else (1, 2)
    count = x.shape[spatial[0]] * x.shape[spatial[1]]
    if count == 0:
        raise ValueError(f"x must have at least one pixel, got shape {x.shape}")
    ctx.input_shape, ctx.dtype = x.shape, x.dtype
    ctx.spatial, ctx.count, ctx.keepdims = spatial, count, keepdims
    return x.mean(axis=spatial, keepdims=keepdims)


def backward(ctx, dz, *, overwrite=False):
    """Gradient of x: every pixel's share of dz.

    Parameters
    ----------
    ctx : LayerContext
        From `forward`.
    dz : ndarray
        Of z's shape and dtype; read only.
    overwrite : bool
        Makes no difference: dx is of another shape than dz.

    Returns
    -------
    tuple of ndarray
        dx alone, fresh.

    Raises
    ------
    TypeError, ValueError
        For a dz that does not fit the result of the forward.
    """
    kept = enumerate(ctx.input_shape)
    if ctx.keepdims:
        shape = tuple(1 if axis in ctx.spatial else length for axis, length in kept)
    else:
        shape = tuple(length for axis, length in kept if axis not in ctx.spatial)
    arguments.gradient("dz", dz, shape, ctx.dtype)
    dx = np.empty(ctx.input_shape, ctx.dtype)
    dx[...] = (dz if ctx.keepdims else np.expand_dims(dz, ctx.spatial)) / ctx.count
    return (dx,)
