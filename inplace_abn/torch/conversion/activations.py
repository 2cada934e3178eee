"""Recognize activations: modules, functions and methods, as a name of `ACTIVATIONS` with its parameter."""

from collections import namedtuple

import torch
import torch.nn.functional as F
from torch import fx, nn

#: name of `ACTIVATIONS`; param: number, pair or None; slope: the node of prelu's slopes or None.
Activation = namedtuple("Activation", "name param slope", defaults=(None, None))
IDENTITY = Activation("identity")

# Modules without parameters. Exact types: a subclass may compute something else.
_PLAIN = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Hardswish: "hardswish",
    nn.Hardsigmoid: "hardsigmoid",
    nn.SELU: "selu",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
    nn.SiLU: "silu",
    nn.Mish: "mish",
}

# Modules of other libraries, by package and class, so that these libraries are not imported.
_ELSEWHERE = {
    ("timm", "Swish"): "silu",
    ("timm", "Mish"): "mish",
    ("timm", "Sigmoid"): "sigmoid",
    ("timm", "Tanh"): "tanh",
    ("timm", "HardSwish"): "hardswish",
    ("timm", "HardSigmoid"): "hardsigmoid",
    ("timm", "GELU"): "gelu",
    ("timm", "GELUTanh"): "gelu_tanh",
    ("transformers", "SiLUActivation"): "silu",
    ("transformers", "MishActivation"): "mish",
}

# Functions and the names of their parameters after the input, with defaults.
FUNCTIONS = {
    F.relu: ("relu", {}),
    torch.relu: ("relu", {}),
    F.relu_: ("relu", {}),
    torch.relu_: ("relu", {}),
    F.relu6: ("relu6", {}),
    F.hardswish: ("hardswish", {}),
    F.hardsigmoid: ("hardsigmoid", {}),
    F.hardtanh: ("hardtanh", {"min_val": -1.0, "max_val": 1.0}),
    F.leaky_relu: ("leaky_relu", {"negative_slope": 0.01}),
    F.elu: ("elu", {"alpha": 1.0}),
    F.celu: ("celu", {"alpha": 1.0}),
    F.selu: ("selu", {}),
    torch.selu: ("selu", {}),
    torch.sigmoid: ("sigmoid", {}),
    F.sigmoid: ("sigmoid", {}),
    torch.tanh: ("tanh", {}),
    F.tanh: ("tanh", {}),
    F.silu: ("silu", {}),
    F.mish: ("mish", {}),
    F.gelu: ("gelu", {"approximate": "none"}),
    F.softplus: ("softplus", {"beta": 1, "threshold": 20}),
    F.prelu: ("prelu", {"weight": None}),
    torch.prelu: ("prelu", {"weight": None}),
}
_METHODS = {
    "relu": "relu",
    "relu_": "relu",
    "sigmoid": "sigmoid",
    "sigmoid_": "sigmoid",
    "tanh": "tanh",
    "tanh_": "tanh",
}


def _checked(name, values):
    """Return the activation, or None for parameters that are not supported in a fused call."""
    if name == "hardtanh":
        low, high = values["min_val"], values["max_val"]
        return Activation(name, (low, high)) if low < high else None
    if name == "gelu":
        return {"none": Activation("gelu"), "tanh": Activation("gelu_tanh")}.get(values["approximate"])
    if name == "softplus":
        return Activation(name) if (values["beta"], values["threshold"]) == (1, 20) else None
    if name in ("leaky_relu", "elu", "celu"):
        (value,) = values.values()
        return Activation(name, value) if isinstance(value, (int, float)) and value > 0 else None
    return Activation(name)


def of_module(module):
    """Return the activation that a module computes, without prelu; None if it is not supported."""
    kind = type(module)
    if kind is nn.Identity:
        return IDENTITY
    if kind in _PLAIN:
        return Activation(_PLAIN[kind])
    if kind is nn.Hardtanh:
        return _checked("hardtanh", {"min_val": module.min_val, "max_val": module.max_val})
    if kind is nn.LeakyReLU:
        return _checked("leaky_relu", {"negative_slope": module.negative_slope})
    if kind in (nn.ELU, nn.CELU):
        return _checked(kind.__name__.lower(), {"alpha": module.alpha})
    if kind is nn.GELU:
        return _checked("gelu", {"approximate": module.approximate})
    if kind is nn.Softplus:
        return _checked("softplus", {"beta": module.beta, "threshold": module.threshold})
    name = _ELSEWHERE.get((kind.__module__.partition(".")[0], kind.__name__))
    return None if name is None else Activation(name)


def of_node(node):
    """Return the activation that a node computes; None if it is none of the supported ones."""
    if node.op == "call_module":
        module = node.meta["callee"]
        return Activation("prelu") if type(module) is nn.PReLU else of_module(module)
    if node.op == "call_method":
        name = _METHODS.get(node.target)
        return None if name is None or len(node.args) > 1 or node.kwargs else Activation(name)
    if node.op != "call_function" or node.target not in FUNCTIONS:
        return None
    name, defaults = FUNCTIONS[node.target]
    given = dict(zip(defaults, node.args[1:], strict=False))  # `inplace` follows
    values = defaults | given | {key: value for key, value in node.kwargs.items() if key in defaults}
    if name == "prelu":
        weight = values["weight"]
        return Activation(name, None, weight) if isinstance(weight, fx.Node) else None
    if any(isinstance(value, fx.Node) for value in values.values()):
        return None
    return _checked(name, values)
