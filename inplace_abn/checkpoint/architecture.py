"""Descriptions of networks: the classes and settings of their layers, as JSON, without the arrays."""

import json
from functools import cache

import numpy as np

from ..layers import Layer, Parameter, SyncABN


def description_of(network):
    """Return the description of a network as JSON in an array of uint8.

    Parameters
    ----------
    network : Layer

    Raises
    ------
    TypeError
        If the network has layers of other classes than those of `inplace_abn.layers` and
        `inplace_abn.models`, or a layer has an attribute that is no number, text, parameter or buffer.
    """
    text = json.dumps(_Writer().layer("", network), separators=(",", ":"))
    return np.frombuffer(text.encode(), np.uint8).copy()


def network_from(description):
    """Return the network of a description, with parameters and buffers that are zero.

    Only classes of `inplace_abn.layers` and `inplace_abn.models` are made, and no code of the file runs.

    Raises
    ------
    ValueError
        If it is not a description of a network.
    """
    try:
        network = _Reader().value(json.loads(np.asarray(description, np.uint8).tobytes()))
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise ValueError(f"the description of the network is damaged: {error}") from error
    if not isinstance(network, Layer):
        raise ValueError("the description of the network is damaged: it describes no layer")
    return network


_BIT_GENERATORS = {
    kind.__name__: kind
    for kind in (
        np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64,
    )
}  # fmt: skip


@cache
def _classes():
    """Return the classes that a description may contain, by name."""
    from .. import layers, models
    from ..models.deeplab import ImagePooling

    objects = [ImagePooling, *vars(layers).values(), *vars(models).values()]
    classes = [kind for kind in objects if isinstance(kind, type) and issubclass(kind, Layer)]
    return {kind.__name__: kind for kind in classes}


class _Writer:
    """Converts layers to JSON. A layer or parameter that appears twice is a reference the second time."""

    def __init__(self):
        self._numbers = {}  # id of a layer or parameter -> position among all of them

    def layer(self, path, layer):
        kind = type(layer)
        if _classes().get(kind.__name__) is not kind:
            raise TypeError(f"{path or 'network'} ({kind.__name__}) is not a layer of this package")
        if id(layer) in self._numbers:
            return {"same": self._numbers[id(layer)]}
        self._numbers[id(layer)] = len(self._numbers)
        attributes = {
            key: self._value(f"{path}.{key}" if path else key, value, key in layer.buffers)
            for key, value in _state_of(layer).items()
        }
        return {"layer": kind.__name__, "attributes": attributes}

    def _value(self, path, value, is_buffer):
        if isinstance(value, Layer):
            return self.layer(path, value)
        if isinstance(value, Parameter):
            if id(value) in self._numbers:
                return {"same": self._numbers[id(value)]}
            self._numbers[id(value)] = len(self._numbers)
            return {"parameter": _shape_and_dtype(value.data), "requires_grad": value.requires_grad}
        if isinstance(value, np.ndarray) and is_buffer:
            return {"buffer": _shape_and_dtype(value)}
        if isinstance(value, np.random.Generator):
            return {"generator": type(value.bit_generator).__name__}
        if isinstance(value, tuple):
            return {"tuple": [self._value(path, element, False) for element in value]}
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise TypeError(f"{path}: {type(value).__name__} cannot be described")


def _state_of(layer):
    """Return the attributes of a layer. Groups of processes are not described: `SyncABN` gets that of MPI."""
    attributes = {key: value for key, value in layer.__getstate__().items() if key != "_key"}
    if isinstance(layer, SyncABN):
        del attributes["_exchange"]
        attributes["group"] = None
    return attributes


def _shape_and_dtype(array):
    return [list(array.shape), array.dtype.name]


class _Reader:
    """Makes layers from JSON."""

    def __init__(self):
        self._made = []

    def value(self, description):
        if not isinstance(description, dict):
            return description
        kind, content = next(iter(description.items()))
        if kind == "layer":
            return self._layer(_classes()[content], description["attributes"])
        if kind == "same":
            return self._made[content]
        if kind == "parameter":
            self._made.append(Parameter(_zeros(*content), description["requires_grad"]))
            return self._made[-1]
        if kind == "buffer":
            return _zeros(*content)
        if kind == "generator":
            return np.random.Generator(_BIT_GENERATORS[content]())
        if kind == "tuple":
            return tuple(self.value(element) for element in content)
        raise ValueError(f"unknown entry {kind!r}")

    def _layer(self, kind, attributes):
        layer = kind.__new__(kind)
        self._made.append(layer)
        for key, value in attributes.items():
            if key.startswith("__"):
                raise ValueError(f"attribute {key!r}")
            setattr(layer, key, self.value(value))
        return layer


def _zeros(shape, dtype):
    if dtype == "bfloat16":
        import ml_dtypes

        dtype = ml_dtypes.bfloat16
    return np.zeros(shape, dtype)
