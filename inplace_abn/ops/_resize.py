"""Sizes of interpolated images."""

import math

from .. import _arguments as arguments
from .._arguments import pair
from ._layout import layout_of


def prepare(ctx, x, size, scale_factor, channel_axis):
    """Check the arguments of an interpolation and note on ctx what the backward needs.

    Returns
    -------
    list of (int, int, float or None)
        Along H and W: the size of x, of the result, and ``1 / scale_factor`` if that is given.
    """
    arguments.image_batch("x", x, channel_axis)
    before = x.shape[2:] if channel_axis == 1 else x.shape[1:3]
    after, steps = _target(before, size, scale_factor)
    if 0 in before:
        raise ValueError(f"x must have at least one pixel, got shape {x.shape}")
    ctx.input_shape, ctx.dtype, ctx.layout = x.shape, x.dtype, layout_of(x, channel_axis)
    if channel_axis == 1:
        ctx.output_shape = (*x.shape[:2], *after)
    else:
        ctx.output_shape = (x.shape[0], *after, x.shape[3])
    return list(zip(before, after, steps, strict=True))


def _target(before, size, scale_factor):
    """Return the size of the result, and the distance of its pixels in pixels of x if that is given."""
    if (size is None) == (scale_factor is None):
        raise ValueError(f"give either size or scale_factor, got {size=}, {scale_factor=}")
    if size is not None:
        return pair("size", size, 1), (None, None)
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
