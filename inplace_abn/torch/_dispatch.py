"""Chooses how a call is computed: by the kernels, in place or not, or by PyTorch's operations."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from . import _compiled, _fake_kernels, _kernels
from ._activations import activate, check_activation
from ._hooks import active_hooks
from ._in_place import apply_in_place, apply_keep_pre_activation, evaluate
from ._synchronized import begin
from ._tensors import VECTOR_DTYPES, is_dense, is_transformed, share_storage

_PLAIN = (Parameter, Tensor)  # types without data besides their memory


def batch_norm(x, weight, bias, residual, slope, norm, *, overwrite):
    """Return ``activation(batch norm of x + residual)``; x is overwritten where that is allowed and possible.

    Parameters
    ----------
    x : Tensor of shape (N, C, ...)
    weight, bias : Tensor of shape (C,) or None
    residual : Tensor or None
    slope : Tensor or None
        For prelu.
    norm : Normalization
    overwrite : bool
        True if the caller does not need x any more.
    """
    if norm.exchange is not None and norm.step is None and not _fake_kernels.is_planning():
        with begin(x, norm) as step:
            norm = norm._replace(step=step)
            return batch_norm(x, weight, bias, residual, slope, norm, overwrite=overwrite)
    check_activation(norm.activation, slope)
    if torch.compiler.is_compiling() and _compiled.fits(x, residual, norm):
        norm.count_batch()
        return _compiled.batch_norm(x, weight, bias, residual, slope, norm)
    if norm.step is not None:
        _check_synchronized(x)
    elif not has_kernels(x) or not _fits(x, weight, bias, norm):
        return with_torch_operations(x, weight, bias, residual, slope, norm)
    if residual is not None and not _same_kind(residual, x):
        alone = norm._replace(activation="identity", param=1.0)
        y = batch_norm(x, weight, bias, None, None, alone, overwrite=overwrite)
        return activate(norm.activation, y + residual, norm.param, slope)
    hooks = active_hooks()
    overwrite = overwrite and _may_overwrite(x, hooks) and not _share_memory(x, residual)
    arguments = (x, weight, bias, residual, slope, norm, overwrite)
    if not torch.is_grad_enabled():
        return evaluate(*arguments)
    apply = apply_in_place if _kernels.inverts(x, norm) else apply_keep_pre_activation
    return apply(*arguments, hooks.is_ours)


def with_torch_operations(x, weight, bias, residual, slope, norm):
    """Return the same as `batch_norm`, by PyTorch's own operations. x is not overwritten."""
    norm.count_batch()
    y = F.batch_norm(
        x, norm.running_mean, norm.running_var, weight, bias, norm.training, norm.momentum, norm.eps
    )
    if residual is not None:
        y = y + residual
    return activate(norm.activation, y, norm.param, slope)


def has_kernels(x):
    """Return True if the kernels can take x now.

    The kernels read and write the memory of a tensor. Transformations, tracers and modes that intercept
    PyTorch's operations would not notice them. Fake tensors have kernels while a plan is made.
    """
    if type(x) is not Tensor or torch.compiler.is_compiling():
        return _fake_kernels.is_planning() and x.layout is torch.strided and x.dtype in VECTOR_DTYPES
    return (
        x.layout is torch.strided
        and _kernels.supports(x)
        and not torch._C._len_torch_dispatch_stack()
        and torch._C._get_tracing_state() is None
        and not is_transformed()
    )


def _may_overwrite(x, hooks):
    """Return True if autograd permits a write over x, and nothing needs the old values."""
    if x._base is not None or not is_dense(x):
        return False
    if x.requires_grad and (x.is_leaf or not torch.is_grad_enabled()):
        return False
    if x.is_inference() and not torch.is_inference_mode_enabled():
        return False
    return not hooks.has_others


def _check_synchronized(x):
    """Raise an error if the kernels cannot take x, since PyTorch's operations do not exchange statistics."""
    if not has_kernels(x):
        raise NotImplementedError(
            "synchronized statistics need a plain tensor, outside of transformations, tracers and modes; "
            f"got a {type(x).__name__} of {x.dtype} on {x.device}; use torch.nn.SyncBatchNorm"
        )


def _fits(x, weight, bias, norm):
    """Return False for arguments that PyTorch refuses, or for which it has a special case."""
    if not 2 <= x.dim() <= 5 or x.numel() <= x.size(1):  # empty, or one value per channel
        return False
    device, dtypes = x.get_device(), (x.dtype, VECTOR_DTYPES[x.dtype])
    for vector in (weight, bias, norm.running_mean, norm.running_var):
        if vector is None:
            continue
        is_plain = type(vector) in _PLAIN or _fake_kernels.is_planning()
        if not is_plain or vector.dtype not in dtypes or vector.get_device() != device:
            return False
    return True


def _share_memory(x, residual):
    return residual is not None and share_storage(residual, x)


def _same_kind(residual, x):
    """Return True if the kernels, which can take x, can add the residual."""
    return (
        type(residual) is type(x)
        and residual.shape == x.shape
        and residual.dtype is x.dtype
        and residual.layout is x.layout
        and residual.get_device() == x.get_device()
    )
