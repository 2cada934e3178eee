"""oneDNN through ctypes: the shared library of the package ``onednn-cpu-gomp``, or any oneDNN 3.

Batch norm in training mode with a fused ReLU, which needs a byte of workspace per element. oneDNN cannot fuse
leaky ReLU in training, and a second primitive would take additional time, so ReLU is its better case.
"""

import ctypes
import ctypes.util
import os
import sys
from pathlib import Path

import numpy as np

from benchmarks.contestants import EPS
from inplace_abn import functional

_CPU, _FLOAT32, _IN_ORDER = 1, 3, 1
_FORWARD_TRAINING, _BACKWARD = 64, 128
_USE_SCALE, _USE_SHIFT, _FUSE_RELU = 2, 4, 8
_FLAGS = _USE_SCALE | _USE_SHIFT | _FUSE_RELU
_WORKSPACE_MD = 135
_SRC, _DST, _MEAN, _VARIANCE, _SCALE, _SHIFT, _WORKSPACE = 1, 17, 49, 50, 51, 52, 64
#: Block of channels -> dnnl_format_tag_t of (N, C / block, H, W, block).
_BLOCKED = {8: 102, 16: 78}
_DIFF_SRC, _DIFF_DST, _DIFF_SCALE, _DIFF_SHIFT = 129, 145, 255, 256


class _Argument(ctypes.Structure):
    _fields_ = (("slot", ctypes.c_int), ("memory", ctypes.c_void_p))


class _Version(ctypes.Structure):
    _fields_ = (("major", ctypes.c_int), ("minor", ctypes.c_int), ("patch", ctypes.c_int))


def find_library():
    """Return the path or name of oneDNN's library, `DNNL_LIBRARY` first, or None."""
    candidates = (os.environ.get("DNNL_LIBRARY"), Path(sys.prefix) / "lib" / "libdnnl.so.3")
    for candidate in candidates:
        if candidate and Path(candidate).exists():
            return str(candidate)
    return ctypes.util.find_library("dnnl")


class _Library:
    """oneDNN's functions; a status other than success raises an error."""

    def __init__(self):
        path = find_library()
        if path is None:
            raise ImportError("no shared library of oneDNN found; set DNNL_LIBRARY to its path")
        self.raw = ctypes.CDLL(path)
        self.raw.dnnl_version.restype = ctypes.POINTER(_Version)
        version = self.raw.dnnl_version().contents
        if version.major != 3:
            raise ImportError(f"oneDNN: expected version 3, found {version.major}.{version.minor}")
        query = self.raw.dnnl_primitive_desc_query_md
        query.restype, query.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_int, ctypes.c_int)
        size = self.raw.dnnl_memory_desc_get_size
        size.restype, size.argtypes = ctypes.c_size_t, (ctypes.c_void_p,)
        self.engine = self.new("engine_create", _CPU, ctypes.c_size_t(0))
        self.stream = self.new("stream_create", self.engine, _IN_ORDER)

    def call(self, name, *arguments):
        status = getattr(self.raw, f"dnnl_{name}")(*arguments)
        if status:
            raise RuntimeError(f"oneDNN: {name} failed with status {status}")

    def new(self, name, *arguments):
        handle = ctypes.c_void_p()
        self.call(name, ctypes.byref(handle), *arguments)
        return handle

    def descriptor(self, array, order=None):
        """Describe `array`; `order` lists its axes in oneDNN's order, (N, C, *spatial)."""
        order = range(array.ndim) if order is None else order
        lengths, strides = (
            (ctypes.c_int64 * array.ndim)(*values)
            for values in zip(*((array.shape[k], array.strides[k] // 4) for k in order), strict=True)
        )
        return self.new("memory_desc_create_with_strides", array.ndim, lengths, _FLOAT32, strides)

    def blocked_descriptor(self, batch, channels, height, width, block):
        """Describe an array of (N, C / block, H, W, block), oneDNN's own layout."""
        lengths = (ctypes.c_int64 * 4)(batch, channels, height, width)
        return self.new("memory_desc_create_with_tag", 4, lengths, _FLOAT32, _BLOCKED[block])

    def norm(self, direction, *arguments):
        """Describe the batch norm primitive of this direction."""
        return self.new(f"batch_normalization_{direction}_primitive_desc_create", self.engine, *arguments)

    def memory(self, descriptor, array):
        return self.new("memory_create", descriptor, self.engine, array.ctypes.data_as(ctypes.c_void_p))

    def execute(self, primitive, arguments):
        self.call("primitive_execute", primitive, self.stream, len(arguments), arguments)
        self.call("stream_wait", self.stream)


def block():
    """Return the channels of a block in oneDNN's own layout on this processor."""
    return 16 if functional.info()["isa_active"] == "v4" else 8


def to_blocks(array, channels):
    """Return an array of (N, C, H, W) as (N, C / channels, H, W, channels)."""
    n, c, height, width = array.shape
    return np.ascontiguousarray(np.moveaxis(array.reshape(n, c // channels, channels, height, width), 2, -1))


class OneDNN:
    """The batch norm primitives over buffers allocated once. `threads` is set by OMP_NUM_THREADS.

    With ``blocked=True`` x and dz are in oneDNN's own layout, for channels-first batches of images whose
    channels are a multiple of `block`.
    """

    def __init__(self, batch, threads, blocked=False):
        self.library = library = _Library()
        x, dz = batch.x0, batch.dz0
        if blocked:
            full = library.blocked_descriptor(*x.shape, block())
            x, dz = to_blocks(x, block()), to_blocks(dz, block())
        else:
            axes = list(range(x.ndim))
            axes.insert(1, axes.pop(batch.channel_axis))
            full = library.descriptor(x, axes)
        channels = library.descriptor(batch.weight)
        eps = ctypes.c_float(EPS)
        forward = library.norm("forward", _FORWARD_TRAINING, full, full, eps, _FLAGS, None)
        backward = library.norm("backward", _BACKWARD, full, full, full, eps, _FLAGS, forward, None)
        mask = ctypes.c_void_p(library.raw.dnnl_primitive_desc_query_md(forward, _WORKSPACE_MD, 0))
        self.z, self.dx = np.zeros_like(x), np.zeros_like(x)
        self.mean, self.var, self.dweight, self.dbias = np.zeros((4, batch.weight.size), np.float32)
        workspace = np.zeros(library.raw.dnnl_memory_desc_get_size(mask), np.uint8)
        self.used = (batch, x, dz, workspace)  # keeps them alive: oneDNN has only their addresses
        memories = {
            _SRC: library.memory(full, x),
            _DST: library.memory(full, self.z),
            _DIFF_DST: library.memory(full, dz),
            _DIFF_SRC: library.memory(full, self.dx),
            _MEAN: library.memory(channels, self.mean),
            _VARIANCE: library.memory(channels, self.var),
            _SCALE: library.memory(channels, batch.weight),
            _SHIFT: library.memory(channels, batch.bias),
            _DIFF_SCALE: library.memory(channels, self.dweight),
            _DIFF_SHIFT: library.memory(channels, self.dbias),
            _WORKSPACE: library.memory(mask, workspace),
        }
        self.forward = self._primitive(forward, memories, (_DIFF_DST, _DIFF_SRC, _DIFF_SCALE, _DIFF_SHIFT))
        self.backward = self._primitive(backward, memories, (_DST, _SHIFT))

    def _primitive(self, description, memories, unused):
        slots = [slot for slot in memories if slot not in unused]
        arguments = (_Argument * len(slots))(*((slot, memories[slot]) for slot in slots))
        return self.library.new("primitive_create", description), arguments

    def run(self):
        yield "forward", lambda: self.library.execute(*self.forward)
        yield "backward", lambda: self.library.execute(*self.backward)
