"""Max pooling of images."""

import numpy as np

from .. import _arguments as arguments
from ._blocks import rounded_into, widened
from ._layout import layout_of
from ._select import select
from ._windows import Block, make_pooling_axes, pooled_shape, sample_slices, taps


def forward(ctx, x, kernel_size, *, stride=None, padding=0, dilation=1, channel_axis=1):
    """Maximum of each window, as `torch.nn.functional.max_pool2d`.

    The position of the maximum in its window is kept for the backward, one byte per element of z.

    Parameters
    ----------
    ctx : LayerContext
    x : ndarray of shape (N, C, H, W), or (N, H, W, C) with ``channel_axis=-1``
        float32, float64, float16 or bfloat16; read only, and not kept.
    kernel_size : int or (int, int)
        At most 256 values.
    stride : int or (int, int), optional
        `kernel_size` by default.
    padding : int or (int, int)
        Minus infinity on both sides; at most half of the kernel.
    dilation : int or (int, int)
    channel_axis : {1, -1}

    Returns
    -------
    z : ndarray of shape (N, C, Ho, Wo), or (N, Ho, Wo, C)
        A fresh array in the memory layout of x. NaN propagates. If several elements of a window are its
        maximum, the gradient goes to the first one.

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
    array([[[[4.]]]])
    >>> ctx.saved["indices"]
    array([[[[2]]]], dtype=uint8)
    >>> backward(ctx, np.ones((1, 1, 1, 1)))
    (array([[[[0., 0.],
             [1., 0.]]]]),)
    """
    axes = make_pooling_axes(x, kernel_size, stride, padding, dilation, channel_axis)
    if axes[0].kernel * axes[1].kernel > 256:
        raise ValueError(f"kernel_size must have at most 256 values, got {axes[0].kernel} x {axes[1].kernel}")
    ctx.axes, ctx.channel_axis, ctx.input_shape, ctx.dtype = axes, channel_axis, x.shape, x.dtype
    ctx.layout = layout_of(x, channel_axis)
    z = ctx.layout.empty(pooled_shape(ctx), x.dtype)
    indices = ctx.layout.empty(z.shape, np.uint8)
    first = [np.array([_first_tap(axis, o) for o in range(axis.windows)]) for axis in axes]
    images, maxima, offsets = (np.moveaxis(array, channel_axis, 1) for array in (x, z, indices))
    offsets[...] = first[0][:, None] * axes[1].kernel + first[1]
    for samples in sample_slices(z.shape):
        with rounded_into(ctx, maxima[samples]) as result:
            result[...] = -np.inf
            _forward(widened(images[samples]), result, offsets[samples], axes)
    ctx.save_for_backward(indices=indices)
    return z


def backward(ctx, dz, *, overwrite=False):
    """Gradient of x: for each pixel, the sum of dz over the windows that have their maximum there.

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
    arguments.gradient("dz", dz, pooled_shape(ctx), ctx.dtype)
    dx = ctx.layout.empty(ctx.input_shape, ctx.dtype)
    arrays = dx, dz, ctx.saved["indices"]
    images, gradients, offsets = (np.moveaxis(array, ctx.channel_axis, 1) for array in arrays)
    for samples in sample_slices(dz.shape):
        with rounded_into(ctx, images[samples]) as result:
            result[...] = 0
            _backward(result, widened(gradients[samples]), offsets[samples], ctx.axes)
    return (dx,)


def _first_tap(axis, output):
    """Return the first tap of a window that lies inside the image."""
    start = output * axis.stride - axis.padding
    return max(0, -(start // axis.dilation)) % axis.kernel


def _forward(images, maxima, offsets, axes):
    """Write the maxima of all windows, and the number of the tap of each; both have initial values."""
    larger = np.empty_like(maxima, bool)
    for i, j, rows, columns in taps(axes, Block(slice(1), 0, axes[0].windows)):
        inside = ..., slice(rows.first, rows.last), slice(columns.first, columns.last)
        values, maximum = images[..., rows.source, columns.source], maxima[inside]
        # Tap numbers increase: the largest number is the last tap that exceeds all before it.
        tap = np.greater(values, maximum, out=larger[inside]).view(np.uint8)
        tap *= np.uint8(i * axes[1].kernel + j)
        np.maximum(offsets[inside], tap, out=offsets[inside])
        np.maximum(maximum, values, out=maximum)


def _backward(images, gradients, offsets, axes):
    """Add the gradient of each window to the pixel of its maximum."""
    is_maximum, chosen = np.empty_like(offsets, bool), np.empty_like(gradients)
    for i, j, rows, columns in taps(axes, Block(slice(1), 0, axes[0].windows)):
        inside = ..., slice(rows.first, rows.last), slice(columns.first, columns.last)
        np.equal(offsets[inside], i * axes[1].kernel + j, out=is_maximum[inside])
        images[..., rows.source, columns.source] += select(
            gradients[inside], is_maximum[inside], chosen[inside]
        )
