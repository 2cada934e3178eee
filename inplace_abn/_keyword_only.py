"""A decorator for keyword-only parameters: its error message lists the keywords."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def lists_keywords(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate `function` so that the TypeError for too many positional arguments lists the keywords.

    >>> @lists_keywords
    ... def scale(x, *, by=1):
    ...     return x * by
    >>> scale(2, by=3)
    6
    >>> scale(2, 3)
    Traceback (most recent call last):
    TypeError: scale() takes x only by position, got 2 positional arguments; pass the others by keyword: by=
    """
    code = function.__code__
    count = code.co_argcount
    allowed = " and ".join(code.co_varnames[:count])
    keywords = ", ".join(f"{name}=" for name in code.co_varnames[count : count + code.co_kwonlyargcount])

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if len(args) > count:
            raise TypeError(
                f"{function.__name__}() takes {allowed} only by position, got {len(args)} positional "
                f"arguments; pass the others by keyword: {keywords}"
            )
        return function(*args, **kwargs)

    return call
