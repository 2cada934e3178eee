"""Elements left out at random, so that a network does not lean on any of them."""

import math

import numpy as np

from .._numbers import fraction
from . import _arguments as arguments
from ._select import select
from ._windows import some_samples


def forward(ctx, x, p=0.5, *, training=True, rng=None):
    """Set every element to 0 with probability p, and divide the others by 1 - p.

    Parameters
    ----------
    ctx : LayerContext
    x : ndarray of shape (N, ...)
        float32 or float64; read only.
    p : float in [0, 1]
    training : bool
        False leaves x alone.
    rng : numpy.random.Generator, optional
        A fresh one by default.

    Returns
    -------
    z : ndarray
        Fresh, or x itself if not in training. One bit per element is kept for the backward.

    Raises
    ------
    TypeError, ValueError
        For an x of another dtype and a p that is no probability.

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
    arguments.floats("x", x, "(N, ...)", leading=True)
    p = fraction("p", p)
    ctx.input_shape, ctx.dtype, ctx.kept = x.shape, x.dtype, None if not training or p == 0 else 1 - p
    if ctx.kept is None:
        return x
    rng = np.random.default_rng() if rng is None else rng
    each = math.prod(x.shape[1:])
    mask = np.empty((len(x), -(-each // 8)), np.uint8)
    z = np.empty_like(x)
    for some in some_samples(x.shape):
        keep = rng.random((len(x[some]), each), np.float32) >= p
        mask[some] = np.packbits(keep, axis=1)
        _apply(x[some], keep, ctx.kept, z[some])
    ctx.save_for_backward(mask=mask)
    return z


def backward(ctx, dz, *, overwrite=False):
    """Gradient of x: dz with the same elements left out.

    Parameters
    ----------
    ctx : LayerContext
        From `forward`.
    dz : ndarray
        Of z's shape and dtype.
    overwrite : bool
        True writes dx over dz.

    Returns
    -------
    tuple of ndarray
        dx alone: fresh, or dz itself.

    Raises
    ------
    TypeError, ValueError
        For a dz that does not fit the result of the forward.
    """
    arguments.gradient("dz", dz, ctx.input_shape, ctx.dtype)
    if ctx.kept is None:
        return (dz if overwrite else dz.copy(),)
    mask, each = ctx.saved["mask"], math.prod(ctx.input_shape[1:])
    dx = dz if overwrite else np.empty_like(dz)
    for some in some_samples(dz.shape):
        keep = np.unpackbits(mask[some], axis=1, count=each).view(bool)
        _apply(dz[some], keep, ctx.kept, dx[some])
    return (dx,)


def _apply(source, keep, kept, out):
    if kept == 0:
        out[...] = 0
        return
    select(np.divide(source, kept, out=out), keep.reshape(source.shape), out)
