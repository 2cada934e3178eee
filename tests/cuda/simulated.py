"""A simulated GPU: a driver that runs the kernels of csrc/cuda on the CPU, and the C compiler as theirs.

Everything above the driver is the code that runs on a GPU: the cache, the plans, the launches.
"""

import atexit
import ctypes
import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from batches import dtype_of, parameter_dtype

from inplace_abn._cuda import kernels, libraries
from inplace_abn._cuda.layer import layer

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "csrc"
COMPILER = shutil.which(os.environ.get("CC", "cc"))
FLAGS = "-std=c11", "-O1", "-fPIC", "-shared", "-ffp-contract=off"

needs_compiler = pytest.mark.skipif(
    COMPILER is None or not SOURCES.exists() or os.name == "nt",
    reason="needs csrc/, a C compiler and ucontext.h",
)


def _build(path, *arguments):
    subprocess.run([COMPILER, *FLAGS, *map(str, arguments), "-lm", "-o", str(path)], check=True)


def _compile_kernels(folder, architecture, options):
    """Take the place of `kernels.compile_kernels`: the image is the path of a library."""
    assert architecture == "sm_90"
    macros = [option for option in options if option.startswith("-D")]
    path = Path(folder, f"{abs(hash(tuple(macros))):x}.so")
    if not path.exists():
        _build(path, f"-I{SOURCES}", *macros, HERE / "simulated_kernels.c")
    return str(path).encode(), ""


@cache
def _open_driver(folder):
    """Open the simulated driver for the rest of the process, and return it; None if there is a real one."""
    with suppress(RuntimeError):
        libraries.open_driver()
        return None
    path = Path(folder, "driver.so")
    _build(path, HERE / "simulated_driver.c")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INPLACE_ABN_CUDA", str(path))
        libraries.open_driver()
    return ctypes.CDLL(str(path))


@cache
def _folder():
    made = tempfile.mkdtemp(prefix="simulated-gpu-")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


@contextmanager
def use_simulated_driver():
    """Let layers compile for the simulated driver; yields its library."""
    library = _open_driver(_folder())
    if library is None:
        pytest.skip("this machine has a GPU: tests with a simulated one do not run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "compile_kernels", lambda *args: _compile_kernels(_folder(), *args))
        patch.setattr(kernels, "open_compiler", lambda: (13000, 90))
        patch.setenv("INPLACE_ABN_CACHE", _folder())
        yield library


class Layer:
    """One forward and backward on NumPy arrays, which are (N, C, S), or (N, S, C) with channels_last."""

    def __init__(
        self, dtype, activation, strategy, shape, *, channels_last=False, residual=False, guard=0, param=0.01,
        training=True,
    ):  # fmt: skip
        self.dtype, self.shape, self.capacity = dtype, shape, guard
        self.training, self.param = training, param
        self.layer = layer(0, dtype, shape, channels_last, activation, strategy, residual, guard > 0)
        self.saved = np.full(self.layer.saved_bytes, 0xFF, np.uint8)
        self.xhat = np.full((guard, shape[0] * shape[2]), np.nan, dtype_of(dtype))
        assert self.xhat.nbytes == guard * self.layer.slot_bytes
        self.report = np.full(2, -1, np.int32)  # channels that want a slot, channels without x̂

    def _scratch(self):
        return np.full(self.layer.scratch_bytes, 0xFF, np.uint8)

    def forward(self, x, z, *, weight, bias, slope=None, residual=None, running_mean=None, running_var=None,
                batches=None):  # fmt: skip
        """Write x (what is kept) and z, which is x itself for the strategy inplace."""
        arrays = (
            x, z, residual, weight, bias, slope, running_mean, running_var, batches, self.saved,
            self._scratch(), self.xhat, self.report,
        )  # fmt: skip
        numbers = self.capacity, self.training, 0.1, 1e-5, self.param, self.layer.most_bias
        self.layer.forward(0, *map(address, arrays), *numbers)

    def backward(self, kept, dz, *, residual=None, residual_gradient=None):
        """Return dx, dweight, dbias, dslope."""
        sums = [np.full(self.shape[1], np.nan, parameter_dtype(self.dtype)) for _ in range(3)]
        dx = np.full_like(dz, np.nan)
        arrays = (
            kept, dz, residual, dx, residual_gradient, *sums, self.saved, self._scratch(), self.xhat,
        )  # fmt: skip
        self.layer.backward(0, *map(address, arrays), self.training, self.param)
        return dx, *sums


def address(array):
    """Return the address of an ndarray; None for None."""
    return None if array is None else array.ctypes.data
