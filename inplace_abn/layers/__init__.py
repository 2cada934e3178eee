"""Layers on NumPy arrays, with their gradients: what a convolutional network needs, and nothing kept twice.

``z = layer(x)`` is the forward, ``dx = layer.backward(dz)`` the backward; the gradients of the parameters
add up in ``parameter.grad``:

>>> import numpy as np
>>> from inplace_abn import layers
>>> net = layers.Sequential(layers.InPlaceABN(3), layers.GlobalAvgPool2d())
>>> x = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
>>> z = net(x)
>>> dx = net.backward(np.ones_like(z))
>>> [parameter.name for parameter in net.parameters()], dx.shape
(['0.weight', '0.bias'], (4, 3, 8, 8))

What a call keeps for its backward is locked, and freed as soon as that has run; `no_grad` is for calls
without one. Networks of these layers are in `inplace_abn.models`, writing a layer is shown in
`inplace_abn.layers.base`.
"""

from .abn import ABN, InPlaceABN
from .activation import Activation
from .base import Call, Layer, LayerContext, Parameter
from .concat import Concat
from .containers import Identity, Residual, Sequential
from .context import is_grad_enabled, no_grad
from .convolution import Conv2d, ConvTranspose2d
from .elementwise import add, mul
from .graph import Graph
from .group_norm import GroupNorm
from .joining import concat, joined_array
from .linear import Dropout, Flatten, Linear
from .loss import CrossEntropy, MSELoss
from .modules import ModuleDict, ModuleList
from .nonfinite import watch_nonfinite
from .pooling import AvgPool2d, GlobalAvgPool2d, MaxPool2d, Upsample
from .recompute import Recompute
from .tape import Tape, record

__all__ = [
    "ABN",
    "Activation",
    "AvgPool2d",
    "Call",
    "Concat",
    "Conv2d",
    "ConvTranspose2d",
    "CrossEntropy",
    "Dropout",
    "Flatten",
    "GlobalAvgPool2d",
    "Graph",
    "GroupNorm",
    "Identity",
    "InPlaceABN",
    "Layer",
    "LayerContext",
    "Linear",
    "MSELoss",
    "MaxPool2d",
    "ModuleDict",
    "ModuleList",
    "Parameter",
    "Recompute",
    "Residual",
    "Sequential",
    "Tape",
    "Upsample",
    "add",
    "concat",
    "is_grad_enabled",
    "joined_array",
    "mul",
    "no_grad",
    "record",
    "watch_nonfinite",
]
