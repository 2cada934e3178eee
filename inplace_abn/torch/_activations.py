"""The activations in PyTorch's operations: values and gradients."""

import torch
import torch.nn.functional as F

from .._activations import ACTIVATIONS as _CORE

#: Names that modules and conversion accept. hardtanh takes ``activation_param=(low, high)``.
ACTIVATIONS = (*_CORE, "hardtanh")

_WITHOUT_PARAM = {
    "identity": lambda y: y,
    "selu": F.selu,
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
    "mish": F.mish,
    "relu": torch.relu,
    "relu6": F.relu6,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
}
_WITH_PARAM = {
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "celu": F.celu,
    "hardtanh": lambda y, interval: F.hardtanh(y, *interval),
}

_DEFAULT_PARAMS = {"leaky_relu": 0.01, "hardtanh": (-1.0, 1.0)}

_aten = torch.ops.aten
_GRADIENTS = {
    "relu": lambda dz, y, _: _aten.threshold_backward(dz, y, 0),
    "relu6": lambda dz, y, _: _aten.hardtanh_backward(dz, y, 0, 6),
    "hardtanh": lambda dz, y, interval: _aten.hardtanh_backward(dz, y, *interval),
    "hardsigmoid": lambda dz, y, _: _aten.hardsigmoid_backward(dz, y),
    "hardswish": lambda dz, y, _: _aten.hardswish_backward(dz, y),
    "leaky_relu": lambda dz, y, slope: _aten.leaky_relu_backward(dz, y, slope, False),
    "elu": lambda dz, y, alpha: _aten.elu_backward(dz, alpha, 1, 1, False, y),
    "celu": lambda dz, y, alpha: _aten.elu_backward(dz, alpha, 1, 1 / alpha, False, y),
}


def check_activation(activation, slope):
    """Raise ValueError for an unknown activation, or prelu without a slope."""
    if activation not in _CORE and activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if activation == "prelu" and slope is None:
        raise ValueError("activation 'prelu' needs slope, a tensor of shape (C,) or (1,), got None")


def default_param(activation):
    """Return the parameter that an activation has if none is given."""
    return _DEFAULT_PARAMS.get(activation, 1.0)


def has_inverse(activation, param):
    """Return True if z alone determines the input of the activation."""
    return activation in _CORE and _CORE[activation].is_invertible(param)


def activate(activation, y, param, slope=None):
    """Return the activation of y, by a differentiable operation."""
    if activation == "prelu":
        return F.prelu(y, slope.to(y.dtype))
    if activation in _WITH_PARAM:
        return _WITH_PARAM[activation](y, param)
    return _WITHOUT_PARAM[activation](y)


def gradient(activation, dz, y, param):
    """Return dz times the derivative at y, for the activations that have no inverse with this parameter."""
    return _GRADIENTS[activation](dz, y, param)
