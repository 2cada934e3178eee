"""ONNX files of networks."""

from pathlib import Path

import numpy as np

from .._arguments import integer
from .._files import replacing
from .trace import trace

#: Version of the ONNX operators, and the oldest version of the file format that has them.
OPSET, IR_VERSION = 17, 8
DTYPES = ("float32", "float16", "float64")
#: Files of ONNX are Protocol Buffers, which are smaller than this.
LIMIT = 1 << 31


def to_onnx(network, path, input_shape, dtype=np.float32, *, free_axes=(), converters=None):
    """Write a network, in evaluation, to an ONNX file.

    The file has one node per operation, named after the path of its layer, in operator set 17. Each layer of
    `inplace_abn.layers` and each network of `inplace_abn.models` can be written, with every activation.
    Normalizations use their running statistics, `Dropout` is omitted. Losses are no part of inference.

    The inputs of the file are "input", or "input0", "input1" and so on; the outputs "output" in the same way.
    The number of samples is free.

    Parameters
    ----------
    network : Layer
        Is not changed. Its mode does not matter. Pass the result of `fold` for fewer nodes.
    path : str or path
        An existing file is replaced atomically, after all is written and checked.
    input_shape : tuple of int, or list of tuples
        Shape of one sample, such as (3, 224, 224); a list if there are several inputs.
    dtype : {float32, float16, float64}
        Of inputs, outputs and all arrays between them. Weights of any dtype are converted to it. With float16
        the normalizations that remain keep weights and statistics of float32.
    free_axes : sequence of int
        Axes of the inputs whose size may differ from `input_shape`: (2, 3) for images (N, C, H, W) of any
        size. Sizes that a `Graph` computes in Python are constants of the file.
    converters : dict of type to function, optional
        For layers of your own. ``function(graph, path, layer, *inputs)`` gets the path of the layer and the
        names of its input tensors, adds nodes, and returns the name of the result, or a tuple of names:
        ``graph.node("Neg", path, *inputs)``, ``graph.weight(f"{path}.weight", layer.weight.data)``.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above, if the network does not take such an input, or if it contains layers
        of other types; the message lists their paths. No file is written.
    ImportError
        If the package onnx is not installed: ``pip install 'inplace-abn-numpy[onnx]'``.

    Examples
    --------
    >>> from inplace_abn import export, models
    >>> net = models.resnet(3, 10, blocks=(1, 1), width=4, rng=0)
    >>> export.to_onnx(net, "net.onnx", (3, 64, 64))  # doctest: +SKIP
    """
    dtype = _dtype(dtype)
    converters = {} if converters is None else converters
    if not isinstance(converters, dict):
        raise TypeError(f"converters must be a dict of types to functions, got {converters!r}")
    onnx = library()
    traced = trace(network, input_shape, dtype)
    free = _free_axes(free_axes, max(len(value.shape) for value in traced.inputs))
    _refuse_unknown(traced, converters)
    model = _model(onnx, traced, dtype, free, converters)
    onnx.checker.check_model(model, full_check=True)
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(model.SerializeToString())


def _dtype(dtype):
    try:
        parsed = np.dtype(dtype)
    except TypeError:
        parsed = None
    if parsed is None or parsed.name not in DTYPES or dtype is None:
        raise ValueError(f"dtype must be one of {', '.join(map(repr, DTYPES))}, got {dtype!r}")
    return parsed


def _free_axes(axes, dims):
    """Return the axes as a list, each from 1 to dims - 1."""
    if not isinstance(axes, (tuple, list)):
        raise TypeError(f"free_axes must be a tuple of axes, such as (2, 3), got {axes!r}")
    axes = [integer("free_axes", axis, least=1) for axis in axes]
    if any(axis >= dims for axis in axes):
        raise ValueError(f"free_axes must be less than {dims}, the number of axes of the input, got {axes}")
    return axes


def library():
    """Return the package onnx, or raise an ImportError that says how to install it."""
    try:
        import onnx
    except ImportError as error:
        raise ImportError(
            "ONNX files need the package onnx: pip install 'inplace-abn-numpy[onnx]'"
        ) from error
    return onnx


def _converter_of(step, converters):
    """Return the user's converter of a step, or None."""
    return next((converters[kind] for kind in type(step.layer).__mro__ if kind in converters), None)


def _name(step):
    return f"{step.path or 'network'} ({type(step.layer).__name__})"


def _refuse_unknown(traced, converters):
    unknown = [step for step in traced.steps if not step.op and _converter_of(step, converters) is None]
    if unknown:
        names = ", ".join(dict.fromkeys(map(_name, unknown)))
        raise TypeError(
            f"layers without a counterpart in ONNX: {names}; build them of calls of layers, layers.add, "
            "mul and concat alone, or pass converters={type: function}; no file was written"
        )


def _model(onnx, traced, dtype, free, converters):
    """Return the ONNX model of a `Trace`."""
    from .onnx_graph import OnnxGraph
    from .onnx_layers import add_step

    graph = OnnxGraph(dtype)
    inputs = dict(zip(_numbered("input", traced.inputs), traced.inputs, strict=True))
    for name, value in inputs.items():
        graph.put(value, name)
    for step in traced.steps:
        if step.op:
            add_step(graph, step)
        else:
            _add_own(graph, step, _converter_of(step, converters))
    outputs = dict(zip(_numbered("output", traced.outputs), traced.outputs, strict=True))
    for name, value in outputs.items():
        graph.nodes.append(onnx.helper.make_node("Identity", [graph.plain(value)], [name], name=name))
    _check_size(graph)
    kind = onnx.helper.np_dtype_to_tensor_dtype(dtype)
    made = onnx.helper.make_graph(
        graph.nodes,
        "inplace_abn",
        [
            onnx.helper.make_tensor_value_info(name, kind, _sizes(value, free, "free"))
            for name, value in inputs.items()
        ],
        [
            onnx.helper.make_tensor_value_info(name, kind, _sizes(value, free and range(1, 9), None))
            for name, value in outputs.items()
        ],
        [onnx.numpy_helper.from_array(array, name) for name, array in graph.weights.items()],
    )
    return onnx.helper.make_model(
        made, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
        producer_name="inplace_abn",
    )  # fmt: skip


def _add_own(graph, step, converter):
    """Add the nodes of a layer by the user's converter."""
    names = converter(graph, step.path, step.layer, *map(graph.plain, step.inputs))
    names = names if isinstance(names, tuple) else (names,)
    if len(names) != len(step.outputs) or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"converters: that of {_name(step)} must return the name of a tensor for each of "
            f"{len(step.outputs)} results, got {names!r}"
        )
    for value, name in zip(step.outputs, names, strict=True):
        graph.put(value, name)


def _numbered(name, values):
    return [name] if len(values) == 1 else [f"{name}{i}" for i in range(len(values))]


def _sizes(value, free, name):
    """Return the sizes of a tensor of the file: "N" samples, and a name or None for each free axis."""
    sizes = [size if i not in free else name and f"{name}{i}" for i, size in enumerate(value.shape)]
    return ["N", *sizes[1:]]


def _check_size(graph):
    size = sum(array.nbytes for array in graph.weights.values())
    if size >= LIMIT:
        raise ValueError(
            f"the weights take {size / 2**30:.1f} GiB, and an ONNX file holds less than 2 GiB; use "
            "dtype='float16'"
        )
