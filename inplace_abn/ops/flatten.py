"""Flattening of samples to vectors."""

import numpy as np

from .. import _arguments as arguments
from ._layout import order_of


def forward(ctx, x):
    """Reshape to (N, F): all axes but the first become one.

    Parameters
    ----------
    ctx : LayerContext
    x : ndarray of shape (N, ...)
        float32, float64, float16 or bfloat16.

    Returns
    -------
    z : ndarray of shape (N, F)
        A view of x if it is C-contiguous, else a copy. The features are in the order of the axes of x.

    Raises
    ------
    TypeError, ValueError
        For an x of another dtype or without axes.

    Examples
    --------
    >>> import numpy as np
    >>> from inplace_abn.layers import LayerContext
    >>> ctx, x = LayerContext(), np.zeros((2, 3, 4))
    >>> z = forward(ctx, x)
    >>> z.shape, np.shares_memory(z, x)
    ((2, 12), True)
    >>> (dx,) = backward(ctx, z, overwrite=True)
    >>> dx.shape
    (2, 3, 4)
    """
    arguments.batch("x", x, "(N, ...)", ellipsis=True)
    ctx.input_shape, ctx.dtype, ctx.layout = x.shape, x.dtype, order_of(x)
    return x.reshape(_flat(x.shape))


def backward(ctx, dz, *, overwrite=False):
    """Gradient of x: dz with the shape of x.

    Parameters
    ----------
    ctx : LayerContext
        From `forward`.
    dz : ndarray of shape (N, F)
        dtype of z.
    overwrite : bool
        True allows dx to be a view of dz.

    Returns
    -------
    tuple of ndarray
        (dx,), in the memory layout of x.

    Raises
    ------
    TypeError, ValueError
        If dz does not have the shape and dtype of z.
    """
    arguments.gradient("dz", dz, _flat(ctx.input_shape), ctx.dtype)
    dx = dz.reshape(ctx.input_shape)
    if ctx.layout.has(dx) and (overwrite or not np.may_share_memory(dx, dz)):
        return (dx,)
    fresh = ctx.layout.empty(ctx.input_shape, ctx.dtype)
    fresh[...] = dx
    return (fresh,)


def _flat(shape):
    return shape[0], int(np.prod(shape[1:]))
