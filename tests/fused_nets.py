"""A small residual network with batch norms of PyTorch or fused ones, and comparisons of both."""

import copy

import torch
from torch import nn

from inplace_abn.torch import batch_norm, recipes
from inplace_abn.torch._activations import activate, default_param

OUTPUT, GRADIENT = 1e-11, 1e-8  # relative to the largest value, in float64


class Net(nn.Module):
    """Convolution, BN, activation; convolution, BN, residual, activation; convolution."""

    def __init__(self, activation="relu", dtype=torch.float64):
        super().__init__()
        self.activation = activation
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False, dtype=dtype)
        self.bn1 = nn.BatchNorm2d(8, dtype=dtype)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False, dtype=dtype)
        self.bn2 = nn.BatchNorm2d(8, dtype=dtype)
        self.conv3 = nn.Conv2d(8, 4, 3, dtype=dtype)

    def forward(self, x):
        y = self.normalize(self.bn1, self.conv1(x))
        y = self.normalize(self.bn2, self.conv2(y), y)
        return self.conv3(y)

    def normalize(self, bn, x, residual=None):
        if batch_norm.is_fused(bn):
            return bn(x, activation=self.activation, residual=residual)
        y = bn(x)
        return activate(
            self.activation, y if residual is None else y + residual, default_param(self.activation)
        )


def fuse(net):
    """Return a copy of a network whose batch norms are fused, with hooks for recipes."""
    fused = copy.deepcopy(net)
    for name, module in fused.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            batch_norm.fuse(module, name)
    recipes.install(fused)
    return fused


def pair(activation="relu", dtype=torch.float64):
    """Return a network and its fused copy."""
    torch.manual_seed(0)
    net = Net(activation, dtype)
    for bn in (net.bn1, net.bn2):
        nn.init.uniform_(bn.weight, 0.5, 1.5)
        nn.init.normal_(bn.bias)
    return net, fuse(net)


def images(n=4, dtype=torch.float64):
    return torch.randn(n, 3, 8, 8, dtype=dtype, generator=torch.Generator().manual_seed(1))


def relative(found, expected):
    """Return the largest difference relative to the largest value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def gradient_bound(activation):
    """Return the bound of gradients' errors; PyTorch rounds the slope of hardsigmoid, 1/6, to float32."""
    return 1e-7 if activation == "hardsigmoid" else GRADIENT


def step(net, x, call=None):
    """Return the output and the gradients of x and of all parameters, of one forward and backward."""
    net.zero_grad()
    x = x.clone().requires_grad_()
    z = (net if call is None else call)(x)
    z.pow(2).sum().backward()
    return z.detach(), [x.grad, *(parameter.grad for parameter in net.parameters())]


def assert_equal_steps(net, fused, x, call=None):
    """Assert that one training step of both has the same output, gradients and buffers in float64."""
    z, gradients = step(net, x)
    found, found_gradients = step(fused, x, call)
    assert relative(found, z) < OUTPUT
    assert max(map(relative, found_gradients, gradients)) < gradient_bound(net.activation)
    for buffer, expected in zip(fused.buffers(), net.buffers(), strict=True):
        assert relative(buffer.double(), expected.double()) < OUTPUT
