"""Group normalization: each sample is normalized by the mean and variance of groups of channels.

Wu, He 2018, https://arxiv.org/abs/1803.08494.
"""

import math

import numpy as np

from .. import _arguments as arguments
from .._arguments import integer, positive
from ._blocks import rounded_into, widened
from ._layout import layout_of
from ._windows import sample_slices


def forward(ctx, x, weight=None, bias=None, *, num_groups, eps=1e-5, channel_axis=1):
    """Group normalization: ``z = (x - mean) * inv_std * weight + bias``.

    mean and var are the mean and biased variance of each sample and group of channels, and
    ``inv_std = 1 / sqrt(var + eps)``, as in `torch.nn.functional.group_norm`.

    Parameters
    ----------
    ctx : LayerContext
    x : ndarray of shape (N, C, ...), or (N, ..., C) with ``channel_axis=-1``
        float32, float64, float16 or bfloat16; read only, and kept for the backward.
    weight, bias : ndarray of shape (C,), optional
        dtype of x, or float32 for a half type. None means a weight of 1 and a bias of 0. The weight is not
        copied: the backward reads the same array.
    num_groups : int
        A divisor of C. With C groups this is instance normalization.
    eps : float > 0
    channel_axis : {1, -1}

    Returns
    -------
    z : ndarray
        A fresh array with the shape, dtype and memory layout of x. Half types are computed in float32 and
        rounded once.

    Raises
    ------
    TypeError, ValueError
        For other dtypes, shapes that do not match, and a num_groups that does not divide C.

    Examples
    --------
    >>> import numpy as np
    >>> from inplace_abn.layers import LayerContext
    >>> ctx = LayerContext()
    >>> forward(ctx, np.array([[1.0, 3.0, 10.0, 30.0]]), num_groups=2).round(3)
    array([[-1.,  1., -1.,  1.]])
    >>> dx, dweight, dbias = backward(ctx, np.array([[1.0, 1.0, 0.0, 1.0]]))
    >>> bool(np.abs(dx).max() < 1e-5)
    True
    """
    channels, groups = _check(x, weight, bias, num_groups, channel_axis)
    eps = positive("eps", eps)
    ctx.layout, ctx.groups, ctx.channels = layout_of(x, channel_axis), groups, channels
    ctx.weight, ctx.bias_dtype = weight, None if bias is None else bias.dtype
    z = ctx.layout.empty(x.shape, x.dtype)
    mean, inv_std = np.empty((2, len(x), groups), like=x)
    shape = _Grouping(ctx, x)
    scale, shift = shape.per_channel(weight), shape.per_channel(bias)
    for samples in sample_slices(x.shape):
        centered = shape.grouped(x, samples)
        mean[samples] = centered.mean(axis=shape.axes, dtype=np.float64)
        centered = _centered(centered, shape.per_group(mean[samples]))
        # The mean of the centered values is not 0 but the rounding error of the mean.
        error = centered.mean(axis=shape.axes, dtype=np.float64)
        variance = np.square(centered).mean(axis=shape.axes, dtype=np.float64) - error**2
        inv_std[samples] = 1 / np.sqrt(variance + eps)
        with rounded_into(ctx, shape.view(z, samples)) as result:
            np.multiply(centered, shape.per_group(inv_std[samples]).astype(centered.dtype), out=result)
            if scale is not None:
                result *= scale
            if shift is not None:
                result += shift
        ctx.temporary(2 * centered.nbytes)
    ctx.save_for_backward(input=x, mean=mean, inv_std=inv_std)
    return z


def backward(ctx, dz, *, overwrite=False):
    """Gradients of x, weight and bias.

    With ``xhat = (x - mean) * inv_std`` and ``dy = dz * weight``:
    ``dx = inv_std * (dy - mean(dy) - xhat * mean(dy * xhat))`` with means over each sample and group,
    ``dweight = sum(dz * xhat)`` and ``dbias = sum(dz)``.

    Parameters
    ----------
    ctx : LayerContext
        From `forward`.
    dz : ndarray
        Shape and dtype of z; read only.
    overwrite : bool
        Ignored.

    Returns
    -------
    dx : ndarray
        A fresh array in the memory layout of x.
    dweight, dbias : ndarray of shape (C,) or None
        Fresh arrays with the dtypes of the parameters; None if the forward had none.

    Raises
    ------
    TypeError, ValueError
        If dz does not have the shape and dtype of z.
    """
    x, mean, inv_std = (ctx.saved[role] for role in ("input", "mean", "inv_std"))
    arguments.gradient("dz", dz, x.shape, x.dtype)
    dx, shape = ctx.layout.empty(x.shape, x.dtype), _Grouping(ctx, x)
    sums = np.zeros((2, ctx.channels))
    scale = shape.per_channel(ctx.weight)
    for samples in sample_slices(x.shape):
        xhat = _centered(shape.grouped(x, samples), shape.per_group(mean[samples]))
        xhat *= shape.per_group(inv_std[samples]).astype(xhat.dtype)
        dy = shape.grouped(dz, samples)
        sums += shape.sums(dy * xhat), shape.sums(dy)
        with rounded_into(ctx, shape.view(dx, samples)) as result:
            if scale is not None:
                dy = dy * scale
            first = dy.mean(axis=shape.axes, dtype=np.float64)
            second = np.multiply(dy, xhat, out=result).mean(axis=shape.axes, dtype=np.float64)
            xhat *= shape.per_group(second).astype(xhat.dtype)
            np.subtract(dy, shape.per_group(first).astype(dy.dtype), out=result)
            result -= xhat
            result *= shape.per_group(inv_std[samples]).astype(xhat.dtype)
        ctx.temporary(3 * xhat.nbytes)
    dweight, dbias = sums
    return (
        dx,
        None if ctx.weight is None else dweight.astype(ctx.weight.dtype),
        None if ctx.bias_dtype is None else dbias.astype(ctx.bias_dtype),
    )


def _check(x, weight, bias, num_groups, channel_axis):
    """Check the arguments; return the numbers of channels and of groups."""
    arguments.channel_batch("x", x, channel_axis)
    if x.ndim < 2:
        raise ValueError(f"x must have at least the axes N and C, got shape {x.shape}")
    channels, groups = x.shape[channel_axis], integer("num_groups", num_groups, 1)
    if channels % groups:
        raise ValueError(
            f"num_groups must divide the {channels} channels of x with {channel_axis=}, got {groups}"
        )
    for name, array in (("weight", weight), ("bias", bias)):
        if array is not None:
            arguments.parameter(name, array, "(C,)", x.dtype)
            arguments.same_shape(name, array, (channels,), "one per channel of x")
    if x.size == 0 and len(x):
        raise ValueError(f"x must have at least one value per group, got shape {x.shape}")
    return channels, groups


def _centered(values, mean):
    """Return ``values - mean`` for a float64 mean; the rounding error of the mean is subtracted as well."""
    rounded = mean.astype(values.dtype)
    values = np.subtract(values, rounded)
    values -= (mean - rounded).astype(values.dtype)
    return values


class _Grouping:
    """Reshapes batches, in memory order, so that groups have an axis: (N, G, C/G, S) or (N, S, G, C/G)."""

    def __init__(self, ctx, x):
        self.layout, group_channels = ctx.layout, ctx.channels // ctx.groups
        positions = math.prod(x.shape[1:]) // ctx.channels if ctx.channels else 0
        self.is_channels_first = ctx.layout.memory_axis == 1
        self.inner = (
            (ctx.groups, group_channels, positions)
            if self.is_channels_first
            else (positions, ctx.groups, group_channels)
        )
        self.axes = (2, 3) if self.is_channels_first else (1, 3)  # the axes within a group
        self.channels = ctx.channels

    def view(self, array, samples):
        """Return a grouped view of samples of a batch without gaps."""
        return self.layout.in_memory_order(array)[samples].reshape(-1, *self.inner)

    def grouped(self, array, samples):
        """Return grouped samples in the compute dtype: a view if possible, else a copy."""
        return widened(self.view(array, samples))

    def per_channel(self, parameter):
        """Return a parameter of shape (C,) in a shape that broadcasts; None for None."""
        if parameter is None:
            return None
        groups, group_channels = self.inner[:2] if self.is_channels_first else self.inner[1:]
        return widened(parameter).reshape(
            (groups, group_channels, 1) if self.is_channels_first else (groups, group_channels)
        )

    def per_group(self, values):
        """Return values of shape (n, G) in a shape that broadcasts."""
        return values[:, :, None, None] if self.is_channels_first else values[:, None, :, None]

    def sums(self, array):
        """Return the sum of each channel, in float64."""
        return array.sum(axis=(0, 3) if self.is_channels_first else (0, 1), dtype=np.float64).reshape(
            self.channels
        )
