"""Average pooling of images."""

import numpy as np

from .. import _arguments as arguments
from .._dtypes import compute_dtype
from ._blocks import rounded_into, widened
from ._layout import layout_of
from ._windows import Block, make_pooling_axes, pooled_shape, sample_slices, taps


def forward(ctx, x, kernel_size, *, stride=None, padding=0, count_include_pad=True, channel_axis=1):
    """Mean of each window, as `torch.nn.functional.avg_pool2d`.

    Parameters
    ----------
    ctx : LayerContext
    x : ndarray of shape (N, C, H, W), or (N, H, W, C) with ``channel_axis=-1``
        float32, float64, float16 or bfloat16; read only, and not kept.
    kernel_size : int or (int, int)
    stride : int or (int, int), optional
        `kernel_size` by default.
    padding : int or (int, int)
        Zeros on both sides; at most half of the kernel.
    count_include_pad : bool
        True divides by the size of the window, False by the number of pixels in it that are not padding.
    channel_axis : {1, -1}

    Returns
    -------
    z : ndarray of shape (N, C, Ho, Wo), or (N, Ho, Wo, C)
        A fresh array in the memory layout of x. Half types are summed in float32 and rounded once.

    Raises
    ------
    TypeError, ValueError
        For an x of another dtype or shape, and windows that are too large for it.

    Examples
    --------
    >>> import numpy as np
    >>> from inplace_abn.layers import LayerContext
    >>> ctx = LayerContext()
    >>> forward(ctx, np.array([[[[1.0, 2.0], [4.0, 3.0]]]]), 2)
    array([[[[2.5]]]])
    >>> backward(ctx, np.ones((1, 1, 1, 1)))
    (array([[[[0.25, 0.25],
             [0.25, 0.25]]]]),)
    """
    axes = make_pooling_axes(x, kernel_size, stride, padding, 1, channel_axis)
    ctx.axes, ctx.channel_axis, ctx.input_shape, ctx.dtype = axes, channel_axis, x.shape, x.dtype
    ctx.layout = layout_of(x, channel_axis)
    ctx.counts = _counts(axes, count_include_pad).astype(compute_dtype(x.dtype))
    z = ctx.layout.empty(pooled_shape(ctx), x.dtype)
    images, means = (np.moveaxis(array, channel_axis, 1) for array in (x, z))
    for samples in sample_slices(z.shape):
        source = widened(images[samples])
        with rounded_into(ctx, means[samples]) as sums:
            sums[...] = 0
            for _, _, rows, columns in taps(axes, Block(slice(1), 0, axes[0].windows)):
                inside = sums[..., rows.first : rows.last, columns.first : columns.last]
                inside += source[..., rows.source, columns.source]
            sums /= ctx.counts
    return z


def backward(ctx, dz, *, overwrite=False):
    """Gradient of x: for each pixel, the sum of ``dz / count`` over the windows that contain it.

    Parameters
    ----------
    ctx : LayerContext
        From `forward`.
    dz : ndarray
        Shape and dtype of z.
    overwrite : bool
        True allows dz to be used as scratch memory.

    Returns
    -------
    tuple of ndarray
        (dx,): a fresh array in the memory layout of x.

    Raises
    ------
    TypeError, ValueError
        If dz does not have the shape and dtype of z.
    """
    arguments.gradient("dz", dz, pooled_shape(ctx), ctx.dtype)
    dx = ctx.layout.empty(ctx.input_shape, ctx.dtype)
    images, gradients = (np.moveaxis(array, ctx.channel_axis, 1) for array in (dx, dz))
    for samples in sample_slices(dz.shape):
        gradient = widened(gradients[samples])
        own = overwrite or gradient.dtype != dz.dtype
        share = np.divide(gradient, ctx.counts, out=gradient if own else None)
        with rounded_into(ctx, images[samples]) as sums:
            sums[...] = 0
            for _, _, rows, columns in taps(ctx.axes, Block(slice(1), 0, ctx.axes[0].windows)):
                inside = share[..., rows.first : rows.last, columns.first : columns.last]
                sums[..., rows.source, columns.source] += inside
    return (dx,)


def _counts(axes, count_include_pad):
    """Return the divisors of the sums of the windows, an array of shape (Ho, Wo)."""
    lengths = []
    for axis in axes:
        starts = np.arange(axis.windows) * axis.stride - axis.padding
        pixels = np.minimum(starts + axis.kernel, axis.length) - np.maximum(starts, 0)
        lengths.append(np.full(axis.windows, axis.kernel) if count_include_pad else pixels)
    return np.outer(*lengths)
