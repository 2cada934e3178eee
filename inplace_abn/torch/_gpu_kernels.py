"""Calls of the kernels for GPUs on tensors, with the arguments and results of `_kernels`.

The tensors are dense and on one GPU. Nothing here waits for the device, except the first forward of a layer
that may have guarded channels (`inplace_abn._cuda.guard.Guard`).
"""

import warnings
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from .._cuda import describe, torch_calls
from .._cuda.guard import guard_of
from .._cuda.layer import INPLACE_ON_GPU, READ_TOTAL, STORE_OWN
from ._tensors import VECTOR_DTYPES, copy_back, gradients_like, vector

ALIGNMENT = 16  # bytes that a thread loads at once


class GpuContext(NamedTuple):
    """What a backward needs besides tensors that autograd saves.

    Attributes
    ----------
    state : tuple
        Of `torch_calls.forward`; None for an empty batch.
    has_weight, has_bias : bool
    slope_shape : torch.Size or None
    step : Step or None
        Of the forward, if processes exchange statistics.
    """

    state: tuple | None
    has_weight: bool
    has_bias: bool
    slope_shape: torch.Size | None
    step: object


@cache
def is_usable():
    """Return True if the kernels can run; else warn once, since PyTorch's operations take more memory."""
    gpu = describe() if torch.version.hip is None else {"available": False, "reason": "it is no NVIDIA GPU"}
    if not gpu["available"]:
        warnings.warn(
            f"inplace_abn: no kernels for this GPU, PyTorch's own operations run instead: {gpu['reason']}",
            RuntimeWarning,
            stacklevel=2,
        )
    return gpu["available"]


def inverts(activation):
    """Return True if the backward computes y from z. For others, y is kept."""
    return activation in INPLACE_ON_GPU


def forward(x, weight, bias, residual, slope, norm, z=None):
    """Write z, or y if there is another tensor z, over x, and return a `GpuContext`."""
    strategy = "inplace" if z is None else "pre_activation"
    state = _run(x, weight, bias, residual, slope, norm, z, guard_of(norm.owner), strategy)
    slope_shape = None if slope is None else slope.shape
    return GpuContext(state, weight is not None, bias is not None, slope_shape, norm.step)


def evaluate(x, weight, bias, residual, slope, norm):
    """Write z over x, without a context: for every activation."""
    _run(x, weight, bias, residual, slope, norm, None, None, "standard")


def backward(context, dz, kept, residual, overwrite):
    """Return the gradients of x, weight, bias, residual and slope; of parameters this process's share."""
    dz, residual = _aligned(dz), _aligned(residual)
    dtype, channels = VECTOR_DTYPES[kept.dtype], kept.size(1)
    dx, dresidual = gradients_like(kept, dz, residual, overwrite)
    slope_shape = context.slope_shape
    parameters = (
        torch_calls.empty(channels, dtype, kept) if context.has_weight else None,
        torch_calls.empty(channels, dtype, kept) if context.has_bias else None,
        None if slope_shape is None else torch_calls.empty(channels, dtype, kept),
    )
    arguments = context.state, kept, dz, residual, dx, dresidual
    if context.step is None:
        torch_calls.backward(*arguments, *parameters)
    else:
        _exchange_sums(context, arguments, parameters)
    dweight, dbias, dslope = parameters
    if dslope is not None:
        dslope = (dslope if slope_shape.numel() == channels else dslope.sum()).view(slope_shape)
    return dx, dweight, dbias, dresidual, dslope


def _run(x, weight, bias, residual, slope, norm, z, guard, strategy):
    """Call the kernels with tensors as they take them, and return the state."""
    dtype, channels = VECTOR_DTYPES[x.dtype], x.size(1)
    weight, bias = vector("weight", weight, dtype, channels), vector("bias", bias, dtype, channels)
    running_mean = vector("running_mean", norm.running_mean, dtype, channels)
    running_var = vector("running_var", norm.running_var, dtype, channels)
    if slope is not None:
        slope = vector("slope", slope, dtype, None).expand(channels).contiguous()
    if slope is not None or norm.step is not None:  # else the caller has checked
        _check_device(x, weight=weight, bias=bias, slope=slope, running_mean=running_mean)
    work = _aligned(x)
    batches = norm.batches if _kernels_can_count(norm.batches, x) else None
    arguments = (
        work, work if z is None else z, _aligned(residual), weight, bias, slope, running_mean, running_var,
        guard, norm.training, norm.momentum, norm.eps, norm.activation, norm.param, strategy,
    )  # fmt: skip
    exchange = None if norm.step is None else _exchange_statistics(x, norm.step, arguments)
    if x.numel() > 0:
        state = torch_calls.forward(*arguments, exchange, batches)
    else:  # there is nothing to launch
        state = _update_running(running_mean, running_var, norm.momentum, *exchange)
    if batches is None:
        norm.count_batch()
    if work is not x:
        x.copy_(work)
    if norm.training:
        copy_back((norm.running_mean, running_mean), (norm.running_var, running_var))
    return state


def _kernels_can_count(batches, x):
    return (
        type(batches) is torch.Tensor
        and batches.dtype is torch.int64
        and batches.get_device() == x.get_device()
        and x.numel() > 0  # else nothing is launched
    )


def _check_device(x, **tensors):
    device = x.get_device()
    for name, tensor in tensors.items():
        if tensor is not None and tensor.get_device() != device:
            raise ValueError(f"{name} must be on the device of x, {x.device}, got {tensor.device}")


# ---- synchronized statistics: the host waits for them, and exchanges them ----------------------------------


def _exchange_statistics(x, step, arguments):
    """Return the `exchange` of a forward with the statistics of all processes."""
    exchanged = torch.zeros(2, x.size(1), dtype=torch.float64, device=x.device)
    if x.numel() > 0:
        torch_calls.forward(*arguments, (STORE_OWN, exchanged, 0))
    mean, var, count = step.merged_statistics(*exchanged.cpu().numpy(), x.numel() // x.size(1))
    exchanged = torch.from_numpy(np.stack([mean, var])).to(x.device)
    return READ_TOTAL, exchanged, count


def _update_running(running_mean, running_var, momentum, _, exchanged, count):
    """Update the running statistics as the kernels do, in a process whose batch is empty."""
    if running_mean is None or count <= 1:
        return
    mean, var = exchanged
    running_mean.mul_(1 - momentum).add_(momentum * mean)
    running_var.mul_(1 - momentum).add_(momentum * count / (count - 1) * var)


def _exchange_sums(context, arguments, parameters):
    """Run a backward with the sums of all processes."""
    kept = arguments[1]
    exchanged = torch.zeros(2, kept.size(1), dtype=torch.float64, device=kept.device)
    with context.step.backward() as step:
        if context.state is None:
            for parameter in parameters:
                if parameter is not None:
                    parameter.zero_()
        else:
            torch_calls.backward(*arguments, *parameters, (STORE_OWN, exchanged, 0))
        totals = step.total_sums(exchanged.cpu().numpy())
    if context.state is not None:
        exchanged = torch.from_numpy(np.stack(totals)).to(kept.device)
        read = READ_TOTAL, exchanged, context.step.count
        torch_calls.backward(*arguments, None, None, None, read)


def _aligned(tensor):
    """Return a tensor, or a copy of it if its address is not a multiple of ALIGNMENT; None for None."""
    if tensor is None or tensor.data_ptr() % ALIGNMENT == 0:
        return tensor
    return tensor.detach().clone(memory_format=torch.preserve_format)
