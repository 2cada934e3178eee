"""Calls of the kernels for GPUs on tensors, with the arguments and results of `_kernels`.

The tensors are dense and on one GPU. Nothing here waits for the device, except the first forward of a layer
that may have guarded channels (`inplace_abn._cuda.guard.Guard`).
"""

import warnings
from functools import cache
from typing import NamedTuple

import torch

from .._cuda import describe, torch_calls
from .._cuda.guard import guard_of
from .._cuda.layer import INPLACE_ON_GPU
from ._tensors import VECTOR_DTYPES, gradients_like, vector

ALIGNMENT = 16  # bytes that a thread loads at once


class GpuContext(NamedTuple):
    """What a backward needs besides tensors that autograd saves.

    Attributes
    ----------
    state : tuple
        Of `torch_calls.forward`.
    has_weight, has_bias : bool
    slope_shape : torch.Size or None
    """

    state: tuple
    has_weight: bool
    has_bias: bool
    slope_shape: torch.Size | None


@cache
def is_usable():
    """Return True if the kernels can run; else warn once, since PyTorch's operations take more memory."""
    found = describe() if torch.version.hip is None else {"available": False, "reason": "it is no NVIDIA GPU"}
    if not found["available"]:
        warnings.warn(
            f"inplace_abn: no kernels for this GPU, PyTorch's own operations run instead: {found['reason']}",
            RuntimeWarning,
            stacklevel=2,
        )
    return found["available"]


def inverts(activation):
    """Return True if the backward computes y from z. For others, y is kept."""
    return activation in INPLACE_ON_GPU


def forward(x, weight, bias, residual, slope, norm, z=None):
    """Write z, or y if there is another tensor z, over x, and return a `GpuContext`."""
    guard = guard_of(norm.owner)
    state = _run(
        x, weight, bias, residual, slope, norm, z, guard, "inplace" if z is None else "pre_activation"
    )
    return GpuContext(state, weight is not None, bias is not None, None if slope is None else slope.shape)


def evaluate(x, weight, bias, residual, slope, norm):
    """Write z over x, without a context: for every activation."""
    _run(x, weight, bias, residual, slope, norm, None, None, "standard")


def backward(context, dz, kept, residual, overwrite):
    """Return the gradients of x, weight, bias, residual and slope."""
    dz, residual = _aligned(dz), _aligned(residual)
    dtype, channels = VECTOR_DTYPES[kept.dtype], kept.size(1)
    dx, dresidual = gradients_like(kept, dz, residual, overwrite)
    dweight, dbias, dslope = (
        torch.empty(channels, dtype=dtype, device=kept.device) if wanted else None
        for wanted in (context.has_weight, context.has_bias, context.slope_shape is not None)
    )
    torch_calls.backward(context.state, kept, dz, residual, dx, dresidual, dweight, dbias, dslope)
    if dslope is not None and context.slope_shape.numel() != channels:
        dslope = dslope.sum()
    if dslope is not None:
        dslope = dslope.view(context.slope_shape)
    return dx, dweight, dbias, dresidual, dslope


def _run(x, weight, bias, residual, slope, norm, z, guard, strategy):
    """Call the kernels with tensors as they take them, and return the state."""
    dtype, channels = VECTOR_DTYPES[x.dtype], x.size(1)
    weight, bias = vector("weight", weight, dtype, channels), vector("bias", bias, dtype, channels)
    running_mean = vector("running_mean", norm.running_mean, dtype, channels)
    running_var = vector("running_var", norm.running_var, dtype, channels)
    if slope is not None:
        slope = vector("slope", slope, dtype, None).expand(channels).contiguous()
    work = _aligned(x)
    state = torch_calls.forward(
        work, work if z is None else z, _aligned(residual), weight, bias, slope, running_mean, running_var,
        guard, norm.training, norm.momentum, norm.eps, norm.activation, norm.param, strategy,
    )  # fmt: skip
    if work is not x:
        x.copy_(work)
    if norm.training:
        for given, updated in ((norm.running_mean, running_mean), (norm.running_var, running_var)):
            if updated is not given:
                given.copy_(updated)
    return state


def _aligned(tensor):
    """Return a tensor, or a copy of it if its address is not a multiple of ALIGNMENT; None for None."""
    if tensor is None or tensor.data_ptr() % ALIGNMENT == 0:
        return tensor
    return tensor.detach().clone(memory_format=torch.preserve_format)
