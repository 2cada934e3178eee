"""The kernels of csrc/cuda, compiled for the CPU by host.c: a layer forward and backward on NumPy arrays."""

import ctypes
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from batches import dtype_of, parameter_dtype

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "csrc"
COMPILER = shutil.which(os.environ.get("CC", "cc"))
KEEPS = {"inplace": 0, "standard": 1, "checkpoint_xhat": 2, "pre_activation": 3}
DTYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 3}
MOST_BIAS = {"float32": 64, "float64": 2.0**20, "float16": 4, "bfloat16": 4}
ARRAYS = (
    "source", "residual", "destination", "gradient", "residual_gradient", "weight", "bias", "slope",
    "running_mean", "running_var", "weight_gradient", "bias_gradient", "slope_gradient", "saved", "xhat",
    "report",
)  # fmt: skip

needs_compiler = pytest.mark.skipif(
    COMPILER is None or not SOURCES.exists() or os.name == "nt",
    reason="needs csrc/, a C compiler and ucontext.h",
)


@cache
def library(folder, macros):
    """Compile the kernels of one combination of macros."""
    path = Path(folder, f"{abs(hash(macros)):x}.so")
    flags = [f"-D{macro}" for macro in (*macros, "ABN_THREADS=256")]
    sources = [HERE / "host.c", SOURCES / "cuda/plan.c", SOURCES / "element.c"]
    command = [COMPILER, "-std=c11", "-O1", "-fPIC", "-shared", "-ffp-contract=off", f"-I{SOURCES}", *flags]
    subprocess.run([*command, *map(str, sources), "-lm", "-o", str(path)], check=True, capture_output=True)
    loaded = ctypes.CDLL(str(path))
    loaded.host_run.restype = loaded.host_plan.restype = None
    return loaded


class Layer:
    """One forward and backward by the kernels. Arrays are (N, C, S), or (N, S, C) with channels_last."""

    def __init__(
        self,
        folder,
        dtype,
        activation,
        strategy,
        shape,
        *,
        channels_last=False,
        residual=False,
        guard=0,
        param=0.01,
        training=True,
        reverse=False,
    ):
        self.dtype, self.shape, self.capacity = dtype, shape, guard
        self.training, self.reverse, self.channels_last = training, reverse, channels_last
        self.numbers = (ctypes.c_double * 4)(0.1, 1e-5, param, MOST_BIAS[dtype])
        self.dims = (ctypes.c_int64 * 3)(*shape)
        plan = (ctypes.c_int64 * 3)()
        any_macros = (
            f"ABN_DTYPE_{dtype.upper()}=1",
            f"ABN_ACTIVATION=ABN_{activation.upper()}",
            f"ABN_KEEPS={KEEPS[strategy]}",
            f"ABN_RESIDUAL={int(residual)}",
            f"ABN_GUARD={int(guard > 0)}",
        )
        for width, layout in ((16 // dtype_of(dtype).itemsize, "PLANES"), None, None):
            macros = (*any_macros, f"ABN_WIDTH={width}", f"ABN_{layout}=1")
            self.library = library(folder, macros)
            self.library.host_plan(DTYPES[dtype], self.dims, int(channels_last), plan)
            wanted = plan[1], ("PLANES", "COLUMNS")[plan[2]]
            if wanted == (width, layout):
                break
            macros = (*any_macros, f"ABN_WIDTH={wanted[0]}", f"ABN_{wanted[1]}=1")
            self.library = library(folder, macros)
            break
        self.saved = np.full(plan[0], 0xFF, np.uint8)
        self.layout = wanted
        self.xhat = np.full((guard, shape[0] * shape[2]), np.nan, dtype_of(dtype))
        self.report = np.full(2, -1, np.int32)  # channels that want a slot, channels without x̂

    def run(self, backward, **arrays):
        pointers = (ctypes.c_void_p * len(ARRAYS))()
        arrays |= {"saved": self.saved, "xhat": self.xhat}
        for name, array in arrays.items():
            if array is not None:
                pointers[ARRAYS.index(name)] = array.ctypes.data
        self.library.host_run(
            int(backward), DTYPES[self.dtype], self.dims, int(self.channels_last), pointers, self.numbers,
            int(self.training), self.capacity, int(self.reverse),
        )  # fmt: skip

    def forward(self, x, z, **arrays):
        """Write x (what is kept) and z, which is x itself for the strategy inplace."""
        self.run(False, source=x, destination=z, report=self.report, **arrays)

    def backward(self, kept, dz, **arrays):
        """Return dx, dweight, dbias, dslope."""
        channels = parameter_dtype(self.dtype)
        sums = [np.full(self.shape[1], np.nan, channels) for _ in range(3)]
        dx = np.full_like(dz, np.nan)
        names = "weight_gradient", "bias_gradient", "slope_gradient"
        self.run(
            True, source=kept, gradient=dz, destination=dx, **dict(zip(names, sums, strict=True)), **arrays
        )
        return dx, *sums
