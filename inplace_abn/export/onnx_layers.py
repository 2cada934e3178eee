"""Steps of a network as nodes of ONNX."""

import numpy as np

from ..ops.conv2d import padding_of
from .onnx_activations import add_activation


def add_step(graph, step):
    """Add the nodes of a step to an `OnnxGraph`, and enter the tensors of its results."""
    CONVERTERS[step.op](graph, step)


def _image_layer(convert):
    """Return the converter of a layer with channels: ``convert(graph, step, x)`` returns a name."""

    def add(graph, step):
        axis = step.layer.channel_axis
        x = graph.channels_first(step.inputs[0], axis)
        graph.put(step.outputs[0], convert(graph, step, x), channels_first=axis == -1)

    return add


def _parameter(graph, step, name, like=None):
    """Return the name of a parameter of the layer; `like` is an array (C, 1, ...) of the same elements."""
    array = getattr(step.layer, name).data if like is None else like
    return graph.weight(f"{step.path}.{name}" if step.path else name, array)


# ---- convolutions and linear layers ----------------------------------------------------------------------


def _conv(graph, step, x):
    layer = step.layer
    zeros, more = padding_of(layer.padding, layer.kernel_size, layer.stride, layer.dilation)
    end = [start + additional for start, additional in zip(zeros, more, strict=True)]
    return graph.node(
        "Conv", step.path, x, *_weights(graph, step), kernel_shape=layer.kernel_size, strides=layer.stride,
        dilations=layer.dilation, group=layer.groups, pads=[*zeros, *end],
    )  # fmt: skip


def _conv_transpose(graph, step, x):
    layer = step.layer
    return graph.node(
        "ConvTranspose", step.path, x, *_weights(graph, step), kernel_shape=layer.kernel_size,
        strides=layer.stride, dilations=layer.dilation, group=layer.groups, pads=[*layer.padding] * 2,
        output_padding=layer.output_padding,
    )  # fmt: skip


def _linear(graph, step):
    x, weights = graph.plain(step.inputs[0]), _weights(graph, step)
    if len(step.inputs[0].shape) == 2:
        graph.put(step.outputs[0], graph.node("Gemm", step.path, x, *weights, transB=1))
        return
    transposed = graph.node("Transpose", step.path, weights[0], perm=[1, 0])
    z = graph.node("MatMul", step.path, x, transposed)
    graph.put(step.outputs[0], graph.node("Add", step.path, z, weights[1]) if len(weights) > 1 else z)


def _weights(graph, step):
    names = ["weight"] if step.layer.bias is None else ["weight", "bias"]
    return [_parameter(graph, step, name) for name in names]


def _flatten(graph, step):
    x = graph.plain(step.inputs[0])
    graph.put(step.outputs[0], graph.node("Flatten", step.path, x, axis=1))


# ---- normalizations and activations ----------------------------------------------------------------------


def _abn(graph, step, x):
    layer = step.layer
    if layer._normalizes_by_batch:
        return _by_statistics_of_the_batch(graph, step, x)
    start = f"{step.path}." if step.path else ""
    weight, bias = _weight_and_bias(layer, layer.num_features)
    arrays = {
        "weight": weight, "bias": bias, "running_mean": layer.running_mean, "running_var": layer.running_var,
    }  # fmt: skip
    # In a float16 graph these arrays stay in float32: variances may be too small for float16.
    dtype = np.float32 if graph.dtype == np.float16 else None
    names = [graph.weight(start + name, array, dtype) for name, array in arrays.items()]
    return graph.node("BatchNormalization", step.path, x, *names, epsilon=layer.eps)


def _by_statistics_of_the_batch(graph, step, x):
    """Normalize by mean and variance of the batch, as layers without running statistics do."""
    dims, path = len(step.inputs[0].shape), step.path
    axes = [0, *range(2, dims)]
    centred = graph.node("Sub", path, x, graph.node("ReduceMean", path, x, axes=axes, keepdims=1))
    squares = graph.node("Mul", path, centred, centred)
    variance = graph.node("ReduceMean", path, squares, axes=axes, keepdims=1)
    deviation = graph.node("Sqrt", path, graph.node("Add", path, variance, graph.number(step.layer.eps)))
    z = graph.node("Div", path, centred, deviation)
    return _scaled(graph, step, z, step.layer.num_features, dims)


def _group_norm(graph, step, x):
    """Normalize groups as the channels of an InstanceNormalization."""
    layer, path, dims = step.layer, step.path, len(step.inputs[0].shape)
    ones = graph.weight("ones", np.ones(layer.num_groups, graph.dtype))
    zeros = graph.weight("zeros", np.zeros(layer.num_groups, graph.dtype))
    grouped = graph.node("Reshape", path, x, graph.number([0, layer.num_groups, -1], np.int64))
    z = graph.node("InstanceNormalization", path, grouped, ones, zeros, epsilon=layer.eps)
    z = graph.node("Reshape", path, z, graph.node("Shape", path, x))
    return _scaled(graph, step, z, layer.num_channels, dims)


def _scaled(graph, step, z, channels, dims):
    """Return z * weight + bias of a layer, or z if it has neither."""
    if step.layer.weight is None:
        return z
    shape = (channels, *[1] * (dims - 2))
    weight, bias = (
        _parameter(graph, step, name, getattr(step.layer, name).data.reshape(shape))
        for name in ("weight", "bias")
    )
    return graph.node("Add", step.path, graph.node("Mul", step.path, z, weight), bias)


def _weight_and_bias(layer, features):
    if layer.weight is None:
        return np.ones(features, np.float32), np.zeros(features, np.float32)
    return layer.weight.data, layer.bias.data


def _activation(graph, step):
    """Activate in the order of axes that the tensor has; slopes per channel need the channels first."""
    layer, value, slope = step.layer, step.inputs[0], None
    name, channels_first = graph.tensor(value)
    if layer.slope is not None:
        slopes = layer.slope.data
        if slopes.size > 1:
            name = graph.channels_first(value, layer.channel_axis)
            channels_first = layer.channel_axis == -1
            slopes = slopes.reshape(-1, *[1] * (len(value.shape) - 2))
        slope = _parameter(graph, step, "slope", slopes)
    graph.put(step.outputs[0], add_activation(graph, layer, step.path, name, slope), channels_first)


# ---- pooling and interpolation ---------------------------------------------------------------------------


def _max_pool(graph, step, x):
    return graph.node("MaxPool", step.path, x, **_windows(step.layer))


def _avg_pool(graph, step, x):
    return graph.node("AveragePool", step.path, x, count_include_pad=1, **_windows(step.layer))


def _windows(layer):
    return {"kernel_shape": layer.kernel_size, "strides": layer.stride, "pads": [*layer.padding] * 2}


def _global_avg_pool(graph, step, x):
    z = graph.node("GlobalAveragePool", step.path, x)
    return z if step.layer.keepdims else graph.node("Flatten", step.path, z, axis=1)


def _upsample(graph, step, x):
    layer = step.layer
    if layer.mode == "nearest":
        options = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
    else:
        positions = "align_corners" if layer.align_corners else "half_pixel"
        options = {"mode": "linear", "coordinate_transformation_mode": positions}
    if layer.size is None:
        factors = layer.scale_factor if isinstance(layer.scale_factor, tuple) else [layer.scale_factor] * 2
        scales = graph.number([1.0, 1.0, *map(float, factors)], np.float32)
        return graph.node("Resize", step.path, x, "", scales, **options)
    size = list(layer.size) if isinstance(layer.size, tuple) else [layer.size] * 2
    sizes = _joined_sizes(graph, step, _sizes(graph, step, x, 0, 2), graph.number(size, np.int64))
    return graph.node("Resize", step.path, x, "", "", sizes, **options)


def _expand(graph, step):
    """Repeat (N, C, 1, 1) at all pixels of the second input."""
    axis = step.layer.channel_axis
    z, like = (graph.channels_first(value, axis) for value in step.inputs)
    sizes = _joined_sizes(graph, step, graph.number([1, 1], np.int64), _sizes(graph, step, like, 2, 4))
    graph.put(step.outputs[0], graph.node("Expand", step.path, z, sizes), channels_first=axis == -1)


def _sizes(graph, step, x, first, end):
    """Return the name of the sizes of the axes from `first` to `end`."""
    return graph.node("Shape", step.path, x, start=first, end=end)


def _joined_sizes(graph, step, *names):
    return graph.node("Concat", step.path, *names, axis=0)


# ---- several inputs --------------------------------------------------------------------------------------


def _elementwise(graph, step):
    names, channels_first = graph.in_same_order(*step.inputs)
    graph.put(step.outputs[0], graph.node(step.op, step.path, *names), channels_first)


def _concat(graph, step):
    axis = step.layer.channel_axis
    names = [graph.channels_first(value, axis) for value in step.inputs]
    graph.put(step.outputs[0], graph.node("Concat", step.path, *names, axis=1), channels_first=axis == -1)


CONVERTERS = {
    "ABN": _image_layer(_abn),
    "Activation": _activation,
    "Add": _elementwise,
    "AvgPool2d": _image_layer(_avg_pool),
    "Concat": _concat,
    "Conv2d": _image_layer(_conv),
    "ConvTranspose2d": _image_layer(_conv_transpose),
    "Expand": _expand,
    "Flatten": _flatten,
    "GlobalAvgPool2d": _image_layer(_global_avg_pool),
    "GroupNorm": _image_layer(_group_norm),
    "Linear": _linear,
    "MaxPool2d": _image_layer(_max_pool),
    "Mul": _elementwise,
    "Upsample": _image_layer(_upsample),
}
