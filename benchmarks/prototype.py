"""A prototype as a contestant: two C functions, built from a source file or loaded from a shared library.

It shows what the machine allows: a prototype computes batch norm and leaky ReLU on float32 and has none of
the checks, guards and other activations of inplace_abn. It defines::

    void abn_prototype_forward(float *x, ptrdiff_t batch, ptrdiff_t channels, ptrdiff_t spatial,
                               int channels_last, const float *weight, const float *bias,
                               float *mean, float *inv_std, float slope, int threads);
    void abn_prototype_backward(const float *z, float *dz, ptrdiff_t batch, ptrdiff_t channels,
                                ptrdiff_t spatial, int channels_last, const float *weight, const float *bias,
                                const float *inv_std, float slope, float *dweight, float *dbias, int threads);

The forward writes z over x and the two statistics; the backward writes dx over dz.
"""

import ctypes
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.contestants import SLOPE, InPlaceABN
from benchmarks.targets import CHANNELS_LAST

#: The largest difference from inplace_abn's z and dx, relative to their largest value.
TOLERANCE = 1e-4


def build(path):
    """Return the path of a shared library: `path`, or a temporary one compiled from `path` if it is C.

    Raises
    ------
    RuntimeError
        The compiler failed; its messages are on standard error.
    """
    path = Path(path).resolve()
    if path.suffix != ".c":
        return str(path)
    library = Path(tempfile.mkdtemp(prefix="prototype-")) / f"{path.stem}.so"
    compiler = os.environ.get("CC", "cc")
    command = [
        compiler,
        "-O3",
        "-march=native",
        "-fopenmp",
        "-shared",
        "-fPIC",
        str(path),
        "-o",
        str(library),
        "-lm",
    ]
    if subprocess.run(command).returncode:
        raise RuntimeError(f"{compiler} could not compile {path}")
    return str(library)


class Prototype:
    """The functions of the shared library `library`, in place over the arrays of `batch`.

    Raises
    ------
    OSError
        The library cannot be loaded.
    AttributeError
        It lacks one of the two functions.
    ValueError
        Its z or dx differs from inplace_abn's.
    """

    def __init__(self, batch, threads, library):
        self.batch, self.threads = batch, threads
        functions = ctypes.CDLL(library)
        self.functions = functions.abn_prototype_forward, functions.abn_prototype_backward
        for function in self.functions:
            function.restype = None
        self.mean, self.inv_std, self.dweight, self.dbias = np.zeros((4, batch.weight.size), np.float32)
        spatial = batch.x.size // (batch.x.shape[0] * batch.weight.size)
        self.shape = (
            *(ctypes.c_ssize_t(length) for length in (batch.x.shape[0], batch.weight.size, spatial)),
            ctypes.c_int(batch.layout == CHANNELS_LAST),
        )
        self._check()

    def run(self):
        self.batch.restore()
        yield "forward", self.forward
        yield "backward", self.backward

    def forward(self):
        batch = self.batch
        self._call(0, (batch.x,), (batch.weight, batch.bias, self.mean, self.inv_std), ())

    def backward(self):
        batch = self.batch
        self._call(
            1, (batch.x, batch.dz), (batch.weight, batch.bias, self.inv_std), (self.dweight, self.dbias)
        )

    def _call(self, which, arrays, vectors, sums):
        addresses = [
            [ctypes.c_void_p(array.ctypes.data) for array in group] for group in (arrays, vectors, sums)
        ]
        self.functions[which](
            *addresses[0], *self.shape, *addresses[1], ctypes.c_float(SLOPE), *addresses[2],
            ctypes.c_int(self.threads),
        )  # fmt: skip

    def _check(self):
        batch, own = self.batch, InPlaceABN(self.batch, self.threads)
        expected = []
        for _, call in own.run():
            call()
            expected += [batch.x.copy()] if not expected else [own.gradients.dx.copy()]
        for (name, call), want, got in zip(self.run(), expected, (batch.x, batch.dz), strict=True):
            call()
            difference = np.abs(got - want).max() / np.abs(want).max()
            if not difference <= TOLERANCE:
                raise ValueError(f"the prototype's {name} differs from inplace_abn by {difference:.1e}")
