"""Contexts of the core whose side data autograd saves as tensors, so that its hooks can offload all of it."""

from typing import Any, NamedTuple

from .. import _core
from ._synchronized import SynchronizedContext
from ._tensors import to_array, to_tensor


class _Apart(NamedTuple):
    """A context without its side data: bits of SiLU, channels of tiny weights.

    Attributes
    ----------
    state : dict
        Of `inplace_abn.functional.Context.state`.
    roles : tuple of str
        The keys of the arrays that are missing.
    """

    state: dict[str, Any]
    roles: tuple[str, ...]


def take_apart(context):
    """Return the context without side data, and this as tensors, none for most contexts."""
    if isinstance(context, SynchronizedContext):
        inner, sides = take_apart(context.context)
        return context._replace(context=inner), sides
    if type(context) is not _core.Context or context.nbytes == 0:
        return context, ()
    state, roles = context.state(), tuple(context.saved)
    return _Apart(state, roles), [to_tensor(state.pop(role)) for role in roles]


def roles_of(context):
    """Return the names of the side data that `take_apart` returned with a context."""
    if isinstance(context, SynchronizedContext):
        context = context.context
    return context.roles if isinstance(context, _Apart) else ()


def put_together(context, sides):
    """Return the context from what `take_apart` returned."""
    if isinstance(context, SynchronizedContext):
        return context._replace(context=put_together(context.context, sides))
    if not isinstance(context, _Apart):
        return context
    arrays = dict(zip(context.roles, map(to_array, sides), strict=True))
    return _core.context_from_state(context.state | arrays)
