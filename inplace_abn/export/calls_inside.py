"""The calls that a layer makes of other layers, found by running ``compute`` or ``forward`` on zeros."""

import numpy as np

from ..layers import Call, Graph
from ..layers.recorder import active
from .steps import Value


class CallsInside:
    """Takes the place of a tape while the layer runs: `Layer.__call__` passes calls to `call`.

    Arrays are known by their identity. They are read-only, so that NumPy functions that write to them raise
    an error instead of being lost.

    Parameters
    ----------
    tracer : Tracer
    layer : Layer
        A `inplace_abn.layers.Graph`, or another layer whose forward calls layers.
    """

    def __init__(self, tracer, layer):
        self._tracer, self._layer = tracer, layer
        self._known = {}  # id of an array -> (the array, its Value)
        for path, parameter in layer.named_parameters():
            start = tracer.path(layer)
            name = f"{start}.{path}" if start else path
            self._enter(parameter.data, Value(parameter.data, parameter.data, name))
        self._given = set()

    def results(self, inputs, options):
        """Run the layer; return the Value of its result, or a tuple of them.

        Raises
        ------
        ValueError
            If an array that no layer has made is passed to a layer or returned.
        """
        arrays = [self._array_of(value) for value in inputs]
        named = {
            key: self._array_of(value) if isinstance(value, Value) else value
            for key, value in options.items()
        }
        is_graph = type(self._layer).forward is Graph.forward
        if is_graph or self._tracer.path(self._layer) == "":  # their inputs are copied by containers inside
            self._given = {id(array) for array in (*arrays, *named.values())}
        before, active.tape = active.tape, self
        outer, self._tracer.calling_path = self._tracer.calling_path, self._tracer.path(self._layer)
        try:
            if is_graph:
                z = self._layer.compute(*arrays, **named)
            else:
                z = self._layer.forward(Call(self._layer, arrays, named, None), *arrays, **named)
        finally:
            active.tape, self._tracer.calling_path = before, outer
        if isinstance(z, tuple):
            return tuple(self._value_of(f"result {i}", result) for i, result in enumerate(z))
        return self._value_of("result", z)

    def call(self, layer, inputs, options):
        """Add the steps of a call of a layer; return arrays for its results."""
        if options.get("mask") is not None:
            raise ValueError(f"{layer.label}: mask=: the export is for batches without a mask")
        values = [self._known_or_constant(f"input {i}", layer, value) for i, value in enumerate(inputs)]
        out = options.get("out")
        named = {
            key: self._known_or_constant(f"{key}=", layer, value)
            for key, value in options.items()
            if key != "out"
        }
        result = self._tracer.run(layer, *values, **named)
        overwritten = self._overwritten(layer, inputs)
        if overwritten is not None:
            del self._known[id(overwritten)]
            if layer.works_in_place and out is None:
                out = overwritten
        if isinstance(result, tuple):
            return tuple(self._array_of(value) for value in result)
        return self._array_of(result, out)

    def _overwritten(self, layer, inputs):
        """Return the array that a call overwrites, or None. Containers copy the arrays in `_given`."""
        if not inputs or not layer.overwrites_input or id(inputs[0]) not in self._known:
            return None
        return None if layer.copies_input and id(inputs[0]) in self._given else inputs[0]

    def _known_or_constant(self, name, layer, value):
        """Return the Value of an array, and anything else unchanged."""
        return self._value_of(f"{layer.label}: {name}", value) if isinstance(value, np.ndarray) else value

    def _value_of(self, name, array):
        """Return the Value of a known array, else raise a ValueError."""
        entry = self._known.get(id(array))
        if entry is None or entry[0] is not array:
            raise ValueError(
                f"{self._layer.label}: {name}, {_described(array)}, is not the result of a layer, or was "
                "overwritten by one, so that the export has no operation that computes it; use layers, "
                "layers.add, mul and concat instead of NumPy"
            )
        return entry[1]

    def _array_of(self, value, array=None):
        """Return an array that stands for a Value: `array`, or zeros."""
        if array is None:
            array = value.zeros()
            array.flags.writeable = False
        self._enter(array, value)
        return array

    def _enter(self, array, value):
        self._known[id(array)] = array, value


def _described(array):
    """Return shape or type of a value, for messages."""
    if isinstance(array, np.ndarray):
        return f"an array of shape {array.shape}"
    return f"of type {type(array).__name__}"
