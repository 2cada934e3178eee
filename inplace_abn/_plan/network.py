"""Networks without memory: copies whose parameters are shape arrays, with a chosen strategy."""

import copy
import inspect

import numpy as np

from .. import models
from .._activations import KEEPS
from .._arguments import choice
from .._shape_arrays import ShapeArray, ShapeGenerator
from ..layers import ABN, Layer


def maker_of(network, channels, classes=None):
    """Return a function that makes the network for a strategy, or for None as it is.

    Parameters
    ----------
    network : Layer, str or function
        A layer is copied, and its normalizations are switched. A str is a name of `inplace_abn.models`. A
        function takes the strategy, and returns a layer.
    channels : int
        Channels of the input, for a name.
    classes : int, optional
        Number of classes, for a name.
    """
    if isinstance(network, str):
        return _from_name(network, channels, classes)
    if isinstance(network, Layer):
        return lambda strategy: with_strategy(shaped_copy(network), strategy)
    if callable(network):
        return lambda strategy: shaped_copy(network("inplace" if strategy is None else strategy))
    raise TypeError(
        "network: expected a Layer, a torch.nn.Module, a function of a strategy or a name of "
        f"inplace_abn.models, got {type(network).__name__}"
    )


def names():
    """Return the names of the networks of `inplace_abn.models`."""
    return [name for name in models.__all__ if "in_channels" in _parameters_of(name)]


def _parameters_of(name):
    return inspect.signature(getattr(models, name)).parameters


def _from_name(name, channels, classes):
    make = getattr(models, choice("network", name, names()))
    options = {} if classes is None else {"num_classes": classes}
    if classes is None and _parameters_of(name)["num_classes"].default is inspect.Parameter.empty:
        raise ValueError(f"classes: {name} has no default for the number of classes; pass one")

    def made(strategy):
        style = {"strategy": "inplace" if strategy is None else strategy, "rng": ShapeGenerator()}
        return shaped_copy(make(in_channels=channels, **options, **style))

    return made


def shaped_copy(network):
    """Return a copy of a network whose parameters, buffers and random numbers are shape arrays."""
    memo, originals = {}, []
    for _, layer in network.named_layers():
        arrays = [parameter.data for parameter in layer.own_parameters().values()]
        arrays += [getattr(layer, name, None) for name in layer.buffers]
        for array in arrays:
            if isinstance(array, np.ndarray) and id(array) not in memo:
                memo[id(array)] = ShapeArray(array.shape, array.dtype)
                originals.append(array)
        for value in vars(layer).values():
            if isinstance(value, np.random.Generator):
                memo[id(value)] = ShapeGenerator()
                originals.append(value)
    return copy.deepcopy(network, memo).train()


def with_strategy(network, strategy):
    """Set the strategy of all normalizations; None leaves them. Return the network.

    Where normalizations that overwrite their input stand next to some that do not, the latter share their
    input with other layers, as in a DenseNet: they get "checkpoint", or "standard" with that strategy.
    """
    if strategy is None:
        return network
    found = [layer for _, layer in network.named_layers() if isinstance(layer, ABN)]
    mixed = len({KEEPS[layer.strategy] == "x" for layer in found}) == 2
    for layer in found:
        shared = mixed and KEEPS[layer.strategy] == "x"
        layer.strategy = "checkpoint" if shared and strategy != "standard" else strategy
    return network
