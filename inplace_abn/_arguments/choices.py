"""Checks of arguments that are one of a few values: names, dtypes, the channel axis."""

import difflib

import numpy as np

from .._dtypes import FULL, cast_code, is_half, is_supported


def choice(name, value, valid, aliases=None):
    """Return the element of `valid` that equals `value`; the error lists all of them.

    With `aliases`, a dict of other names to valid ones, the error suggests the nearest name.
    """
    if isinstance(value, (str, int, np.integer)) and not isinstance(value, bool):
        for one in valid:
            if value == one:
                return one
    hint = _suggestion(value.lower(), valid, aliases) if aliases and isinstance(value, str) else ""
    raise ValueError(f"{name} must be one of {', '.join(map(repr, valid))}, got {value!r}{hint}")


def _suggestion(value, valid, aliases):
    near = difflib.get_close_matches(value, [*aliases, *valid], n=1)
    return f"; did you mean {aliases.get(near[0], near[0])!r}?" if near else ""


def channel_axis(name, value):
    """Return `value` as 1 or -1."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value in (1, -1):
        return int(value)
    raise ValueError(f"{name} must be 1, for (N, C, ...), or -1, for (N, ..., C), got {value!r}")


def layer_dtype(dtype, *, half=False):
    """Return a layer's dtype as a numpy.dtype: float32 or float64, with `half` also float16 or bfloat16."""
    try:
        found = None if dtype is None else np.dtype(dtype)  # np.dtype(None) is float64
    except TypeError:
        found = None
    if found is None or not (found in FULL or (half and is_half(found))):
        more = ", 'float16', ml_dtypes.bfloat16" if half else ""
        raise ValueError(f"dtype must be one of 'float32', 'float64'{more}, got {dtype!r}")
    return found


def compatible_dtypes(x, *parameters, half=False):
    """Refuse an x whose dtype does not match the parameters of a layer.

    float64 needs float64 parameters. All other dtypes need float32 or, with `half`, their own. The check is
    here so that the message names x, which the user has passed, instead of a parameter. Everything else
    about x is checked by the functions that the layer calls.
    """
    if not isinstance(x, np.ndarray) or not is_supported(x.dtype):
        return
    needed = np.float64 if x.dtype.itemsize == 8 else np.float32
    dtypes = sorted({str(array.dtype) for array in parameters if array is not None and array.dtype in FULL})
    if len(dtypes) > 1:
        raise TypeError(
            f"the layer's parameters and buffers are {' and '.join(dtypes)}, expected one dtype; assign "
            f"array.astype(numpy.{needed.__name__}) to those of the other one"
        )
    for array in parameters:
        if array is None or (half and array.dtype == x.dtype):
            continue
        if array.dtype not in FULL and not (half and is_half(array.dtype)):
            raise TypeError(
                f"the layer's parameters must be float32 or float64, got {array.dtype}; assign "
                f"array.astype(numpy.{needed.__name__}) to them"
            )
        if array.dtype != needed:
            raise TypeError(
                f"x is {x.dtype} and the layer's parameters are {array.dtype}; pass "
                f"{cast_code('x', array.dtype)}, or make the layer with dtype=numpy.{needed.__name__}"
            )
