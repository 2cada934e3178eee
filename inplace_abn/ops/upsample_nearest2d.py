"""Nearest-neighbor interpolation of images to another size."""

import numpy as np

from .. import _arguments as arguments
from .._dtypes import compute_dtype
from ._blocks import rounded_into
from ._resize import prepare


def forward(ctx, x, *, size=None, scale_factor=None, channel_axis=1):
    """Nearest-neighbor interpolation: ``z[i, j] = x[floor(i * step), floor(j * step)]``.

    step is ``1 / scale_factor``, or the size of x divided by `size`, as in
    `torch.nn.functional.interpolate` in mode "nearest".

    Parameters
    ----------
    ctx : LayerContext
    x : ndarray of shape (N, C, H, W), or (N, H, W, C) with ``channel_axis=-1``
        float32, float64, float16 or bfloat16; read only, and not kept.
    size : int or (int, int), optional
        Size of the result along H and W. Pass either this or `scale_factor`.
    scale_factor : float or (float, float), optional
        Size of the result divided by the size of x; the size is rounded down.
    channel_axis : {1, -1}

    Returns
    -------
    z : ndarray of shape (N, C, Ho, Wo), or (N, Ho, Wo, C)
        A fresh array in the memory layout of x.

    Raises
    ------
    TypeError, ValueError
        For an x of another dtype or shape or without pixels, and an invalid size.

    Examples
    --------
    >>> import numpy as np
    >>> from inplace_abn.layers import LayerContext
    >>> ctx = LayerContext()
    >>> forward(ctx, np.array([[[[1.0, 4.0]]]]), scale_factor=2)
    array([[[[1., 1., 4., 4.],
             [1., 1., 4., 4.]]]])
    >>> backward(ctx, np.ones((1, 1, 2, 4)))
    (array([[[[4., 4.]]]]),)
    """
    ctx.rows, ctx.columns = (_sources(*axis) for axis in prepare(ctx, x, size, scale_factor, channel_axis))
    z = ctx.layout.empty(ctx.output_shape, x.dtype)
    down = 1 if ctx.layout.memory_axis == 1 else 0
    for image, result in zip(*map(ctx.layout.in_memory_order, (x, z)), strict=True):
        tall = np.take(image, ctx.rows, axis=down)
        np.take(tall, ctx.columns, axis=down + 1, out=result, mode="clip")  # "raise" would buffer the result
        ctx.temporary(tall.nbytes)
    return z


def backward(ctx, dz, *, overwrite=False):
    """Gradient of x: the sum of dz over the copies of each pixel.

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
        (dx,): a fresh array in the memory layout of x. Half types are summed in float32 and rounded once.

    Raises
    ------
    TypeError, ValueError
        If dz does not have the shape and dtype of z.
    """
    arguments.gradient("dz", dz, ctx.output_shape, ctx.dtype)
    dx = ctx.layout.empty(ctx.input_shape, ctx.dtype)
    down, dtype = (1 if ctx.layout.memory_axis == 1 else 0), compute_dtype(dz.dtype)
    # The copies of a pixel are adjacent. If z is smaller than x, some pixels have no copy.
    used, starts = zip(
        *(np.unique(index, return_index=True) for index in (ctx.rows, ctx.columns)), strict=True
    )
    where = (slice(None),) * down + np.ix_(*used)
    for image, gradient in zip(*map(ctx.layout.in_memory_order, (dx, dz)), strict=True):
        rows = np.add.reduceat(gradient, starts[0], axis=down, dtype=dtype)
        with rounded_into(ctx, image) as result:
            result[...] = 0
            result[where] = np.add.reduceat(rows, starts[1], axis=down + 1)
        ctx.temporary(rows.nbytes)
    return (dx,)


def _sources(before, after, step):
    """Return the index of the source pixel along one axis, computed in float32 as in PyTorch."""
    step = np.float32(before / after if step is None else step)
    return np.minimum((np.arange(after, dtype=np.float32) * step).astype(np.intp), before - 1)
