"""Collects the nodes and weights of an ONNX graph."""

from collections import Counter
from typing import NamedTuple

import numpy as np
import onnx


class Tensor(NamedTuple):
    """A tensor of the graph that holds a `Value`.

    Attributes
    ----------
    name : str
    channels_first : bool
        True if the value has the shape (N, ..., C) and the tensor (N, C, ...). ONNX has operations for the
        latter alone, so that values remain in this order from one layer to the next.
    """

    name: str
    channels_first: bool = False


class OnnxGraph:
    """Nodes and weights, and the tensors that hold the values of a `Trace`.

    Parameters
    ----------
    dtype : numpy.dtype
        Of all tensors. Weights are converted to it.
    """

    def __init__(self, dtype):
        self.dtype = np.dtype(dtype)
        self.nodes, self.weights = [], {}
        self._tensors, self._names = {}, Counter()
        self._weights_of = {}  # id of an array, dtype and shape -> (name of the weight, the array)

    def node(self, op, path, *inputs, **attributes):
        """Add a node; return the name of its result.

        Parameters
        ----------
        op : str
            Type of the node, such as "Conv".
        path : str
            Path of the layer, for the names.
        *inputs : str
            Names of tensors.
        **attributes
            Of the node.
        """
        name = self._unused(f"{path}/{op}" if path else op)
        self.nodes.append(onnx.helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def weight(self, path, array, dtype=None):
        """Add an array, converted to the dtype of the graph; return its name. Each array is added once."""
        dtype = self.dtype if dtype is None else np.dtype(dtype)
        key = id(array), dtype, array.shape
        if key not in self._weights_of:
            name = self._unused(path)
            self.weights[name] = _converted(name, array, dtype)
            self._weights_of[key] = name, array
        return self._weights_of[key][0]

    def number(self, value, dtype=None):
        """Add a number, or a list of integers with ``dtype=numpy.int64``; return its name."""
        array = np.asarray(value, self.dtype if dtype is None else dtype)
        name = f"{value}" if dtype is None else f"sizes {value}"
        if name not in self.weights:
            self.weights[name] = array
        return name

    def _unused(self, name):
        self._names[name] += 1
        return name if self._names[name] == 1 else f"{name}.{self._names[name]}"

    # ---- values ------------------------------------------------------------------------------------------

    def put(self, value, name, channels_first=False):
        """Enter the tensor that holds a value."""
        self._tensors[value] = Tensor(name, channels_first and len(value.shape) > 2)

    def tensor(self, value):
        """Return the `Tensor` of a value."""
        if value.constant is not None and value not in self._tensors:
            self.put(value, self.weight(value.name or "number", value.constant))
        return self._tensors[value]

    def plain(self, value):
        """Return the name of a tensor with the axes of the value itself."""
        name, channels_first = self.tensor(value)
        if not channels_first:
            return name
        last = len(value.shape) - 1
        return self.node("Transpose", name, name, perm=[0, *range(2, last + 1), 1])

    def channels_first(self, value, channel_axis):
        """Return the name of a tensor (N, C, ...) of a value whose channels are at `channel_axis`."""
        if channel_axis == 1 or len(value.shape) <= 2:
            return self.plain(value)
        name, channels_first = self.tensor(value)
        if channels_first:
            return name
        last = len(value.shape) - 1
        return self.node("Transpose", name, name, perm=[0, last, *range(1, last)])

    def in_same_order(self, *values):
        """Return (names of tensors with the same order of axes, True if that order is channels first)."""
        arrays = [value for value in values if value.shape]  # a number fits both orders
        same = all(self.tensor(value).channels_first for value in arrays)
        if same and len({len(value.shape) for value in arrays}) == 1:
            return [self.tensor(value).name for value in values], True
        return [self.plain(value) for value in values], False


def _converted(name, array, dtype):
    """Return a C-contiguous array of a dtype; refuse numbers that overflow it."""
    with np.errstate(over="ignore"):
        converted = np.asarray(array, dtype, order="C")
    if (np.isinf(converted) & np.isfinite(array)).any():
        raise ValueError(f"{name}: values beyond the range of {dtype}; write the file in float32")
    return converted
