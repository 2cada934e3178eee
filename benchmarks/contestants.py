"""Contestants: the stream, which measures memory bandwidth, and the passes of inplace_abn.

A contestant has a method `run` that yields (name of a pass, callable). Only the callable is timed; the code
between two yields restores inputs. The peers in `benchmarks.peers` have the same interface.
"""

import functools

import numpy as np

from benchmarks.targets import CHANNELS_LAST
from inplace_abn import _core, functional

SLOPE = 0.01
PRELU_SLOPE = 0.25
EPS = 1e-5
MOMENTUM = 0.1


def parameter(activation):
    """Return the parameter of `activation` in the benchmarks: a slope or alpha."""
    return {"elu": 1.0, "celu": 1.0, "prelu": PRELU_SLOPE}.get(activation, SLOPE)


def resolve_dtype(name):
    """Return the NumPy dtype `name`; ImportError for bfloat16 without ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


class Batch:
    """Random inputs of a layer: x0 and dz0, which stay unchanged, and x and dz, which may be overwritten.

    Parameters
    ----------
    shape : tuple of int
        (N, C, *spatial), independent of the layout in memory.
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

    @functools.cached_property
    def residual(self):
        """The array added before the activation."""
        return np.random.default_rng(1).standard_normal(self.x0.shape, dtype=np.float32).astype(self.x0.dtype)

    @functools.cached_property
    def residual_grad(self):
        """The array that the gradient of the residual is added to."""
        return np.zeros_like(self.x0)

    def restore(self):
        """Restore x and dz."""
        np.copyto(self.x, self.x0)
        np.copyto(self.dz, self.dz0)


class Stream:
    """In-place stream over the same arrays: 1 read + 1 write for forward, 2 reads + 1 write for backward.

    With a residual, forward is 2 reads (x, residual) + 1 write (x), and backward is 4 reads + 2 writes in two
    streams: z and dz to dz, residual and its gradient to that gradient.

    `prefetch` is the distance in bytes at which cache lines are prefetched, or 0.

    The factor 1 and a small addend keep the values bounded over all repetitions.
    """

    def __init__(self, batch, threads, residual=False, prefetch=0):
        self.batch, self.threads, self.residual = batch, threads, residual
        self.prefetch = prefetch // 4

    def run(self):
        batch = self.batch
        batch.restore()
        forward, backward = [(batch.x, None)], [(batch.x, batch.dz)]
        if self.residual:
            forward = [(batch.residual, batch.x)]
            backward.append((batch.residual, batch.residual_grad))
        yield "forward", lambda: self.stream(forward)
        yield "backward", lambda: self.stream(backward)

    def stream(self, pairs):
        for a, b in pairs:
            b = None if b is None else b.reshape(-1)
            _core.stream(a.reshape(-1), b=b, c=1.0, d=1e-3, prefetch=self.prefetch, threads=self.threads)


class InPlaceABN:
    """`inplace_abn.functional.forward` in training mode, and `backward` with ``overwrite=True``."""

    def __init__(self, batch, threads, activation="leaky_relu", strategy="inplace", residual=False):
        self.batch, self.threads = batch, threads
        self.activation, self.strategy = activation, strategy
        self.activation_param = parameter(activation)
        self.slope = np.full_like(batch.weight, self.activation_param) if activation == "prelu" else None
        self.residual, self.residual_grad = (
            (batch.residual, batch.residual_grad) if residual else (None, None)
        )
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
            weight=batch.weight,
            bias=batch.bias,
            running_mean=batch.running_mean,
            running_var=batch.running_var,
            training=True,
            momentum=MOMENTUM,
            eps=EPS,
            activation=self.activation,
            activation_param=self.activation_param,
            strategy=self.strategy,
            channel_axis=batch.channel_axis,
            residual=self.residual,
            slope=self.slope,
            threads=self.threads,
        )

    def recompute(self):
        self.context.recompute(out=self.z, threads=self.threads)

    def backward(self):
        self.gradients = functional.backward(
            self.context,
            self.batch.dz,
            overwrite=True,
            residual_grad=self.residual_grad,
            threads=self.threads,
        )
