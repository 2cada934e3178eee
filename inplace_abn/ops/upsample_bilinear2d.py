"""Bilinear interpolation of images to another size."""

import numpy as np

from .. import _arguments as arguments
from .._dtypes import compute_dtype
from ._blocks import rounded_into, widened
from ._resize import prepare


def forward(ctx, x, *, size=None, scale_factor=None, align_corners=False, channel_axis=1):
    """Bilinear interpolation, as `torch.nn.functional.interpolate` in mode "bilinear".

    ``z = A @ x @ B.T`` for each image, where A and B interpolate along H and along W.

    Parameters
    ----------
    ctx : LayerContext
    x : ndarray of shape (N, C, H, W), or (N, H, W, C) with ``channel_axis=-1``
        float32, float64, float16 or bfloat16; read only, and not kept.
    size : int or (int, int), optional
        Size of the result along H and W. Pass either this or `scale_factor`.
    scale_factor : float or (float, float), optional
        Size of the result divided by the size of x; the size is rounded down.
    align_corners : bool
        True aligns the centers of the corner pixels of z and x, False the corners of the images.
    channel_axis : {1, -1}

    Returns
    -------
    z : ndarray of shape (N, C, Ho, Wo), or (N, Ho, Wo, C)
        A fresh array in the memory layout of x. Half types are computed in float32 and rounded once. A value
        of x that is not finite gives NaN in its rows and columns.

    Raises
    ------
    TypeError, ValueError
        For an x of another dtype or shape or without pixels, and an invalid size.

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
    ctx.down, ctx.across = (
        _interpolation(*axis, align_corners).astype(compute_dtype(x.dtype))
        for axis in prepare(ctx, x, size, scale_factor, channel_axis)
    )
    z = ctx.layout.empty(ctx.output_shape, x.dtype)
    _apply(ctx, ctx.down, ctx.across, x, z)
    return z


def backward(ctx, dz, *, overwrite=False):
    """Gradient of x: ``dx = A.T @ dz @ B`` for each image.

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
    arguments.gradient("dz", dz, ctx.output_shape, ctx.dtype)
    dx = ctx.layout.empty(ctx.input_shape, ctx.dtype)
    _apply(ctx, ctx.down.T, ctx.across.T, dz, dx)
    return (dx,)


def _interpolation(before, after, step, align_corners):
    """Return the matrix of shape (after, before) that interpolates along one axis: two entries per row."""
    if align_corners:
        at = np.arange(after) * ((before - 1) / max(1, after - 1))
    else:
        step = before / after if step is None else step
        at = np.maximum(0, (np.arange(after) + 0.5) * step - 0.5)
    left = np.minimum(at.astype(int), before - 1)
    right = np.minimum(left + 1, before - 1)
    matrix = np.zeros((after, before))
    rows = np.arange(after)
    matrix[rows, left] = 1 - (at - left)
    matrix[rows, right] += at - left
    return matrix


def _apply(ctx, down, across, source, out):
    """Write ``down @ image @ across.T`` for each image of `source` to `out`, one sample at a time."""
    source, out = ctx.layout.in_memory_order(source), ctx.layout.in_memory_order(out)
    first = ctx.layout.memory_axis == 1
    shape = (source.shape[1], len(down), source.shape[3]) if first else (len(down), *source.shape[2:])
    between = np.empty(shape, down.dtype, like=source)
    ctx.temporary(between.nbytes)
    for image, target in zip(map(widened, source), out, strict=True):
        with rounded_into(ctx, target) as result:
            if first:
                np.matmul(down, image, out=between)
                np.matmul(between, across.T, out=result)
            else:
                np.matmul(down, image.reshape(len(image), -1), out=between.reshape(len(down), -1))
                np.matmul(across, between, out=result)
