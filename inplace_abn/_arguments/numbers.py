"""Checks of arguments that are numbers."""

import math
import operator


def number(name, value):
    """Return `value` as a float; an int too large for float becomes infinity."""
    is_text = isinstance(value, (str, bytes, bytearray))  # float() would parse it
    try:
        return float(None if is_text else value)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None


def finite(name, value):
    """Return `value` as a float that is neither infinite nor NaN."""
    found = number(name, value)
    if not math.isfinite(found):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return found


def positive(name, value):
    """Return `value` as a finite float above 0."""
    found = finite(name, value)
    if found <= 0:
        raise ValueError(f"{name} must be greater than 0, got {value!r}")
    return found


def not_negative(name, value):
    """Return `value` as a finite float of at least 0."""
    found = finite(name, value)
    if found < 0:
        raise ValueError(f"{name} must be at least 0, got {value!r}")
    return found


def fraction(name, value):
    """Return `value` as a float in [0, 1]."""
    found = number(name, value)
    if not 0 <= found <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value!r}")
    return found


def integer(name, value, least):
    """Return `value` as an int of at least `least`; bools and floats are refused."""
    try:
        found = operator.index(None if isinstance(value, bool) else value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if found < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return found


def pair(name, value, least):
    """Return `value`, one integer for both axes or two, as (along H, along W)."""
    both = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(both) != 2:
        raise ValueError(f"{name} must be one integer or two, (along H, along W), got {value!r}")
    return tuple(integer(name, one, least) for one in both)
