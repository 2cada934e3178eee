"""Larger images, by linear interpolation along both axes."""

import math

import numpy as np

from .._numbers import pair
from . import _arguments as arguments


def forward(ctx, x, *, size=None, scale_factor=None, channel_axis=1):
    """Interpolate images between the centres of their pixels.

    As `torch.nn.functional.interpolate` in mode "bilinear" with ``align_corners=False``.

    Parameters
    ----------
    ctx : LayerContext
    x : ndarray of shape (N, C, H, W), or (N, H, W, C) with ``channel_axis=-1``
        float32 or float64; read only, and not kept.
    size : int or (int, int), optional
        Of the result along H and W. Either this or `scale_factor`.
    scale_factor : float or (float, float), optional
        Size of the result by size of x, rounded down.
    channel_axis : {1, -1}

    Returns
    -------
    z : ndarray of shape (N, C, Ho, Wo), or (N, Ho, Wo, C)
        Fresh. A value of x that is not finite makes NaN of the rows and columns that it is in.

    Raises
    ------
    TypeError, ValueError
        For an x of another dtype or shape, without pixels, and a size that is none.

    Examples
    --------
    >>> import numpy as np
    >>> from inplace_abn.layers import LayerContext
    >>> ctx = LayerContext()
    >>> forward(ctx, np.array([[[[0.0, 4.0]]]]), scale_factor=2)
    array([[[[0., 1., 3., 4.],
             [0., 1., 3., 4.]]]])
    >>> backward(ctx, np.ones((1, 1, 2, 4)))
    (array([[[[4., 4.]]]]),)
    """
    arguments.channel_axis_of(channel_axis)
    arguments.floats("x", x, arguments.images(channel_axis))
    before = x.shape[2:] if channel_axis == 1 else x.shape[1:3]
    after, steps = _target(before, size, scale_factor)
    if 0 in before:
        raise ValueError(f"x must have at least one pixel, got shape {x.shape}")
    ctx.input_shape, ctx.dtype, ctx.channel_axis = x.shape, x.dtype, channel_axis
    ctx.down, ctx.across = (
        _interpolation(*lengths).astype(x.dtype) for lengths in zip(before, after, steps, strict=True)
    )
    z = np.empty(_shape(ctx), x.dtype)
    _apply(ctx, ctx.down, ctx.across, x, z)
    return z


def backward(ctx, dz, *, overwrite=False):
    """Gradient of x: of every pixel the values of dz that it went into, by their shares.

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
    arguments.gradient("dz", dz, _shape(ctx), ctx.dtype)
    dx = np.empty(ctx.input_shape, ctx.dtype)
    _apply(ctx, ctx.down.T, ctx.across.T, dz, dx)
    return (dx,)


def _target(before, size, scale_factor):
    """Return the size of the result, and by how many pixels of x one of the result moves on."""
    if (size is None) == (scale_factor is None):
        raise ValueError(f"give either size or scale_factor, got {size=}, {scale_factor=}")
    if size is not None:
        after = pair("size", size, 1)
        return after, tuple(old / new for old, new in zip(before, after, strict=True))
    factors = scale_factor if isinstance(scale_factor, (tuple, list)) else (scale_factor,) * 2
    try:
        factors = tuple(map(float, factors))
    except (TypeError, ValueError):
        raise TypeError(f"scale_factor must be one number or two, got {scale_factor!r}") from None
    if len(factors) != 2 or not all(0 < factor < math.inf for factor in factors):
        raise ValueError(f"scale_factor must be one positive number or two, got {scale_factor!r}")
    after = tuple(math.floor(old * factor) for old, factor in zip(before, factors, strict=True))
    if 0 in after and 0 not in before:
        raise ValueError(f"scale_factor {scale_factor} leaves nothing of {before[0]} x {before[1]} pixels")
    return after, tuple(1 / factor for factor in factors)


def _interpolation(before, after, step):
    """Return the matrix of shape (after, before) that interpolates along one axis: two entries in a row."""
    at = np.maximum(0, (np.arange(after) + 0.5) * step - 0.5)
    left = np.minimum(at.astype(int), before - 1)
    right = np.minimum(left + 1, before - 1)
    matrix = np.zeros((after, before))
    rows = np.arange(after)
    matrix[rows, left] = 1 - (at - left)
    matrix[rows, right] += at - left
    return matrix


def _shape(ctx):
    size = len(ctx.down), len(ctx.across)
    if ctx.channel_axis == 1:
        return ctx.input_shape[:2] + size
    return ctx.input_shape[:1] + size + ctx.input_shape[3:]


def _apply(ctx, down, across, source, out):
    """Multiply every image by `down` from the left and by `across` from the right, a sample at a time."""
    if ctx.channel_axis == 1:
        between = np.empty((source.shape[1], len(down), source.shape[3]), source.dtype)
    else:
        between = np.empty((len(down), source.shape[2], source.shape[3]), source.dtype)
    ctx.temporary(between.nbytes)
    for image, result in zip(source, out, strict=True):
        if ctx.channel_axis == 1:
            np.matmul(down, image, out=between)
            np.matmul(between, across.T, out=result)
        else:
            np.matmul(down, image.reshape(len(image), -1), out=between.reshape(len(down), -1))
            np.matmul(across, between, out=result)
