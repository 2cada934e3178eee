"""Checks of arguments and their error messages, for all modules in Python; the C core has its own.

A check takes the name and the value of an argument, returns the value in the form that the caller needs, and
raises a TypeError or ValueError that names the argument, the expected value and the one it got.
"""

from .arrays import (
    batch,
    channel_axis_hint,
    channel_batch,
    gradient,
    image_batch,
    loss_gradient,
    output,
    parameter,
    plain_array,
    same_shape,
)
from .choices import channel_axis, choice, compatible_dtypes, layer_dtype
from .numbers import finite, fraction, integer, not_negative, number, pair, positive

__all__ = [
    "batch",
    "channel_axis",
    "channel_axis_hint",
    "channel_batch",
    "choice",
    "compatible_dtypes",
    "finite",
    "fraction",
    "gradient",
    "image_batch",
    "integer",
    "layer_dtype",
    "loss_gradient",
    "not_negative",
    "number",
    "output",
    "pair",
    "parameter",
    "plain_array",
    "positive",
    "same_shape",
]
