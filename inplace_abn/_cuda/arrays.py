"""`functional.forward` and `backward` on arrays of a GPU, of PyTorch, CuPy and other libraries.

The address of an array is read through `__dlpack__`, the protocol that they share. Results are arrays of the
library of x. The kernels run in the current stream of PyTorch or CuPy, and in the default stream for others.
"""

import ctypes
import sys
from math import prod
from typing import NamedTuple

import numpy as np

from .. import _core
from .._activations import KEEPS
from .guard import guard_of
from .layer import layer

_CUDA = 2  # kDLCUDA
_DTYPES = {(2, 32): "float32", (2, 64): "float64", (2, 16): "float16", (4, 16): "bfloat16"}  # (code, bits)
_ITEMSIZE = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}
_ALIGNMENT = 16  # bytes that a thread loads at once
_VECTORS = "weight", "bias", "slope"
_ARRAYS = (*_VECTORS, "running_mean", "running_var", "residual", "out")


def on_gpu(array):
    """Return True for an array whose memory is on an NVIDIA GPU."""
    device = getattr(array, "__dlpack_device__", None)
    return device is not None and device()[0] == _CUDA


class Memory(NamedTuple):
    """An array as the core takes it: its address, shape, strides in elements, and the name of its dtype."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str


class _Tensor(ctypes.Structure):  # DLTensor, with which a DLManagedTensor starts
    _fields_ = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)), ("offset", ctypes.c_uint64),
    ]  # fmt: skip


_pointer_in = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_in.restype, _pointer_in.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def _contiguous(shape):
    strides, step = [], 1
    for length in reversed(shape):
        strides.append(step)
        step *= length
    return tuple(reversed(strides))


class _Library:
    """The library of an array x: its current stream, and new arrays on the device of x."""

    def __init__(self, x):
        self.device, name = x.__dlpack_device__()[1], type(x).__module__.partition(".")[0]
        self.namespace = sys.modules[name] if name in ("torch", "cupy") else x.__array_namespace__()
        self.name, self.place, self.stream = name, x.device, 0
        if name == "torch":
            self.stream = self.namespace.cuda.current_stream(x.device).cuda_stream
        elif name == "cupy":
            self.stream = self.namespace.cuda.get_current_stream().ptr

    def memory(self, name, array):
        """Return the `Memory` of an array, None for None; raise a TypeError unless it is on the GPU of x."""
        if array is None:
            return None
        if not on_gpu(array) or array.__dlpack_device__()[1] != self.device:
            raise TypeError(f"{name} must be on the GPU of x, got '{type(array).__name__}' elsewhere")
        capsule = array.__dlpack__(stream=self.stream or 1)  # 1 is the default stream
        tensor = _Tensor.from_address(_pointer_in(capsule, b"dltensor"))
        dtype = _DTYPES.get((tensor.code, tensor.bits))
        if dtype is None:
            raise TypeError(f"{name} must be float32, float64, float16 or bfloat16, got {array.dtype}")
        shape = tuple(tensor.shape[: tensor.ndim])
        strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else _contiguous(shape)
        return Memory((tensor.data or 0) + tensor.offset, shape, strides, dtype)

    def address(self, array):
        """Return the address of an array, None for None."""
        return None if array is None else self.memory("", array).address

    def empty(self, count, dtype):
        if self.name != "cupy":
            return self.namespace.empty(count, dtype=dtype, device=self.place)
        with self.place:
            return self.namespace.empty(count, dtype)

    def like(self, array, memory):
        """Return a new array like another one, which has this `Memory`."""
        made = self.namespace.empty_like(array)
        _check_like("a new array of the library of x", self.memory("", made), memory)
        return made

    def scratch(self, count):
        """Return a float32 array, whose dtype `memory` can name, of at least `count` bytes; None for 0."""
        if count == 0:
            return None
        return self.empty((count + 3) // 4, self.namespace.float32)

    def per_channel(self, vector, channels):
        """Return a vector of one element as an array of one element per channel, others as they are."""
        if vector is None or vector.shape[0] == channels:
            return vector
        repeated = self.empty(channels, vector.dtype)
        repeated[...] = vector
        return repeated

    def on_host(self, memory):
        """Return the numbers of a vector, once the stream has computed them."""
        if memory is None:
            return None
        dtype = np.dtype(memory.dtype)
        read = _core._cuda_read(self.device, memory.address, memory.shape[0] * dtype.itemsize, self.stream)
        return np.frombuffer(read, dtype)


class DeviceContext:
    """The context of a `forward` on a GPU, for its `backward`.

    Attributes
    ----------
    strategy, activation : str
    saved : dict of str to array
        The arrays of the batch's size that it keeps, by role: x, xhat, y or z, and residual. They must not
        change until the backward; nothing locks them.
    """

    def __init__(self, strategy, activation, saved):
        self.strategy, self.activation, self.saved = strategy, activation, saved
        self._call = None

    @property
    def freed(self):
        """True after the backward, unless that was called with ``keep=True``."""
        return self._call is None

    def release(self):
        """Free what it keeps; a backward is not possible then."""
        self._call, self.saved = None, {}

    def __repr__(self):
        state = "freed" if self.freed else f"keeps {', '.join(self.saved) or 'no array'}"
        return f"<DeviceContext of {self.strategy!r} and {self.activation!r}, {state}>"


class _Call(NamedTuple):
    """What a backward needs of its forward, besides the arrays of `DeviceContext.saved`."""

    device: int
    batch: Memory  # x
    layer: object
    numbers: object  # what the kernels save per channel, an array
    xhat: object  # of guarded channels, an array
    training: bool
    param: float
    vectors: dict  # weight, bias and slope: their gradients are like them
    channels: int
    has_residual: bool
    holds: bool


def forward(x, *, mask, hold, threads, **arguments):
    """`functional.forward` for an x on a GPU; raises the same errors, before the first write."""
    if mask is not None:
        raise ValueError("mask is not possible on a GPU; leave it out")
    library = _Library(x)
    arrays = {"x": x} | {name: arguments.pop(name) for name in _ARRAYS}
    memory_of = {name: library.memory(name, array) for name, array in arrays.items()}
    described = {name: None if memory is None else tuple(memory) for name, memory in memory_of.items()}
    shape, channels_last = _core._check_forward(**described, **arguments, threads=threads, hold=False)
    if 0 in memory_of["x"].shape:
        raise ValueError(f"x must have elements on a GPU, got shape {memory_of['x'].shape}")
    for name in ("x", "residual", "out"):
        _check_dense(name, memory_of[name])
    kept = KEEPS[arguments["strategy"]]
    strategy = "inplace" if kept == "z" else arguments["strategy"]
    activation, param = arguments["activation"], float(arguments["activation_param"])
    training, residual = bool(arguments["training"]), arrays["residual"]
    capacity, report = 0, None
    if kept in ("y", "z"):
        capacity, report = guard_of(arrays["weight"]).prepare(
            library.device, library.stream, lambda: [library.on_host(memory_of[name]) for name in _VECTORS],
            memory_of["x"].dtype, strategy,
        )  # fmt: skip
    kernels = layer(
        library.device, memory_of["x"].dtype, shape, channels_last, activation, strategy,
        residual is not None, capacity > 0,
    )  # fmt: skip
    z = x
    if strategy != "inplace":
        z = library.like(x, memory_of["x"]) if arrays["out"] is None else arrays["out"]
    slopes = library.per_channel(arrays["slope"], shape[1])
    numbers, xhat = library.scratch(kernels.saved_bytes), library.scratch(capacity * kernels.slot_bytes)
    scratch = library.scratch(kernels.scratch_bytes)
    kernels.forward(
        library.stream, memory_of["x"].address, library.address(z), library.address(residual),
        *map(library.address, (arrays["weight"], arrays["bias"], slopes)),
        *map(library.address, (arrays["running_mean"], arrays["running_var"])),
        None, *map(library.address, (numbers, scratch, xhat)),
        report, capacity, training, float(arguments["momentum"]), float(arguments["eps"]), param,
        kernels.most_bias,
    )  # fmt: skip
    vectors = {name: arrays[name] for name in _VECTORS}
    saved = {kept: x} if residual is None else {kept: x, "residual": residual}
    ctx = DeviceContext(arguments["strategy"], activation, saved if hold else {})
    ctx._call = _Call(
        library.device, memory_of["x"], kernels, numbers, xhat, training, param, vectors, shape[1],
        residual is not None, hold,
    )  # fmt: skip
    return z, ctx


def backward(
    ctx, dz, *, overwrite, out, residual_grad, residual_out, keep, kept, residual, residual_activation, **_
):  # fmt: skip
    """`functional.backward` for a context of a forward on a GPU."""
    call = ctx._call
    if call is None:
        raise RuntimeError("ctx is freed: its backward has run, or it was released")
    if residual_activation != "identity":
        raise ValueError("residual_activation is not possible on a GPU; pass the residual itself")
    _check_kept_arguments(call, kept=kept, residual=residual)
    _check_outputs(call, overwrite, out, residual_grad, residual_out)
    if not on_gpu(dz) or dz.__dlpack_device__()[1] != call.device:
        raise TypeError(f"dz must be on the GPU of x, got '{type(dz).__name__}' elsewhere")
    library, batch = _Library(dz), call.batch
    if call.holds:
        kept, residual = next(iter(ctx.saved.values())), ctx.saved.get("residual")
    arrays = {
        "kept": kept, "dz": dz, "residual": residual, "out": out, "residual_grad": residual_grad,
        "residual_out": residual_out,
    }  # fmt: skip
    memory_of = {name: library.memory(name, array) for name, array in arrays.items()}
    for name, memory in memory_of.items():
        _check_like(name, memory, batch)
    _check_overlaps(memory_of, overwrite, keep)
    dx = dz if overwrite else library.like(kept, batch) if out is None else out
    dresidual = residual_out
    if call.has_residual and dresidual is None:
        dresidual = library.like(kept, batch)
    sums = {name: None if v is None else library.namespace.empty_like(v) for name, v in call.vectors.items()}
    slopes = library.per_channel(sums["slope"], call.channels)
    scratch = library.scratch(call.layer.scratch_bytes)
    call.layer.backward(
        library.stream,
        *map(library.address, (kept, dz, residual, dx, dresidual, sums["weight"], sums["bias"], slopes)),
        *map(library.address, (call.numbers, scratch, call.xhat)), call.training, call.param,
    )  # fmt: skip
    if slopes is not sums["slope"]:
        sums["slope"][...] = slopes.sum()
    if residual_grad is not None:
        residual_grad += dresidual
        dresidual = residual_grad
    if not keep:
        ctx.release()
    return dx, sums["weight"], sums["bias"], sums["slope"], dresidual


# ---- checks ------------------------------------------------------------------------------------------------


def _check_dense(name, memory):
    if memory is None:
        return
    lengths = sorted(zip(memory.strides, memory.shape, strict=True))
    step = 1
    for stride, length in lengths:
        if length > 1 and stride != step:
            raise ValueError(
                f"{name} must have no gaps in memory on a GPU, got strides {memory.strides}; copy it"
            )
        step *= length
    if memory.address % _ALIGNMENT:
        raise ValueError(f"{name} must start at a multiple of {_ALIGNMENT} bytes on a GPU; pass a copy")


def _check_kept_arguments(call, **arrays):
    """Require `kept` and `residual` after ``forward(..., hold=False)``, and refuse them otherwise."""
    needed = {"kept": not call.holds, "residual": not call.holds and call.has_residual}
    for name, array in arrays.items():
        if needed[name] and array is None:
            raise ValueError(f"{name} is needed after forward(..., hold=False)")
        if not needed[name] and array is not None:
            raise ValueError(f"{name} goes with a ctx of forward(..., hold=False); leave it out")


def _check_outputs(call, overwrite, out, residual_grad, residual_out):
    if overwrite and out is not None:
        raise ValueError(
            "overwrite=True writes dx over dz, and out names another array for it; give one of them"
        )
    if residual_grad is not None and residual_out is not None:
        raise ValueError("residual_grad is added to, residual_out is written; give one of them")
    for name, array in (("residual_grad", residual_grad), ("residual_out", residual_out)):
        if array is not None and not call.has_residual:
            raise ValueError(f"{name} goes with a ctx of a forward that was given residual; leave it out")


def _check_like(name, memory, batch):
    """Raise an error unless an array has the shape, dtype and strides of x."""
    if memory is None:
        return
    if memory.dtype != batch.dtype:
        raise TypeError(f"{name} must be {batch.dtype} as x was, got {memory.dtype}")
    if memory.shape != batch.shape:
        raise ValueError(f"{name} must have the shape of x, {batch.shape}, got {memory.shape}")
    if any(n > 1 and a != b for n, a, b in zip(batch.shape, memory.strides, batch.strides, strict=True)):
        raise ValueError(f"{name} must have the strides of x, {batch.strides}, got {memory.strides}; copy it")
    if memory.address % _ALIGNMENT:
        raise ValueError(f"{name} must start at a multiple of {_ALIGNMENT} bytes on a GPU; pass a copy")


def _check_overlaps(memory_of, overwrite, keep):
    """Refuse outputs that share memory with other arrays; out may be `kept`, residual_out dz."""
    written = {
        name: memory_of[name]
        for name in ("out", "residual_grad", "residual_out")
        if memory_of[name] is not None
    }
    if overwrite:
        written["dz"] = memory_of["dz"]
    may_be = {"out": () if keep else ("kept",), "residual_out": () if overwrite else ("dz",)}
    for name, memory in written.items():
        for other, read in memory_of.items():
            if other == name or read is None:
                continue
            if read.address == memory.address and other in may_be.get(name, ()):
                continue
            if abs(read.address - memory.address) < _nbytes(memory):
                raise ValueError(f"{name} must not share memory with {other}")


def _nbytes(memory):
    return prod(memory.shape) * _ITEMSIZE[memory.dtype]
