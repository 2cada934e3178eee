"""Normalizations alone: those of ResNet-50 with copies in place of its convolutions, and a tiny one."""

from collections import Counter
from typing import NamedTuple

import torch
from torch import nn

from benchmarks.targets import OVERHEAD_SHAPE
from benchmarks.torch_networks import FORMATS, NETWORKS, leaky_relu
from benchmarks.torch_timing import rounds_in_turn
from inplace_abn.torch import InPlaceABN, convert, report

ACTIVATIONS = {"relu": lambda: nn.ReLU(inplace=True), "leaky_relu": leaky_relu}
CALLS = 200  # of a tiny layer in a round


class Kind(NamedTuple):
    """What distinguishes the normalizations of a network."""

    shape: tuple
    has_residual: bool
    has_activation: bool


def kinds(images, network="resnet50"):
    """Return how many normalizations of each `Kind` a network has; no arithmetic, no memory."""
    row, shapes = NETWORKS[network], {}
    with torch.device("meta"):
        model = row.make()
        for name, module in model.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_pre_hook(
                    lambda module, args, name=name: shapes.update({name: tuple(args[0].shape)})
                )
        model(torch.empty(images, 3, row.size, row.size))
        rows = report(convert(row.make())).rows
    return Counter(
        Kind(shapes[row.path], row.state == "with residual", row.activation != "identity") for row in rows
    )


class _Producer(torch.autograd.Function):
    """Stands for a convolution whose result is normalized."""

    @staticmethod
    def forward(ctx, x):
        return x.clone(memory_format=torch.preserve_format)

    @staticmethod
    def backward(ctx, dz):
        return None


class _Consumer(torch.autograd.Function):
    """Stands for a convolution that saves its input and returns a new gradient."""

    @staticmethod
    def forward(ctx, z, dz):
        ctx.save_for_backward(z)
        ctx.dz = dz
        return dz.new_zeros(())

    @staticmethod
    def backward(ctx, _):
        _ = ctx.saved_tensors
        return ctx.dz.clone(memory_format=torch.preserve_format), None


class Layer(nn.Module):
    """A normalization between two convolutions, which `without_convolutions` replaces by copies."""

    def __init__(self, kind, activation):
        super().__init__()
        channels = kind.shape[1]
        self.before, self.after = (nn.Conv2d(channels, channels, 1, bias=False) for _ in range(2))
        self.norm = nn.BatchNorm2d(channels)
        self.activation = ACTIVATIONS[activation]() if kind.has_activation else nn.Identity()

    def forward(self, x):
        return self.after(self.activation(self.norm(self.before(x))))


class ResidualLayer(Layer):
    """The same with a sum before the activation."""

    def forward(self, x, residual):
        y = self.norm(self.before(x))
        y += residual
        return self.after(self.activation(y))


def make(kind, activation):
    """Return the layer of a kind."""
    return (ResidualLayer if kind.has_residual else Layer)(kind, activation)


def without_convolutions(layer, dz):
    """Replace the convolutions by copies and return the layer. Convert it before, with its convolutions."""
    layer.before.forward = _Producer.apply
    layer.after.forward = lambda z: _Consumer.apply(z, dz)
    return layer.train()


def contestants(kind, activation, layout):
    """Return forward and backward of "copies" alone, of "original" and "converted", as functions."""
    generator = torch.Generator().manual_seed(0)

    def batch():
        return torch.randn(kind.shape, generator=generator).contiguous(memory_format=FORMATS[layout])

    x, dz = batch().requires_grad_(), batch()
    residual = [batch().requires_grad_()] if kind.has_residual else []

    def step(layer):
        def run():
            layer(x, *residual).backward()
            for tensor in residual:
                tensor.grad = None

        return run

    def copies():
        _Consumer.apply(_Producer.apply(x), dz).backward()

    original, converted = make(kind, activation), convert(make(kind, activation))
    return {
        "copies": copies,
        "original": step(without_convolutions(original, dz)),
        "converted": step(without_convolutions(converted, dz)),
    }


def normalizations(activation, layout, images, pairs):
    """Return the seconds of all normalizations of ResNet-50, forward and backward, per round and contestant.

    The time of the copies is not included.
    """
    totals = {who: [0.0] * pairs for who in ("original", "converted")}
    for kind, count in kinds(images).items():
        times = rounds_in_turn(contestants(kind, activation, layout), "cpu", pairs, calls=1)
        for who, total in totals.items():
            for number, (one, copies) in enumerate(zip(times[who], times["copies"], strict=True)):
                total[number] += count * (one - copies)
    return totals


def tiny(activation, pairs):
    """Return the seconds of forward and backward of one layer on a tiny batch, per round and contestant."""
    x, dz = torch.randn(OVERHEAD_SHAPE, requires_grad=True), torch.randn(OVERHEAD_SHAPE)
    channels = OVERHEAD_SHAPE[1]
    layers = {
        "original": nn.Sequential(nn.BatchNorm2d(channels), ACTIVATIONS[activation]()),
        "converted": InPlaceABN(channels, activation=activation),
    }

    def step(layer):
        return lambda: layer(x.clone()).backward(dz)

    return rounds_in_turn({who: step(layer) for who, layer in layers.items()}, "cpu", pairs, CALLS)
