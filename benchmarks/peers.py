"""Peers: other libraries with default settings. Batch norm in training, an activation, and the gradients.

They take the same arrays as inplace_abn and allocate their results themselves, except oneDNN, which writes
into buffers of its caller. Importing this module imports none of them.
"""

import importlib.util

from benchmarks.contestants import EPS, MOMENTUM, SLOPE
from benchmarks.targets import CHANNELS_FIRST, CHANNELS_LAST


class TorchEager:
    """torch.nn.functional.batch_norm, then the activation; channels-last is memory_format=channels_last."""

    def __init__(self, batch, threads, activation="leaky_relu"):
        import torch

        torch.set_num_threads(threads)
        self.torch = torch
        functional = torch.nn.functional
        self.activation = {
            "leaky_relu": lambda y: functional.leaky_relu_(y, SLOPE),
            "silu": functional.silu,  # in place it would overwrite the input that its backward needs
        }[activation]
        self.x, self.dz = (self._tensor(array, batch.layout) for array in (batch.x0, batch.dz0))
        self.parameters = [torch.from_numpy(array.copy()) for array in (batch.weight, batch.bias)]
        self.running = [torch.from_numpy(array.copy()) for array in (batch.running_mean, batch.running_var)]
        self.inputs = (self.x, *self.parameters)
        for tensor in self.inputs:
            tensor.requires_grad_()
        self.layer = self._layer
        self.z = self.gradients = None

    def _tensor(self, array, layout):
        tensor = self.torch.from_numpy(array)
        return tensor.movedim(-1, 1) if layout == CHANNELS_LAST else tensor

    def _layer(self, x, weight, bias, running_mean, running_var):
        batch_norm = self.torch.nn.functional.batch_norm
        return self.activation(batch_norm(x, running_mean, running_var, weight, bias, True, MOMENTUM, EPS))

    def run(self):
        yield "forward", self.forward
        yield "backward", self.backward
        self.z = self.gradients = None

    def forward(self):
        self.z = self.layer(*self.inputs, *self.running)

    def backward(self):
        self.gradients = self.torch.autograd.grad(self.z, self.inputs, self.dz)


class TorchCompile(TorchEager):
    """The same, compiled by torch.compile for one shape."""

    def __init__(self, batch, threads):
        super().__init__(batch, threads)
        self.torch._dynamo.reset()  # after eight shapes of a function it would fall back to eager silently
        self.layer = self.torch.compile(self._layer, dynamic=False, fullgraph=True)


class Jax:
    """One jitted function of z, the gradients and the running statistics, so that XLA may fuse all of it."""

    def __init__(self, batch, threads):
        import jax
        import jax.numpy as jnp

        self.jax = jax
        axes = tuple(axis for axis in range(batch.x0.ndim) if axis != batch.channel_axis % batch.x0.ndim)
        per_channel = [1] * batch.x0.ndim
        per_channel[batch.channel_axis] = -1
        count = batch.x0.size // batch.weight.size

        def layer(x, weight, bias):
            mean, var = x.mean(axes), x.var(axes)
            scale = weight * jax.lax.rsqrt(var + EPS)
            y = (x - mean.reshape(per_channel)) * scale.reshape(per_channel) + bias.reshape(per_channel)
            return jnp.where(y >= 0, y, SLOPE * y), (mean, var)

        def step(x, weight, bias, running_mean, running_var, dz):
            z, pullback, (mean, var) = jax.vjp(layer, x, weight, bias, has_aux=True)
            running_mean = running_mean + MOMENTUM * (mean - running_mean)
            running_var = running_var + MOMENTUM * (var * count / max(count - 1, 1) - running_var)
            return z, pullback(dz), running_mean, running_var

        arrays = (batch.x0, batch.weight, batch.bias, batch.running_mean, batch.running_var, batch.dz0)
        self.inputs = [jnp.asarray(array) for array in arrays]
        self.step = jax.jit(step)
        self.results = None

    def run(self):
        yield "both", self.both
        self.results = None

    def both(self):
        self.results = self.jax.block_until_ready(self.step(*self.inputs))


def onednn(batch, threads):
    """Return oneDNN as a contestant. Importing its module loads the library."""
    from benchmarks.onednn import OneDNN

    return OneDNN(batch, threads)


def onednn_blocked(batch, threads):
    """Return oneDNN in its own blocked layout as a contestant."""
    from benchmarks.onednn import OneDNN

    return OneDNN(batch, threads, blocked=True)


def takes_part(peer, shape, layout):
    """Return False if the peer cannot run on arrays of this shape and layout."""
    return peer != "onednn-blocked" or (layout == CHANNELS_FIRST and len(shape) == 4 and shape[1] % 16 == 0)


#: name -> (function of a batch and a number of threads that returns a contestant, name in reports)
PEERS = {
    "torch-eager": (TorchEager, "PyTorch eager"),
    "torch-compile": (TorchCompile, "torch.compile"),
    "jax": (Jax, "JAX jit"),
    "onednn": (onednn, "oneDNN, ReLU"),
    "onednn-blocked": (onednn_blocked, "oneDNN, ReLU, its blocked layout"),
}


def installed():
    """Return the names of the peers that are installed."""
    torch = importlib.util.find_spec("torch") is not None
    found = {"torch-eager": torch, "torch-compile": torch, "jax": importlib.util.find_spec("jax") is not None}
    try:
        from benchmarks.onednn import find_library
    except ImportError:
        find_library = None
    found["onednn"] = found["onednn-blocked"] = find_library is not None and find_library() is not None
    return [name for name in PEERS if found[name]]
