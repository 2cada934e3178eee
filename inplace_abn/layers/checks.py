"""Checks of the arguments of layers."""

import difflib

import numpy as np

from ..ops import _arguments as arguments

_FLOATS = ("float16", "bfloat16", "float32", "float64")


def choice(name, value, valid, aliases=None):
    """Return `value` if it is valid; the error lists the valid ones.

    With `aliases`, a dict of other names to valid ones, the error suggests the nearest name.
    """
    if isinstance(value, (str, int, np.integer)) and not isinstance(value, bool):
        for one in valid:
            if value == one:
                return one
    hint = _meant(value.lower(), valid, aliases) if aliases and isinstance(value, str) else ""
    raise ValueError(f"{name} must be one of {', '.join(map(repr, valid))}, got {value!r}{hint}")


def _meant(value, valid, aliases):
    near = difflib.get_close_matches(value, [*aliases, *valid], n=1)
    return f"; did you mean {aliases.get(near[0], near[0])!r}?" if near else ""


def precision(dtype, *, half=False):
    """Return a layer's dtype as a numpy.dtype: float32 or float64, with `half` also float16 or bfloat16."""
    try:
        found = None if dtype is None else np.dtype(dtype)
    except TypeError:
        found = None
    # NumPy takes None for float64.
    if found is None or not (found in arguments.DTYPES or (half and arguments.is_half(found))):
        more = ", 'float16', ml_dtypes.bfloat16" if half else ""
        raise ValueError(f"dtype must be one of 'float32', 'float64'{more}, got {dtype!r}")
    return found


def goes_with(x, *arrays, half=False):
    """Refuse an x that does not go with the dtype of the layer's parameters.

    float64 goes with float64, all others with float32 or, with `half`, half types with themselves. The
    functions below the layer would name the parameter instead of x, which is what the user has passed.
    """
    if not isinstance(x, np.ndarray) or x.dtype.name not in _FLOATS:
        return  # refused by the functions below the layer
    needed = np.float64 if x.dtype.itemsize == 8 else np.float32
    for array in arrays:
        if array is None or (half and array.dtype == x.dtype):
            continue
        if array.dtype not in arguments.DTYPES and not (half and arguments.is_half(array.dtype)):
            raise TypeError(
                f"the layer's parameters must be float32 or float64, got {array.dtype}; give it those of "
                f"array.astype(numpy.{needed.__name__})"
            )
        if array.dtype != needed:
            raise TypeError(
                f"x is {x.dtype} and the layer's parameters are {array.dtype}; pass "
                f"{arguments.cast('x', array.dtype)}, or make the layer with dtype=numpy.{needed.__name__}"
            )
