"""The kernels for fake tensors: what a call allocates and keeps, without values, for `inplace_abn.plan`."""

import threading
from contextlib import contextmanager
from typing import NamedTuple

import torch

from .._activations import ACTIVATIONS
from ._tensors import gradients_like


class _Mode(threading.local):
    planning = False


_mode = _Mode()


def is_planning():
    """Return True inside `planning`: all tensors of this thread are fake."""
    return _mode.planning


@contextmanager
def planning():
    """Let batch norms of this thread take fake tensors inside the block."""
    _mode.planning = True
    try:
        yield
    finally:
        _mode.planning = False


class FakeContext(NamedTuple):
    """What a call keeps, apart from tensors that autograd saves.

    Attributes
    ----------
    vectors : tuple of Tensor or None
        Weight, bias and slope.
    branch_mask : Tensor or None
        One bit per element for activations with a minimum.
    """

    vectors: tuple
    branch_mask: torch.Tensor | None


def forward(x, weight, bias, slope, norm, z):
    """Return the context of a call that writes over x, and to z if that is given."""
    mask = None
    if z is None and norm.activation in ACTIVATIONS and ACTIVATIONS[norm.activation].minimum is not None:
        mask = x.new_empty((x.numel() + 7) // 8, dtype=torch.uint8)
    return FakeContext((weight, bias, slope), mask)


def backward(context, dz, kept, residual, overwrite):
    """Return the gradients of x, weight, bias, residual and slope, as `_kernels.backward`."""
    dx, dresidual = gradients_like(kept, dz, residual, overwrite)
    dweight, dbias, dslope = (None if one is None else torch.empty_like(one) for one in context.vectors)
    return dx, dweight, dbias, dresidual, dslope
