"""What the layers ask of their arguments."""

import math
import operator


def choice(name, value, valid):
    """Return `value` if it is among the valid ones, which are listed otherwise."""
    if isinstance(value, bool) or value not in valid:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, valid))}, got {value!r}")
    return value


def whole(name, value, least):
    """Return `value` as an int of at least `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return number


def finite(name, value):
    """Return `value` as a float that is neither infinite nor NaN."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return number


def positive(name, value):
    """Return `value` as a float above 0."""
    number = finite(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be greater than 0, got {value!r}")
    return number


def fraction(name, value):
    """Return `value` as a float from 0 to 1."""
    number = finite(name, value)
    if not 0 <= number <= 1:
        raise ValueError(f"{name} must be from 0 to 1, got {value!r}")
    return number


def pair(name, value, least):
    """Return `value`, one whole number or two, as two: along H and W."""
    both = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(both) != 2:
        raise ValueError(f"{name} must be one whole number or two, for H and W, got {value!r}")
    return tuple(whole(name, number, least) for number in both)
