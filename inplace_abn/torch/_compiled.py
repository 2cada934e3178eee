"""Batch norm under `torch.compile`: an operator that keeps one tensor, and PyTorch's operations around it.

The operator returns y = batch norm of x + residual and keeps y alone for its backward. The activation is
traced in a region of `torch.utils.checkpoint`, so that the compiler computes it from y again in the backward.
x is not overwritten: nothing keeps it, and the compiler frees it.
"""

import pickle

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .. import _core
from .._cuda.layer import INPLACE_ON_GPU
from . import _compiled_gpu, _kernels
from ._activations import activate
from ._arguments import Normalization
from ._tensors import VECTOR_DTYPES, copy_dense, laid_out_as, to_array

_STATE = 1024  # bytes of a context's state without side data, besides 5 doubles per channel


@torch.compiler.assume_constant_result
def _is_exporting():
    """Return True in an export, which must not have the operators.

    Before PyTorch 2.7 it cannot be distinguished from a compilation. In some later versions, among them 2.11,
    `torch.compiler.is_exporting` is True in every function that is traced.
    """
    return getattr(torch.compiler, "is_exporting", lambda: True)()


def fits(x, residual, norm):
    """Return True if `batch_norm` here can take a call."""
    return (
        torch.is_grad_enabled()
        and norm.training
        and norm.exchange is None
        and (_compiled_gpu.is_usable() if _kernels.on_gpu(x) else x.is_cpu)
        and x.dtype in VECTOR_DTYPES
        and 2 <= x.dim() <= 5
        and x.numel() > x.size(1)
        and (residual is None or (residual.shape == x.shape and residual.dtype == x.dtype))
        and not _is_exporting()
        and not _is_transformed()
    )


@torch.compiler.assume_constant_result
def _is_transformed():
    """Return True inside of a transformation of torch.func, also while the compiler traces it."""
    return torch._C._are_functorch_transforms_active()


def batch_norm(x, weight, bias, residual, slope, norm):
    """Return ``activation(batch norm of x + residual)`` by the statistics of the batch, for compilers."""
    name, is_fused = norm.activation, norm.activation == "identity"
    if _kernels.on_gpu(x):
        is_fused = name in INPLACE_ON_GPU and slope is None and _kernels.inverts(x, norm)
        within = (name, norm.param) if is_fused else ("identity", 1.0)
        y, mean, var, _ = _compiled_gpu.forward(x, weight, bias, residual, norm.eps, *within)
    else:
        y, mean, var, _ = _forward(x, weight, bias, residual, norm.eps)
    if norm.running_mean is not None:
        with torch.no_grad():
            _blend(norm.running_mean, mean, norm.momentum)
            _blend(norm.running_var, var, norm.momentum)
    if is_fused:
        return y
    param = norm.param
    if slope is None:
        return checkpoint(lambda y: activate(name, y, param), y, use_reentrant=False)
    return checkpoint(lambda y, slope: activate(name, y, param, slope), y, slope, use_reentrant=False)


def _blend(running, batch, momentum):
    running.copy_(running + momentum * (batch.to(running.dtype) - running))


# ---- the operator ------------------------------------------------------------------------------------------


@torch.library.custom_op("inplace_abn::batch_norm", mutates_args=())
def _forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return y, mean and unbiased variance of the batch, and the state of the core's context."""
    y = copy_dense(x)
    norm = Normalization(None, None, True, 0.0, eps, "identity", 1.0, "torch.compile")
    residual = None if residual is None else laid_out_as(residual, y)
    context = _kernels.forward(y, weight, bias, residual, None, norm)
    state, dtype = context.state(), VECTOR_DTYPES[x.dtype]
    mean, var = (torch.tensor(row, dtype=dtype) for row in state["constants"][2:4])
    count = x.numel() // x.size(1)
    var *= count / (count - 1)
    side_data = {key: state.pop(key) for key in tuple(state) if key not in ("constants", "description")}
    return y, mean, var, _packed(state, side_data, x.size(1))


@_forward.register_fake
def _(x, weight, bias, residual, eps):
    channels, dtype = x.size(1), VECTOR_DTYPES[x.dtype]
    mean, var = x.new_empty(channels, dtype=dtype), x.new_empty(channels, dtype=dtype)
    return copy_dense(x), mean, var, x.new_empty(_STATE + 40 * channels, dtype=torch.uint8)


@torch.library.custom_op("inplace_abn::batch_norm_backward", mutates_args=())
def _backward(
    dy: Tensor, y: Tensor, packed: Tensor, residual: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias. That of the residual is dy."""
    context = _core.context_from_state(_unpacked(packed))
    residual = None if residual is None else laid_out_as(residual, y)
    dx, *vectors, _, _ = _kernels.backward(context, laid_out_as(dy, y), y, residual, False)
    unused = y.new_zeros(y.size(1), dtype=VECTOR_DTYPES[y.dtype])
    return dx, *(unused.clone() if vector is None else vector for vector in vectors)


@_backward.register_fake
def _(dy, y, packed, residual):
    channels, dtype = y.size(1), VECTOR_DTYPES[y.dtype]
    dweight, dbias = y.new_empty(channels, dtype=dtype), y.new_empty(channels, dtype=dtype)
    return torch.empty_like(y), dweight, dbias


def _save(ctx, inputs, output):
    _, weight, bias, residual, _ = inputs
    y, _, _, packed = output
    ctx.save_for_backward(y, packed, residual)
    ctx.dtypes = [None if vector is None else vector.dtype for vector in (weight, bias)]


def _differentiate(ctx, dy, dmean, dvar, dpacked):
    y, packed, residual = ctx.saved_tensors
    dx, *vectors = _backward(dy, y, packed, residual)
    dweight, dbias = (
        None if dtype is None else vector.to(dtype) for vector, dtype in zip(vectors, ctx.dtypes, strict=True)
    )
    return dx, dweight, dbias, None if residual is None else dy, None


_forward.register_autograd(_differentiate, setup_context=_save)


# ---- the state of a context in a tensor of known shape -----------------------------------------------------


def _packed(state, side_data, channels):
    """Return a state as a tensor of bytes, whose number depends only on the number of channels.

    The compiler needs a known size. Side data of another size is behind these bytes, in the same storage.
    """
    appended = pickle.dumps(side_data) if side_data else b""
    data = pickle.dumps((state, len(appended)))
    size = _STATE + 40 * channels
    packed = torch.empty(size + len(appended), dtype=torch.uint8)
    packed[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    if appended:
        packed[size:] = torch.frombuffer(bytearray(appended), dtype=torch.uint8)
    return packed[:size]


def _unpacked(packed):
    """Return the state and the side data as one dict."""
    state, nbytes = pickle.loads(to_array(packed).tobytes())
    if not nbytes:
        return state
    if packed.untyped_storage().nbytes() < packed.nbytes + nbytes:
        raise RuntimeError(
            "inplace_abn.torch: hooks have copied a tensor that a compiled forward saved, without the "
            "data of channels of tiny weights behind it; compile without them, or call revert(model) before"
        )
    whole = torch.empty(0, dtype=torch.uint8).set_(packed.untyped_storage())
    return state | pickle.loads(to_array(whole[packed.nbytes :]).tobytes())
