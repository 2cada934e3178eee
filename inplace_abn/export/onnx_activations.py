"""Activations as nodes of ONNX.

Each function takes the graph, the path of the layer, the name of y and the parameter, and returns the name of
z. The formulas are those of `inplace_abn.reference.ACTIVATIONS`.
"""

import math


def add_activation(graph, layer, path, y, slope):
    """Add the nodes of an activation; return the name of its result.

    Parameters
    ----------
    graph : OnnxGraph
    layer : Activation or ABN
    path, y : str
    slope : str or None
        Name of the slopes of prelu, in a shape that broadcasts with y.
    """
    name = layer.activation
    if name in NODES:
        op, attributes = NODES[name]
        return graph.node(op, path, y, **attributes)
    return FUNCTIONS[name](graph, path, y, layer.activation_param if slope is None else slope)


def _leaky_relu(graph, path, y, slope):
    return graph.node("LeakyRelu", path, y, alpha=slope)


def _prelu(graph, path, y, slope):
    return graph.node("PRelu", path, y, slope)


def _elu(graph, path, y, alpha):
    return graph.node("Elu", path, y, alpha=alpha)


def _celu(graph, path, y, alpha):
    """``max(y, 0) + alpha * (exp(min(y, 0) / alpha) - 1)``: Celu takes float32 and alpha > 0 alone."""
    zero, alpha_ = graph.number(0.0), graph.number(alpha)
    below = graph.node("Div", path, graph.node("Min", path, y, zero), alpha_)
    if alpha > 0:
        curve = graph.node("Elu", path, below, alpha=1.0)
    else:
        curve = graph.node("Sub", path, graph.node("Exp", path, below), graph.number(1.0))
    scaled = graph.node("Mul", path, curve, alpha_)
    return graph.node("Add", path, graph.node("Max", path, y, zero), scaled)


def _silu(graph, path, y, _):
    return graph.node("Mul", path, y, graph.node("Sigmoid", path, y))


def _gelu(graph, path, y, _):
    scaled = graph.node("Div", path, y, graph.number(math.sqrt(2)))
    twice = graph.node("Add", path, graph.node("Erf", path, scaled), graph.number(1.0))
    return graph.node("Mul", path, graph.node("Mul", path, y, twice), graph.number(0.5))


def _gelu_tanh(graph, path, y, _):
    """``y * (1 + tanh(u)) / 2`` with ``u = sqrt(2 / pi) * y * (1 + 0.044715 * y**2)``."""
    square = graph.node("Mul", path, graph.node("Mul", path, y, y), graph.number(0.044715))
    factor = graph.node("Add", path, square, graph.number(1.0))
    scaled = graph.node("Mul", path, y, graph.number(math.sqrt(2 / math.pi)))
    tanh = graph.node("Tanh", path, graph.node("Mul", path, scaled, factor))
    twice = graph.node("Add", path, tanh, graph.number(1.0))
    return graph.node("Mul", path, graph.node("Mul", path, y, twice), graph.number(0.5))


def _mish(graph, path, y, _):
    return graph.node("Mul", path, y, graph.node("Tanh", path, graph.node("Softplus", path, y)))


def _relu6(graph, path, y, _):
    return graph.node("Clip", path, y, graph.number(0.0), graph.number(6.0))


#: Activations that are one node without a parameter of the layer: its type and attributes.
NODES = {
    "selu": ("Selu", {}),
    "softplus": ("Softplus", {}),
    "sigmoid": ("Sigmoid", {}),
    "tanh": ("Tanh", {}),
    "relu": ("Relu", {}),
    "hardsigmoid": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    "hardswish": ("HardSwish", {}),
}
FUNCTIONS = {
    "leaky_relu": _leaky_relu,
    "prelu": _prelu,
    "elu": _elu,
    "celu": _celu,
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "mish": _mish,
    "relu6": _relu6,
}
