"""The steps of a network: which layers it calls in evaluation, and on which arrays.

The layers of `inplace_abn.layers` that contain layers are replaced by the steps that they make, as `handlers`
describes. The others run once, for the shape of the result: those of this package on arrays without memory,
those of the user on zeros.
"""

import copy
from types import MappingProxyType

import numpy as np

from .._arguments import integer
from .._shape_arrays import Meter, ShapeArray, planning
from ..layers import Layer, no_grad
from ..layers.recorder import active
from .handlers import handler_of
from .steps import Step, Trace, Value

#: Size of the first axis, that of the samples.
SAMPLES = 2


def trace(network, input_shape, dtype=None):
    """Return the steps of a copy of a network, in evaluation.

    Parameters
    ----------
    network : Layer
        Is not changed.
    input_shape : tuple of int, or list of tuples
        Shape of one sample, without the axis of the samples; of each input, if there are several.
    dtype : dtype, optional
        Of the inputs. Parameters and buffers of the copy are converted to float32, for float64 to float64.
        Default: float64 if a parameter of the network is, else float32; nothing is converted.

    Returns
    -------
    Trace

    Raises
    ------
    TypeError, ValueError
        If the network does not take such an input.
    """
    if not isinstance(network, Layer):
        raise TypeError(f"network must be a Layer, got {type(network).__name__}")
    shapes, network = _shapes(input_shape), copy.deepcopy(network).eval()
    if dtype is None:
        is_double = any(parameter.data.dtype == np.float64 for parameter in network.parameters())
        dtype = np.float64 if is_double else np.float32
    else:
        _convert(network, np.float64 if dtype == np.float64 else np.float32)
    inputs = tuple(Value(np.empty((SAMPLES, *shape), dtype)) for shape in shapes)
    tracer = Tracer(network)
    with no_grad(), np.errstate(all="ignore"):
        outputs = tracer.run(network, *inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return Trace(network, tracer.steps, inputs, outputs)


def _shapes(input_shape):
    """Return the shape of each input."""
    single = isinstance(input_shape, tuple)
    shapes = [input_shape] if single else input_shape
    if (
        not isinstance(shapes, list)
        or not shapes
        or not all(isinstance(shape, tuple) and shape for shape in shapes)
    ):
        got = repr(input_shape) if isinstance(input_shape, (tuple, list, str)) else type(input_shape).__name__
        raise TypeError(
            "input_shape must be the shape of one sample, such as (3, 224, 224), or a list of such tuples "
            f"for several inputs, got {got}"
        )
    return [tuple(integer("input_shape", size, least=1) for size in shape) for shape in shapes]


def _convert(network, dtype):
    """Convert the parameters and buffers of floating-point numbers."""
    for _, layer in network.named_layers():
        for parameter in layer.own_parameters().values():
            parameter.data = parameter.data.astype(dtype, copy=False)
        for key in layer.buffers:
            array = getattr(layer, key)
            if array is not None and array.dtype.kind not in "iu":
                setattr(layer, key, array.astype(dtype, copy=False))


class Tracer:
    """Collects the steps while `run` takes a network apart."""

    def __init__(self, network):
        self.steps = []
        self.calling_path = ""  # of the innermost layer whose calls `CallsInside` collects
        self._paths = {id(layer): path for path, layer in network.named_layers()}

    def run(self, layer, *inputs, **options):
        """Add the steps of a call of a layer; return the Value of its result, or a tuple of them."""
        return handler_of(layer)(self, layer, *inputs, **options)

    def step(self, op, layer, inputs, results, has_options=False):
        """Add a step; return its Value, or a tuple of them.

        Parameters
        ----------
        op : str
        layer : Layer
        inputs : tuple of Value
        results : ndarray, Value or number, or a tuple of them
            Of the shapes and dtypes of the results.
        has_options : bool
        """
        is_tuple = isinstance(results, tuple)
        results = results if is_tuple else (results,)
        outputs = tuple(Value(z if hasattr(z, "shape") else np.asarray(z)) for z in results)
        self.steps.append(Step(op, layer, self.path(layer), tuple(inputs), outputs, has_options))
        return outputs if is_tuple else outputs[0]

    def path(self, layer):
        """Return the path of a layer in the network. Operations follow that of their caller."""
        if id(layer) in self._paths:
            return self._paths[id(layer)]
        name = getattr(layer, "function", type(layer).__name__)
        return f"{self.calling_path}.{name}" if self.calling_path else name

    def results_of(self, layer, inputs):
        """Call a layer of this package on arrays without memory, for the shapes and dtypes of its results."""
        arrays = [ShapeArray(v.shape, v.dtype) if isinstance(v, Value) else v for v in inputs]
        with planning(Meter()):
            return self.called(layer, arrays)

    def called(self, layer, arrays, options=MappingProxyType({})):
        """Call a layer while no calls are collected."""
        before, active.tape = active.tape, None
        try:
            return layer(*arrays, **options)
        finally:
            active.tape = before
