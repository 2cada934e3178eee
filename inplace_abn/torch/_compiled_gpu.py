"""The operator of `_compiled` for tensors of a GPU: batch norm, and an activation that has an inverse there.

x is not overwritten. The backward needs the result and a tensor of bytes: what the kernels save per channel,
and behind it, in the same storage, xhat of guarded channels, of which the compiler need not know.
"""

from functools import cache

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from .._cuda import guard, torch_calls
from .._cuda.guard import Guard
from . import _gpu_kernels
from ._tensors import VECTOR_DTYPES, copy_dense, is_dense, laid_out_as, vector

_flexible = {"tags": (torch.Tag.flexible_layout,)} if hasattr(torch.Tag, "flexible_layout") else {}


@torch.compiler.assume_constant_result
def is_usable():
    """Return True if the kernels can run."""
    return _gpu_kernels.is_usable()


@torch.library.custom_op("inplace_abn::gpu_batch_norm", mutates_args=(), **_flexible)
def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, eps: float,
    activation: str, param: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return z, mean and unbiased variance of the batch, and what the backward needs besides z."""
    dtype, channels = VECTOR_DTYPES[x.dtype], x.size(1)
    work = _gpu_kernels._aligned(x if is_dense(x) else copy_dense(x))
    z, residual = torch.empty_like(work), None if residual is None else laid_out_as(residual, work)
    # With a momentum of 1, running statistics become those of the batch, whatever they were.
    mean, var = (torch_calls.empty(channels, dtype, x) for _ in range(2))
    _, saved, xhat, *_ = torch_calls.forward(
        work, z, _gpu_kernels._aligned(residual), vector("weight", weight, dtype, channels),
        vector("bias", bias, dtype, channels), None, mean, var, _guard_of(weight, x.get_device()), True,
        1.0, eps, activation, param, "inplace",
    )  # fmt: skip
    return z, mean, var, saved if xhat is None else _joined(saved, xhat)


@forward.register_fake
def _(x, weight, bias, residual, eps, activation, param):
    channels, dtype = x.size(1), VECTOR_DTYPES[x.dtype]
    mean, var = x.new_empty(channels, dtype=dtype), x.new_empty(channels, dtype=dtype)
    saved = x.new_empty(channels * (7 * dtype.itemsize + 4), dtype=torch.uint8)
    return copy_dense(x), mean, var, saved


@torch.library.custom_op("inplace_abn::gpu_batch_norm_backward", mutates_args=(), **_flexible)
def _backward(
    dz: Tensor, z: Tensor, saved: Tensor, residual: Tensor | None, activation: str, param: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, residual, weight and bias; without a residual, its gradient is empty."""
    channels, dtype = z.size(1), VECTOR_DTYPES[z.dtype]
    dz = _gpu_kernels._aligned(laid_out_as(dz, z))
    residual = None if residual is None else _gpu_kernels._aligned(laid_out_as(residual, z))
    whole = torch.empty(0, dtype=torch.uint8, device=z.device).set_(saved.untyped_storage())
    xhat = whole[_behind(saved.numel()) :] if whole.numel() > _behind(saved.numel()) else None
    kernels = torch_calls.layer_of(z, activation, "inplace", residual, xhat is not None)
    dx = torch.empty_like(z)
    dresidual = None if residual is None else torch.empty_like(z)
    dweight, dbias = (torch_calls.empty(channels, dtype, z) for _ in range(2))
    state = kernels, saved, xhat, True, param
    torch_calls.backward(state, z, dz, residual, dx, dresidual, dweight, dbias, None)
    return dx, z.new_empty(0) if dresidual is None else dresidual, dweight, dbias


@_backward.register_fake
def _(dz, z, saved, residual, activation, param):
    channels, dtype = z.size(1), VECTOR_DTYPES[z.dtype]
    dweight, dbias = z.new_empty(channels, dtype=dtype), z.new_empty(channels, dtype=dtype)
    return torch.empty_like(z), z.new_empty(0) if residual is None else torch.empty_like(z), dweight, dbias


def _save(ctx, inputs, output):
    _, weight, bias, residual, _, ctx.activation, ctx.param = inputs
    z, _, _, saved = output
    ctx.save_for_backward(z, saved, residual)
    ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (weight, bias)]


def _differentiate(ctx, dz, dmean, dvar, dsaved):
    z, saved, residual = ctx.saved_tensors
    dx, dresidual, *vectors = _backward(dz, z, saved, residual, ctx.activation, ctx.param)
    dweight, dbias = (
        None if dtype is None else tensor.to(dtype) for tensor, dtype in zip(vectors, ctx.dtypes, strict=True)
    )
    return dx, dweight, dbias, None if residual is None else dresidual, None, None, None


forward.register_autograd(_differentiate, setup_context=_save)


# ---- guarded channels --------------------------------------------------------------------------------------

_guards = {}  # address of a weight's storage -> (weak reference to the storage, Guard)


def _guard_of(weight, device):
    """Return the Guard of a weight: the compiler passes another tensor of the same storage in every call."""
    if weight is None:
        return _guard_without_weight(device)
    storage = weight.untyped_storage()
    reference, found = _guards.get(storage._cdata, (None, None))
    if reference is None or reference.expired():
        for key in [key for key, (old, _) in _guards.items() if old.expired()]:
            del _guards[key]
        found = Guard()
        _guards[storage._cdata] = StorageWeakRef(storage), found
    return found


@cache
def _guard_without_weight(device):
    return Guard()


def forget(module):
    """Let the next forward of a module, compiled or not, count its guarded channels anew."""
    guard.forget(module)
    weight = module._parameters.get("weight")
    if weight is not None and weight.device.type != "meta":
        _, found = _guards.get(weight.untyped_storage()._cdata, (None, None))
        if found is not None:
            found.forget()


def _behind(count):
    """Return where xhat starts behind `count` bytes: at a multiple of the alignment of vectors."""
    return -(-count // _gpu_kernels.ALIGNMENT) * _gpu_kernels.ALIGNMENT


def _joined(saved, xhat):
    """Return `saved` with xhat behind it in its storage."""
    start = _behind(saved.numel())
    whole = torch.empty(start + xhat.numel(), dtype=torch.uint8, device=saved.device)
    whole[: saved.numel()] = saved
    whole[start:] = xhat
    return whole[: saved.numel()]
