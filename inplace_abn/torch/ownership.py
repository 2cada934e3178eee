"""Decides whether a backward may overwrite the gradient that it is given.

A gradient may be referenced by hooks, `retain_grad`, `torch.autograd.grad`, another branch of the graph, or
through a view, a detached tensor or a NumPy array. It is overwritten only if all reference counts show that
there is no other reference.
"""

import sys
from functools import cache
from typing import ClassVar

import torch

from ._first_order import first_order

#: With fewer elements, allocating an array takes less time than reading the counts.
SMALL = 4096


def may_overwrite(dz):
    """Return True if only the calling backward refers to dz. Call it from the backward itself.

    The references of the caller are counted, so a call from another depth of the stack gives False.
    """
    if dz.numel() < SMALL or dz._base is not None:
        return False
    return all(count <= alone for count, alone in zip(_references(dz), _references_alone(), strict=True))


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
    return _Probe.counts


def _same(tensor):
    return tensor


class _Probe(torch.autograd.Function):
    """Counts the references to a gradient at the same depth of calls as `may_overwrite`."""

    counts: ClassVar = None

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @first_order
    def backward(ctx, dz):
        _count(dz)
        return dz


def _count(dz):
    _Probe.counts = _references(dz)
