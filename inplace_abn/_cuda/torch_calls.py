"""A layer's forward and backward on PyTorch's CUDA tensors, for `inplace_abn.torch`: few calls, no checks.

The caller has checked devices, dtypes, shapes and strides: x, residual, z, dz and dx have no gaps and one
memory format, parameters are contiguous, float64 for a float64 x and float32 for all others. Scratch memory
comes from PyTorch's allocator, so calls are safe in side streams and while a graph is captured; the stream
is the current one of the device.

The only call that waits for the device is the first of a layer that may have guarded channels: it reads
weight and bias. `guard.Guard` says why.
"""

from functools import lru_cache
from math import prod

import torch

from .layer import layer

_index_of = torch.Tensor.get_device
# The allocation of torch.compile's code: half the time of torch.empty, but on the current device only.
_empty_strided = getattr(torch._C._dynamo.guards, "_empty_strided_cuda", None)
_stream = torch._C._cuda_getCurrentRawStream if hasattr(torch._C, "_cuda_getCurrentRawStream") else None
_DTYPES = {
    torch.float32: "float32", torch.float64: "float64", torch.float16: "float16", torch.bfloat16: "bfloat16",
}  # fmt: skip


def forward(x, z, residual, weight, bias, slope, running_mean, running_var, guard, training, momentum, eps,
            activation, param, strategy, exchange=None, batches=None):  # fmt: skip
    """Write z, and xhat or y over x if `strategy` keeps that; return the state for `backward`.

    For "inplace", z may be x. guard is the layer's `guard.Guard` for "inplace" and "pre_activation", else
    None.
    exchange: None, or for synchronized statistics (STORE_OWN or READ_TOTAL, a float64 tensor of shape (2, C),
    elements per channel of all batches), as `Layer` says.
    batches: None, or an int64 tensor of one element, which a training call increments.
    """
    index = _index_of(x)
    stream = _stream(index)
    capacity, report = 0, None
    if guard is not None:
        capacity, report = guard.prepare(
            index, stream, lambda: map(_on_host, (weight, bias, slope)), _DTYPES[x.dtype], strategy
        )
    kernels = layer_of(x, activation, strategy, residual, capacity > 0)
    saved, scratch = empty(kernels.saved_bytes, torch.uint8, x), empty(kernels.scratch_bytes, torch.uint8, x)
    xhat = empty(capacity * kernels.slot_bytes, torch.uint8, x) if capacity else None
    kernels.forward(
        stream, x, z, residual, weight, bias, slope, running_mean, running_var, batches, saved, scratch, xhat,
        report, capacity, training, momentum, eps, param, kernels.most_bias, *(exchange or ()),
    )  # fmt: skip
    return kernels, saved, xhat, training, param


def backward(state, kept, dz, residual, dx, dresidual, dweight, dbias, dslope, exchange=None):
    """Write the gradients; tensors that are None are not wanted. dx may be dz or `kept`.

    `kept` is what the forward wrote over x, or x for "standard".
    """
    kernels, saved, xhat, training, param = state
    scratch = empty(kernels.scratch_bytes, torch.uint8, dz)
    kernels.backward(
        _stream(_index_of(dz)), kept, dz, residual, dx, dresidual, dweight, dbias, dslope, saved, scratch,
        xhat, training, param, *(exchange or ()),
    )  # fmt: skip


def empty(count, dtype, like):
    """Return a new tensor of one dimension on the device of another tensor."""
    if _empty_strided is None or _index_of(like) != torch._C._cuda_getDevice():
        return torch.empty(count, dtype=dtype, device=like.device)
    return _empty_strided((count,), (1,), dtype)


def layer_of(x, activation, strategy, residual, guard):
    """Return the `Layer` for calls with x, and with a residual if that is not None."""
    return _layer(
        _index_of(x), x.dtype, x.shape, x.is_contiguous(), activation, strategy, residual is not None, guard
    )


@lru_cache(maxsize=4096)  # as `layer` is: the arithmetic for its key takes longer than a look-up
def _layer(index, dtype, shape, is_contiguous, activation, strategy, residual, guard):
    images, channels, *lengths = shape
    return layer(
        index, _DTYPES[dtype], (images, channels, prod(lengths)), not is_contiguous, activation, strategy,
        residual, guard,
    )  # fmt: skip


def _on_host(tensor):
    return None if tensor is None else tensor.detach().cpu().numpy()
