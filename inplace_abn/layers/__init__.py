"""Layers on NumPy arrays, with their gradients, for convolutional networks.

``z = layer(x)`` is the forward, ``dx = layer.backward(dz)`` the backward. The backward adds the gradients of
the parameters to ``parameter.grad``:

>>> import numpy as np
>>> from inplace_abn import layers
>>> net = layers.Sequential(layers.InPlaceABN(3), layers.GlobalAvgPool2d())
>>> x = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
>>> z = net(x)
>>> dx = net.backward(np.ones_like(z))
>>> [parameter.name for parameter in net.parameters()], dx.shape
(['0.weight', '0.bias'], (4, 3, 8, 8))

A call keeps arrays for its backward. They are read-only until the backward has run, and are then released;
layers that keep the same array share it. Inside `no_grad`, calls keep nothing. `inplace_abn.models` has
networks of these layers. `inplace_abn.layers.base` shows how to write a layer.
"""

from .abn import ABN, InPlaceABN
from .activation import Activation
from .base import Call, Layer, LayerContext, Parameter
from .concat_arrays import concat, joined_array
from .concat_layer import Concat
from .containers import Identity, Sequential
from .context import is_grad_enabled, no_grad
from .convolution import Conv2d, ConvTranspose2d
from .elementwise import add, mul
from .graph import Graph
from .group_norm import GroupNorm
from .linear import Dropout, Flatten, Linear
from .loss import CrossEntropy, MSELoss
from .modules import ModuleDict, ModuleList
from .nonfinite import watch_nonfinite
from .pooling import AvgPool2d, GlobalAvgPool2d, MaxPool2d, Upsample
from .recompute import Recompute
from .residual import Residual
from .sync_abn import InPlaceABNSync, SyncABN, convert_sync, set_active_group
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
    "InPlaceABNSync",
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
    "SyncABN",
    "Tape",
    "Upsample",
    "add",
    "concat",
    "convert_sync",
    "is_grad_enabled",
    "joined_array",
    "mul",
    "no_grad",
    "record",
    "set_active_group",
    "watch_nonfinite",
]
