"""Decides whether a backward may overwrite the gradient that it is given, and what it has kept.

A gradient may be referenced by hooks, `retain_grad`, `torch.autograd.grad`, another branch of the graph, or
through a view, a detached tensor or a NumPy array. It is overwritten only if all reference counts show that
there is no other reference.
"""

import sys
from functools import cache
from typing import ClassVar

import torch

from ._first_order import first_order
from ._hooks import kept_by_ours

_retains_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)

#: With fewer elements, allocating an array takes less time than reading the counts.
SMALL = 4096


def may_overwrite(dz):
    """Return True if only the calling backward refers to dz. Call it from the backward itself.

    The references of the caller are counted, so a call from another depth of the stack gives False.
    """
    if dz.numel() < SMALL or dz._base is not None:
        return False
    return _is_alone(_references(dz), _references_alone())


def may_overwrite_kept(kept):
    """Return True if the calling backward is the last use of a tensor that the hooks of a model have kept.

    Then its graph is not retained, and all operations that saved the tensor, or a recipe that needs it, have
    run and freed theirs. Call it from the backward itself.
    """
    if kept.numel() < SMALL or _retains_graph():
        return False
    return _is_alone(_references(kept), _references_kept())


def _is_alone(found, alone):
    """Return True if no count of `_references` is above that of a tensor without other references."""
    return found[0] <= alone[0] and found[1] <= alone[1] and found[2] <= alone[2]


def _references(dz):
    """Return the references to the tensor, to its storage, and to its Python object."""
    return (
        dz._use_count(),
        torch._C._storage_Use_Count(dz.untyped_storage()._cdata),
        sys.getrefcount(dz),
    )


@cache
def _references_alone():
    """Return `_references` of a gradient without other references; they differ between versions of Python.

    Measured in the first backward and not at import: on a machine with a GPU a backward starts threads, after
    which a process must not be forked.
    """
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_same, _same):
        x = torch.ones(4, requires_grad=True)
        _Probe.apply(x).mul(2.0).mul(3.0).sum().backward()
    return _Probe.counts["dz"]


@cache
def _references_kept():
    """Return `_references` of a kept tensor without other references, as `_references_alone` does."""
    with torch.enable_grad(), kept_by_ours():
        _Probe.apply(torch.ones(4, requires_grad=True).mul(2.0)).sum().backward()
    return _Probe.counts["kept"]


def _same(tensor):
    return tensor


class _Probe(torch.autograd.Function):
    """Counts the references to a gradient and to a kept tensor, at the same depth of calls as above."""

    counts: ClassVar = {}

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    @first_order
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        _count("dz", dz)
        _count("kept", x)
        return dz


def _count(name, tensor):
    _Probe.counts[name] = _references(tensor)
