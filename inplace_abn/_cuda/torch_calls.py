"""A layer's forward and backward on PyTorch's CUDA tensors, for `inplace_abn.torch`: few calls, no checks.

The caller has checked devices, dtypes, shapes and strides: x, residual, z, dz and dx have no gaps and one
memory format, parameters are contiguous, float64 for a float64 x and float32 for all others. Scratch memory
comes from PyTorch's allocator, so calls are safe in side streams and while a graph is captured; the stream
is the current one of the device.

The only call that waits for the device is the first of a layer that may have guarded channels: it reads
weight and bias. `guard.Guard` says why.
"""

import torch

from .layer import layer

_index_of = torch.Tensor.get_device
_stream = torch._C._cuda_getCurrentRawStream if hasattr(torch._C, "_cuda_getCurrentRawStream") else None
_DTYPES = {
    torch.float32: "float32", torch.float64: "float64", torch.float16: "float16", torch.bfloat16: "bfloat16",
}  # fmt: skip


def forward(x, z, residual, weight, bias, slope, running_mean, running_var, guard, training, momentum, eps,
            activation, param, strategy, exchange=None):  # fmt: skip
    """Write z, and xhat or y over x if `strategy` keeps that; return the state for `backward`.

    For "inplace", z may be x. guard is the layer's `guard.Guard` for "inplace" and "pre_activation", else
    None.
    exchange: None, or for synchronized statistics (STORE_OWN or READ_TOTAL, a float64 tensor of shape (2, C),
    elements per channel of all batches), as `Layer` says.
    """
    shape, index = x.shape, _index_of(x)
    images, channels = shape[0], shape[1]
    positions = x.numel() // (images * channels)
    channels_last = not x.is_contiguous()
    dtype = _DTYPES[x.dtype]
    stream = _stream(index)
    capacity, report = 0, None
    if guard is not None:
        capacity, report = guard.prepare(
            index, stream, lambda: map(_on_host, (weight, bias, slope)), dtype, strategy
        )
    kernels = layer(
        index, dtype, (images, channels, positions), channels_last, activation, strategy,
        residual is not None, capacity > 0,
    )  # fmt: skip
    device = x.device
    saved = torch.empty(kernels.saved_bytes, dtype=torch.uint8, device=device)
    scratch = torch.empty(kernels.scratch_bytes, dtype=torch.uint8, device=device)
    xhat = torch.empty(capacity * kernels.slot_bytes, dtype=torch.uint8, device=device) if capacity else None
    kernels.forward(
        stream, x.data_ptr(), z.data_ptr(), _address(residual), _address(weight), _address(bias),
        _address(slope), _address(running_mean), _address(running_var), saved.data_ptr(), scratch.data_ptr(),
        _address(xhat), report, capacity, training, momentum, eps, param, kernels.most_bias,
        *_exchange_arguments(exchange),
    )  # fmt: skip
    return kernels, saved, xhat, training, param


def backward(state, kept, dz, residual, dx, dresidual, dweight, dbias, dslope, exchange=None):
    """Write the gradients; tensors that are None are not wanted. dx may be dz or `kept`.

    `kept` is what the forward wrote over x, or x for "standard".
    """
    kernels, saved, xhat, training, param = state
    scratch = torch.empty(kernels.scratch_bytes, dtype=torch.uint8, device=dz.device)
    kernels.backward(
        _stream(_index_of(dz)), kept.data_ptr(), dz.data_ptr(), _address(residual), dx.data_ptr(),
        _address(dresidual), _address(dweight), _address(dbias), _address(dslope), saved.data_ptr(),
        scratch.data_ptr(), _address(xhat), training, param, *_exchange_arguments(exchange),
    )  # fmt: skip


def _exchange_arguments(exchange):
    """Return the last arguments of a `Layer`'s calls."""
    return () if exchange is None else (exchange[0], exchange[1].data_ptr(), exchange[2])


def _address(tensor):
    return None if tensor is None else tensor.data_ptr()


def _on_host(tensor):
    return None if tensor is None else tensor.detach().cpu().numpy()
