"""Dropout: sets random elements to zero.

Srivastava et al. 2014, https://jmlr.org/papers/v15/srivastava14a.html.
"""

import math

import numpy as np

from .. import _arguments as arguments
from .._arguments import fraction
from ._blocks import rounded_into, widened
from ._layout import order_of
from ._select import select
from ._windows import sample_slices


def forward(ctx, x, p=0.5, *, training=True, rng=None):
    """Set every element to 0 with probability p, and divide the others by 1 - p.

    Parameters
    ----------
    ctx : LayerContext
    x : ndarray of shape (N, ...)
        float32, float64, float16 or bfloat16; read only.
    p : float in [0, 1]
        The probability that an element is set to 0.
    training : bool
        False returns x.
    rng : numpy.random.Generator, optional
        By default a new generator with a random seed.

    Returns
    -------
    z : ndarray
        A fresh array in the memory layout of x, or x itself if not in training. One bit per element is kept
        for the backward. The random numbers are assigned in memory order.

    Raises
    ------
    TypeError, ValueError
        For an x of another dtype and a p outside [0, 1].

    Examples
    --------
    >>> import numpy as np
    >>> from inplace_abn.layers import LayerContext
    >>> ctx = LayerContext()
    >>> z = forward(ctx, np.ones((1, 8)), 0.5, rng=np.random.default_rng(0))
    >>> z
    array([[2., 2., 2., 0., 0., 0., 0., 0.]])
    >>> ctx.saved["mask"].nbytes
    1
    >>> bool((backward(ctx, np.ones((1, 8)))[0] == z).all())
    True
    """
    arguments.batch("x", x, "(N, ...)", ellipsis=True)
    p = fraction("p", p)
    ctx.input_shape, ctx.dtype, ctx.layout = x.shape, x.dtype, order_of(x)
    ctx.keep_probability = None if not training or p == 0 else 1 - p
    if ctx.keep_probability is None:
        return x
    rng = np.random.default_rng() if rng is None else rng
    z = ctx.layout.empty(x.shape, x.dtype)
    source, result = ctx.layout.in_memory_order(x), ctx.layout.in_memory_order(z)
    sample_size = math.prod(source.shape[1:])
    mask = np.empty((len(source), -(-sample_size // 8)), np.uint8, like=x)
    for samples in sample_slices(source.shape):
        keep = rng.random((len(source[samples]), sample_size), np.float32) >= p
        mask[samples] = np.packbits(keep, axis=1)
        _apply(ctx, source[samples], keep, result[samples])
    ctx.save_for_backward(mask=mask)
    return z


def backward(ctx, dz, *, overwrite=False):
    """Gradient of x: dz with the same elements set to 0, and the others divided by 1 - p.

    Parameters
    ----------
    ctx : LayerContext
        From `forward`.
    dz : ndarray
        Shape and dtype of z.
    overwrite : bool
        True writes dx over dz, if dz has the memory layout of x.

    Returns
    -------
    tuple of ndarray
        (dx,): a fresh array in the memory layout of x, or dz itself.

    Raises
    ------
    TypeError, ValueError
        If dz does not have the shape and dtype of z.
    """
    arguments.gradient("dz", dz, ctx.input_shape, ctx.dtype)
    dx = dz if overwrite and ctx.layout.has(dz) else ctx.layout.empty(dz.shape, dz.dtype)
    if ctx.keep_probability is None:
        if dx is not dz:
            dx[...] = dz
        return (dx,)
    source, result = ctx.layout.in_memory_order(dz), ctx.layout.in_memory_order(dx)
    mask, sample_size = ctx.saved["mask"], math.prod(source.shape[1:])
    for samples in sample_slices(source.shape):
        keep = np.unpackbits(mask[samples], axis=1, count=sample_size).view(bool)
        _apply(ctx, source[samples], keep, result[samples])
    return (dx,)


def _apply(ctx, source, keep, out):
    """Write source / (1 - p) where `keep` is True, and 0 elsewhere."""
    if ctx.keep_probability == 0:
        out[...] = 0
        return
    with rounded_into(ctx, out) as scaled:
        np.divide(widened(source), ctx.keep_probability, out=scaled)
        select(scaled, keep.reshape(source.shape), scaled)
