"""Keyword-only parameters whose error message lists the keywords, at no cost for a correct call."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def hides_others(function: F) -> F:
    """Decorate `function` so that its signature shows keyword-only parameters instead of ``*others``.

    ``*others`` receives superfluous positional arguments, for `too_many`. The function itself is returned,
    because a wrapper would slow each call down. ``*others: NoReturn`` lets type checkers refuse them.

    >>> @hides_others
    ... def scale(x, *others, by=1):
    ...     if others:
    ...         raise too_many(scale, others)
    ...     return x * by
    >>> inspect.signature(scale)
    <Signature (x, *, by=1)>
    >>> scale(2, by=3)
    6
    >>> scale(2, 3)
    Traceback (most recent call last):
    TypeError: scale() takes x only by position, got 2 positional arguments; pass the others by keyword: by=
    """
    signature = inspect.signature(function)
    shown = [p for p in signature.parameters.values() if p.kind is not p.VAR_POSITIONAL]
    function.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    function.__annotations__.pop("others", None)
    return function


def too_many(function: Callable[..., Any], others: tuple[Any, ...]) -> TypeError:
    """Return the TypeError for `others`, the superfluous positional arguments of a call of `function`."""
    parameters = inspect.signature(function).parameters.values()
    allowed = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    keywords = ", ".join(f"{p.name}=" for p in parameters if p.kind is p.KEYWORD_ONLY)
    return TypeError(
        f"{function.__name__}() takes {' and '.join(allowed)} only by position, got "
        f"{len(allowed) + len(others)} positional arguments; pass the others by keyword: {keywords}"
    )
