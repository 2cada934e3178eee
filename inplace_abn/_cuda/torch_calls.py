"""A layer's forward and backward on PyTorch's CUDA tensors, for `inplace_abn.torch`: few calls, no checks.

The caller has checked devices, dtypes, shapes and strides: x, residual, z, dz and dx have no gaps and one
memory format, parameters are contiguous, float64 for a float64 x and float32 for all others. Scratch memory
comes from PyTorch's allocator, so calls are safe in side streams and while a graph is captured; the stream
is the current one of the device.

The only call that waits for the device is the first of a layer that may have guarded channels: it reads
weight and bias. `Guard` says why.
"""

import warnings

import torch

from .. import _core
from .layer import guarded_channels, layer
from .libraries import open_driver

_index_of = torch.Tensor.get_device
_stream = torch._C._cuda_getCurrentRawStream if hasattr(torch._C, "_cuda_getCurrentRawStream") else None
_DTYPES = {
    torch.float32: "float32", torch.float64: "float64", torch.float16: "float16", torch.bfloat16: "bfloat16",
}  # fmt: skip


class Guard:
    """How many channels of a layer need their xhat saved beside y: those whose weight is zero or tiny.

    The device decides in every forward, and stores the number where the host reads it at the next one,
    without waiting. So the side buffer has the size of an earlier step. A channel that newly exceeds the
    limit loses up to 4 binary digits of xhat until then. One whose weight becomes zero at once gets a zero
    gradient of the weight, and a dx without the term of xhat, until then; a RuntimeWarning says so. `forget`
    avoids that.

    >>> Guard().known
    """

    __slots__ = ("_address", "_report", "capacity", "known")

    def __init__(self):
        self.known = self._report = None  # None: read weight and bias
        self.capacity = 0

    def forget(self):
        """Read weight and bias again at the next forward; call it after changing them by hand."""
        self.known = None

    def prepare(self, device, stream, weight, bias, slope, dtype, strategy):
        """Return (capacity of the side buffer, address of the report)."""
        if self.known is None:
            open_driver()
            if _core._cuda_is_capturing(device, stream):
                raise RuntimeError(
                    "inplace_abn: the first call of a layer reads its weight, which a CUDA graph cannot "
                    "record; call the layer once before the capture"
                )
            if self._report is None:
                memory, self._address = _core._cuda_host_memory(device, 8)
                self._report = memory.cast("i")
            arrays = (None if t is None else t.detach().cpu().numpy() for t in (weight, bias, slope))
            self.known = self._report[0] = self.capacity = guarded_channels(*arrays, dtype, strategy)
            self._report[1] = 0
        self.capacity, losses = self._report
        if losses:
            _warn(losses)
            self._report[1] = 0
        return self.capacity, self._address


def _warn(losses):
    warnings.warn(
        f"the weight of {losses} channels became zero or tiny at once: its gradient was 0 in an earlier "
        "step; call Guard.forget() after changing weights by hand",
        RuntimeWarning,
        stacklevel=3,
    )


def forward(x, z, residual, weight, bias, slope, running_mean, running_var, guard, training, momentum, eps,
            activation, param, strategy):  # fmt: skip
    """Write what `strategy` keeps over x, and z; return the state for `backward`.

    z is x for "inplace". guard is the layer's `Guard` for "inplace" and "pre_activation", else None.
    """
    shape, index = x.shape, _index_of(x)
    images, channels = shape[0], shape[1]
    positions = x.numel() // (images * channels)
    channels_last = not x.is_contiguous()
    dtype = _DTYPES[x.dtype]
    stream = _stream(index)
    capacity, report = 0, None
    if guard is not None:
        capacity, report = guard.prepare(index, stream, weight, bias, slope, dtype, strategy)
    of = layer(
        index, dtype, (images, channels, positions), channels_last, activation, strategy,
        residual is not None, capacity > 0,
    )  # fmt: skip
    device = x.device
    saved = torch.empty(of.saved_bytes, dtype=torch.uint8, device=device)
    scratch = torch.empty(of.scratch_bytes, dtype=torch.uint8, device=device)
    xhat = torch.empty(capacity * of.slot_bytes, dtype=torch.uint8, device=device) if capacity else None
    of.forward(
        stream, x.data_ptr(), z.data_ptr(), _address(residual), _address(weight), _address(bias),
        _address(slope), _address(running_mean), _address(running_var), saved.data_ptr(), scratch.data_ptr(),
        _address(xhat), report, capacity, training, momentum, eps, param, of.most_bias,
    )  # fmt: skip
    return of, saved, xhat, training, param


def backward(state, kept, dz, residual, dx, dresidual, dweight, dbias, dslope):
    """Write the gradients; tensors that are None are not wanted. dx may be dz or `kept`.

    `kept` is what the forward wrote over x, or x for "standard".
    """
    of, saved, xhat, training, param = state
    scratch = torch.empty(of.scratch_bytes, dtype=torch.uint8, device=dz.device)
    of.backward(
        _stream(_index_of(dz)), kept.data_ptr(), dz.data_ptr(), _address(residual), dx.data_ptr(),
        _address(dresidual), _address(dweight), _address(dbias), _address(dslope), saved.data_ptr(),
        scratch.data_ptr(), _address(xhat), training, param,
    )  # fmt: skip


def _address(tensor):
    return None if tensor is None else tensor.data_ptr()
