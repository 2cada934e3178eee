"""Calls of the kernels on tensors: of the core, or for tensors of a GPU of `_gpu_kernels`. x is dense.

A context holds no tensor: autograd saves them, and the backward passes them again. It can be used for several
backwards. `_contexts` lets autograd save the rest of what it holds.
"""

import torch

from .. import _core
from .._activations import ACTIVATIONS
from . import _fake_kernels, _gpu_kernels, _synchronized
from ._activations import activate, gradient, has_inverse
from ._tensors import (
    VECTOR_DTYPES,
    copy_back,
    core_array,
    core_array_like,
    core_vector,
    gradients_like,
    to_gradient,
    vector,
)


def on_gpu(tensor):
    """Return True for a tensor of an NVIDIA GPU."""
    return tensor.is_cuda


def supports(x):
    """Return True if there are kernels for the device and dtype of x."""
    return x.dtype in VECTOR_DTYPES and (x.is_cpu or (on_gpu(x) and _gpu_kernels.is_usable()))


def inverts(x, norm):
    """Return True if z alone is kept for the backward, which computes y from it; else y is kept."""
    return inverts_activation(norm.activation, norm.param, on_gpu(x))


def inverts_activation(activation, param, gpu):
    """Return `inverts` for the kernels of GPUs, or of the core."""
    return has_inverse(activation, param) and (not gpu or _gpu_kernels.inverts(activation))


def forward(x, weight, bias, residual, slope, norm, z=None):
    """Write over x and return the context.

    Without z, x becomes ``activation(y)``, where ``y = batch norm of x + residual``. With z, a tensor like
    x, x becomes y, and z becomes ``activation(y)``; every activation can do that.
    """
    if _fake_kernels.is_planning():
        return _fake_kernels.forward(x, weight, bias, slope, norm, z)
    if on_gpu(x):
        return _gpu_kernels.forward(x, weight, bias, residual, slope, norm, z)
    dtype, channels = VECTOR_DTYPES[x.dtype], x.size(1)
    weight, bias = vector("weight", weight, dtype, channels), vector("bias", bias, dtype, channels)
    running_mean = vector("running_mean", norm.running_mean, dtype, channels)
    running_var = vector("running_var", norm.running_var, dtype, channels)
    slope = vector("slope", slope, dtype, None)
    main = core_array(x)
    function, statistics = _core.forward, {"training": norm.training}
    if norm.step is not None:
        function, statistics = _core.normalize, _synchronized.merged_statistics(norm.step, main)
    _, context = function(
        main, **statistics, weight=core_vector(weight), bias=core_vector(bias),
        running_mean=core_vector(running_mean), running_var=core_vector(running_var),
        momentum=norm.momentum, eps=norm.eps, activation=norm.activation, activation_param=norm.param,
        strategy="inplace" if z is None else "pre_activation", residual=core_array_like(main, residual),
        slope=core_vector(slope), out=core_array_like(main, z), hold=False,
    )  # fmt: skip
    norm.count_batch()
    if norm.training:
        copy_back((norm.running_mean, running_mean), (norm.running_var, running_var))
    if norm.step is None:
        return context
    return _synchronized.SynchronizedContext(context, norm.step, weight is not None, bias is not None)


def forward_keeping_y(x, weight, bias, residual, slope, norm):
    """Write ``y = batch norm of x + residual`` over x; return ``z = activation(y)`` and the context."""
    if _is_fused(norm):
        z = torch.empty_like(x)
        return z, forward(x, weight, bias, residual, slope, norm, z)
    context = forward(x, weight, bias, residual, None, norm._replace(activation="identity", param=1.0))
    return activate(norm.activation, x, norm.param, slope), context


def evaluate(x, weight, bias, residual, slope, norm):
    """Return z without a context; x is overwritten."""
    if on_gpu(x) and norm.step is None and norm.activation in ACTIVATIONS:
        _gpu_kernels.evaluate(x, weight, bias, residual, slope, norm)
        return x
    if inverts(x, norm):
        forward(x, weight, bias, residual, slope, norm)
        return x
    return forward_keeping_y(x, weight, bias, residual, slope, norm)[0]


def backward(context, dz, kept, residual, overwrite, overwrite_kept=False):
    """Return the gradients of x, weight, bias, residual and slope.

    `kept` is what the forward has written over x. With `overwrite`, one of the gradients is written over dz.
    With `overwrite_kept`, `kept` may be overwritten, and the context is not used again.
    """
    if type(context) is _core.Context:
        return _backward_of_core(context, dz, kept, residual, overwrite, overwrite_kept)
    if isinstance(context, _fake_kernels.FakeContext):
        return _fake_kernels.backward(context, dz, kept, residual, overwrite)
    if isinstance(context, _gpu_kernels.GpuContext):
        return _gpu_kernels.backward(context, dz, kept, residual, overwrite)
    return _synchronized.backward(context, dz, kept, residual, overwrite)


def _backward_of_core(context, dz, kept, residual, overwrite, overwrite_kept):
    main = core_array(kept)
    dx, dresidual = gradients_like(kept, dz, residual, overwrite, overwrite_kept)
    _, dweight, dbias, dslope, _ = _core.backward(
        context, core_array_like(main, dz), overwrite=dx is dz,
        out=None if dx is dz else core_array_like(main, dx), keep=not overwrite_kept, kept=main,
        residual=core_array_like(main, residual), residual_out=core_array_like(main, dresidual),
    )  # fmt: skip
    return dx, to_gradient(dweight), to_gradient(dbias), dresidual, to_gradient(dslope)


def backward_keeping_y(context, dz, y, residual, norm, overwrite, overwrite_kept=False):
    """Return the gradients as `backward` does, for `forward_keeping_y`."""
    if _is_fused(norm):
        return backward(context, dz, y, residual, overwrite, overwrite_kept)
    dy = gradient(norm.activation, dz, y, norm.param)
    return backward(context, dy, y, residual, True, overwrite_kept)


def _is_fused(norm):
    """Return True if the core computes the activation in the same pass as y."""
    return norm.activation in ACTIVATIONS
