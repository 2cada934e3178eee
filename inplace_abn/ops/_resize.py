"""The arguments of both interpolations: sizes and scale factors."""

import math

from .. import _arguments as arguments
from .._arguments import pair
from ._layout import image_shape, layout_of, spatial_shape


def prepare(ctx, x, size, scale_factor, channel_axis):
    """Check the arguments of an interpolation and set the attributes of ctx that the backward needs.

    Returns
    -------
    list of (int, int, float or None)
        For H and for W: the size of x, the size of the result, and ``1 / scale_factor`` or None.
    """
    arguments.image_batch("x", x, channel_axis)
    before = spatial_shape(x.shape, channel_axis)
    after, steps = _target(before, size, scale_factor)
    if 0 in before:
        raise ValueError(f"x must have at least one pixel, got shape {x.shape}")
    ctx.input_shape, ctx.dtype, ctx.layout = x.shape, x.dtype, layout_of(x, channel_axis)
    ctx.output_shape = image_shape(len(x), x.shape[channel_axis], after, channel_axis)
    return list(zip(before, after, steps, strict=True))


def _target(before, size, scale_factor):
    """Return the size of the result, and 1 / scale_factor or None, along H and along W."""
    if (size is None) == (scale_factor is None):
        raise ValueError(f"pass either size or scale_factor, got {size=}, {scale_factor=}")
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
        raise ValueError(
            f"scale_factor {scale_factor} gives a size of 0 for images of {before[0]} x {before[1]} pixels"
        )
    return after, tuple(1 / factor for factor in factors)
