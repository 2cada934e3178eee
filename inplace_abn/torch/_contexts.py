"""Contexts of the core without their side data, which autograd saves as tensors: hooks can move it then."""

from typing import Any, NamedTuple

from .. import _core
from ._synchronized import SynchronizedContext
from ._tensors import to_array, to_tensor


class _WithoutSideData(NamedTuple):
    """A context without its side data: branch mask, guarded channels and escaped elements.

    Attributes
    ----------
    state : dict
        Of `inplace_abn.functional.Context.state`.
    roles : tuple of str
        The keys of the arrays that are missing.
    """

    state: dict[str, Any]
    roles: tuple[str, ...]


def detach_side_data(context):
    """Return the context without side data, and the side data as tensors. Most contexts have none."""
    if isinstance(context, SynchronizedContext):
        inner, side_data = detach_side_data(context.context)
        return context._replace(context=inner), side_data
    if type(context) is not _core.Context or context.nbytes == 0:
        return context, ()
    state, roles = context.state(), tuple(context.saved)
    return _WithoutSideData(state, roles), [to_tensor(state.pop(role)) for role in roles]


def roles_of(context):
    """Return the names of the side data that `detach_side_data` returned with a context."""
    if isinstance(context, SynchronizedContext):
        context = context.context
    return context.roles if isinstance(context, _WithoutSideData) else ()


def attach_side_data(context, side_data):
    """Return the context from what `detach_side_data` returned."""
    if isinstance(context, SynchronizedContext):
        return context._replace(context=attach_side_data(context.context, side_data))
    if not isinstance(context, _WithoutSideData):
        return context
    arrays = dict(zip(context.roles, map(to_array, side_data), strict=True))
    return _core.context_from_state(context.state | arrays)
