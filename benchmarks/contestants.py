"""What is measured: the stream that sets the limit, and inplace_abn's passes.

A contestant has a method `run` that yields (name of a pass, callable). The code between two yields restores
inputs and is not timed; the callable is. The peers in `benchmarks.peers` have the same form.
"""

import numpy as np

from benchmarks.targets import CHANNELS_LAST
from inplace_abn import _core, functional

SLOPE = 0.01
EPS = 1e-5
MOMENTUM = 0.1


def resolve_dtype(name):
    """Return the NumPy dtype called `name`; ImportError when bfloat16 is asked for without ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


class Batch:
    """Random inputs of one layer: pristine x0 and dz0, and x and dz to work on.

    Parameters
    ----------
    shape : tuple of int
        (N, C, *spatial), whatever the layout in memory.
    layout : str
        "channels-first" or "channels-last". The arrays are contiguous: (N, C, *spatial) or (N, *spatial, C).
    dtype : str
        Name of a storage type.
    """

    def __init__(self, shape, layout, dtype="float32"):
        self.layout = layout
        self.channel_axis = -1 if layout == CHANNELS_LAST else 1
        stored = (shape[0], *shape[2:], shape[1]) if layout == CHANNELS_LAST else tuple(shape)
        rng = np.random.default_rng(0)
        self.x0, self.dz0 = (
            rng.standard_normal(stored, dtype=np.float32).astype(resolve_dtype(dtype), copy=False)
            for _ in range(2)
        )
        self.x, self.dz = self.x0.copy(), self.dz0.copy()
        parameters = np.float64 if self.x0.dtype == np.float64 else np.float32
        self.weight = rng.uniform(0.5, 1.5, shape[1]).astype(parameters)
        self.bias = rng.normal(0, 0.1, shape[1]).astype(parameters)
        self.running_mean, self.running_var = np.zeros(shape[1], parameters), np.ones(shape[1], parameters)

    def restore(self):
        """Make x and dz what they were at first."""
        np.copyto(self.x, self.x0)
        np.copyto(self.dz, self.dz0)


class Stream:
    """The yardstick, over the same arrays: 1 read + 1 write for forward, 2 reads + 1 write for backward.

    The factor 1 and a small addend leave the values bounded, however often it runs.
    """

    def __init__(self, batch, threads):
        self.batch, self.threads = batch, threads

    def run(self):
        x, dz = self.batch.x.reshape(-1), self.batch.dz.reshape(-1)
        self.batch.restore()
        yield "forward", lambda: _core.stream(x, c=1.0, d=1e-3, threads=self.threads)
        yield "backward", lambda: _core.stream(x, b=dz, c=1.0, d=1e-3, threads=self.threads)


class InPlaceABN:
    """forward and backward(overwrite=True) of `inplace_abn.functional` in training mode."""

    def __init__(self, batch, threads, activation="leaky_relu", strategy="inplace"):
        self.batch, self.threads = batch, threads
        self.activation, self.strategy = activation, strategy
        self.activation_param = 1.0 if activation == "elu" else SLOPE
        self.z = self.context = self.gradients = None

    def run(self):
        self.batch.restore()
        yield "forward", self.forward
        if self.strategy.startswith("checkpoint"):
            yield "recompute", self.recompute
        yield "backward", self.backward
        self.z = self.context = self.gradients = None

    def forward(self):
        batch = self.batch
        self.z, self.context = functional.forward(
            batch.x,
            batch.weight,
            batch.bias,
            batch.running_mean,
            batch.running_var,
            training=True,
            momentum=MOMENTUM,
            eps=EPS,
            activation=self.activation,
            activation_param=self.activation_param,
            strategy=self.strategy,
            channel_axis=batch.channel_axis,
            threads=self.threads,
        )

    def recompute(self):
        self.context.recompute(out=self.z, threads=self.threads)

    def backward(self):
        self.gradients = functional.backward(
            self.context, self.batch.dz, overwrite=True, threads=self.threads
        )
