"""All axes but the first in one."""

import numpy as np

from . import _arguments as arguments


def forward(ctx, x):
    """Join all axes but the first.

    Parameters
    ----------
    ctx : LayerContext
    x : ndarray of shape (N, ...)
        float32 or float64.

    Returns
    -------
    z : ndarray of shape (N, F)
        A view of x where its memory is in order, else a copy.

    Raises
    ------
    TypeError, ValueError
        For anything else than such an array.

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
    arguments.floats("x", x, "(N, ...)", leading=True)
    ctx.input_shape, ctx.dtype = x.shape, x.dtype
    return x.reshape(_flat(x.shape))


def backward(ctx, dz, *, overwrite=False):
    """Gradient of x: dz in the shape of x.

    Parameters
    ----------
    ctx : LayerContext
        From `forward`.
    dz : ndarray of shape (N, F)
    overwrite : bool
        True gives a view of dz, False a copy.

    Returns
    -------
    tuple of ndarray
        dx alone.

    Raises
    ------
    TypeError, ValueError
        For a dz that does not fit the result of the forward.
    """
    arguments.gradient("dz", dz, _flat(ctx.input_shape), ctx.dtype)
    return ((dz if overwrite else dz.copy()).reshape(ctx.input_shape),)


def _flat(shape):
    return shape[0], int(np.prod(shape[1:]))
