"""What each class of layers adds to the steps of a network."""

import numpy as np

from ..layers import (
    ABN,
    Activation,
    AvgPool2d,
    Concat,
    Conv2d,
    ConvTranspose2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    Graph,
    GroupNorm,
    Identity,
    Linear,
    MaxPool2d,
    Recompute,
    Residual,
    Sequential,
    SyncABN,
    Upsample,
)
from ..layers.concat_arrays import _Concat, _Copy
from ..layers.elementwise import _Add, _Mul
from ..models.deeplab import ImagePooling
from .calls_inside import CallsInside
from .steps import Value


def handler_of(layer):
    """Return the function that adds the steps of a layer: handler(tracer, layer, *inputs, **options).

    A subclass with a ``forward`` of its own is a layer of the user.
    """
    kind = type(layer)
    for base in kind.__mro__:
        if base in HANDLERS and kind.forward is base.forward:
            return HANDLERS[base]
    return _users_layer


def _users_layer(tracer, layer, *inputs, **options):
    """Add the steps of a layer of the user.

    They are those of the layers inside. If there are none, or the layer also computes with NumPy, it is one
    step of an unknown operation.
    """
    before = len(tracer.steps)
    if any(True for _ in layer.children()):
        try:
            return CallsInside(tracer, layer).results(inputs, options)
        except ValueError:  # NumPy makes or writes an array; errors of the layer itself are raised below
            del tracer.steps[before:]
    arrays = [_zeros(value) for value in inputs]
    named = {key: _zeros(value) for key, value in options.items()}
    taken = [value for value in (*inputs, *options.values()) if isinstance(value, Value)]
    return tracer.step("", layer, taken, tracer.called(layer, arrays, named))


def _zeros(value):
    """Return an array of zeros for a `Value`, and anything else unchanged."""
    return value.zeros() if isinstance(value, Value) else value


def _single(op):
    """Return the handler of a layer that is one step."""

    def run(tracer, layer, *inputs):
        return tracer.step(op, layer, inputs, tracer.results_of(layer, inputs))

    return run


def _unchanged(tracer, layer, x):
    """Return the input: dropout in evaluation, the identity, and copies."""
    return x


# ---- normalization and activation ------------------------------------------------------------------------


def _abn(tracer, layer, x, residual=None, *, activation=None):
    """Normalize, add the residual, activate."""
    has_options = residual is not None or activation is not None
    z = tracer.step("ABN", layer, (x,), tracer.results_of(layer, (x,)), has_options)
    if residual is not None:
        z = tracer.step("Add", layer, (z, residual), z)
    return _activated(tracer, layer if activation is None else activation, z)


def _activation(tracer, layer, x):
    tracer.results_of(layer, (x,))  # raises errors
    return _activated(tracer, layer, x)


def _activated(tracer, layer, x):
    return x if layer.activation == "identity" else tracer.step("Activation", layer, (x,), x)


# ---- layers that contain layers --------------------------------------------------------------------------


def _sequential(tracer, layer, *inputs, **options):
    layers = list(layer)
    for i, inner in enumerate(layers, 1):
        result = tracer.run(inner, *inputs, **(options if i == len(layers) else {}))
        inputs = result if isinstance(result, tuple) else (result,)
    return inputs[0] if len(inputs) == 1 else inputs


def _residual(tracer, layer, x):
    first, last = layer.preactivation, layer.activation
    a = x if first is None else tracer.run(first, x)
    shortcut = x if layer.shortcut is None else tracer.run(layer.shortcut, a)
    branch = tracer.run(layer.branch, a)
    if branch.shape != shortcut.shape:
        raise ValueError(
            f"{layer.label}: branch and shortcut: expected the same shape, got {branch.shape} and "
            f"{shortcut.shape}"
        )
    z = tracer.step("Add", layer, (branch, shortcut), branch)
    return z if last is None else tracer.run(last, z)


def _concat_layer(tracer, layer, x):
    return _concatenated(tracer, layer, *(tracer.run(branch, x) for branch in layer))


def _concatenated(tracer, layer, *inputs):
    joined = np.concatenate([value.zeros() for value in inputs], layer.channel_axis)
    return tracer.step("Concat", layer, inputs, joined)


def _image_pooling(tracer, layer, x):
    z = tracer.run(layer.layers, tracer.run(layer.pool, x))
    return tracer.step("Expand", layer, (z, x), tracer.results_of(layer, (x,)))


def _graph(tracer, layer, *inputs, **options):
    return CallsInside(tracer, layer).results(inputs, options)


def _operation(op):
    """Return the handler of a function such as `add`, whose inputs may be numbers."""

    def run(tracer, layer, *inputs):
        values = [value if isinstance(value, Value) else _number(value, inputs) for value in inputs]
        return tracer.step(op, layer, values, tracer.results_of(layer, inputs))

    return run


def _number(number, inputs):
    """Return a number as a constant `Value` with the dtype of the other inputs."""
    dtype = next(value.dtype for value in inputs if isinstance(value, Value))
    array = np.asarray(number, dtype)
    return Value(array, array)


#: Class of layers -> handler, which adds the steps of a layer: see `handler_of`.
HANDLERS = {
    ABN: _abn,
    SyncABN: _abn,  # in evaluation, an ABN
    Activation: _activation,
    Sequential: _sequential,
    Recompute: _sequential,
    Residual: _residual,
    Concat: _concat_layer,
    Graph: _graph,
    ImagePooling: _image_pooling,
    Identity: _unchanged,
    Dropout: _unchanged,
    _Copy: _unchanged,
    _Add: _operation("Add"),
    _Mul: _operation("Mul"),
    _Concat: _concatenated,
}
HANDLERS |= {
    kind: _single(kind.__name__)
    for kind in (
        AvgPool2d, Conv2d, ConvTranspose2d, Flatten, GlobalAvgPool2d, GroupNorm, Linear, MaxPool2d, Upsample,
    )
}  # fmt: skip
