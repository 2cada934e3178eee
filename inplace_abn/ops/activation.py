"""An activation without normalization, for example after a sum."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .. import _arguments as arguments
from .._activations import ACTIVATIONS
from ._blocks import element_blocks, widened
from ._layout import order_of

# NaN and infinity propagate and overflow gives infinity; NumPy does not warn.
_quiet = np.errstate(all="ignore")


@_quiet
def forward(ctx, x, *, activation, param=None, channel_axis=1, overwrite=False):
    """Elementwise activation: ``z = activation(x)``.

    z is kept for the backward if the derivative is a function of z, else x.

    Parameters
    ----------
    ctx : LayerContext
    x : ndarray of any shape
        float32, float64, float16 or bfloat16.
    activation : str
        Name of an activation of `inplace_abn.functional.forward`.
    param : float or ndarray, optional
        For leaky_relu, elu and celu a finite number, not 0 for celu. For prelu the slopes, an array of shape
        (1,) or (C,).
    channel_axis : {1, -1}
        The axis of x that the slopes belong to.
    overwrite : bool
        True writes z over x, unless x is kept.

    Returns
    -------
    z : ndarray
        A fresh array in the memory layout of x, or x itself. Half types are computed in float32 and rounded
        once.

    Raises
    ------
    TypeError, ValueError
        For an x of another dtype, and slopes that do not match the channels of x.

    Examples
    --------
    >>> import numpy as np
    >>> from inplace_abn.layers import LayerContext
    >>> ctx = LayerContext()
    >>> forward(ctx, np.array([[-1.0, 2.0]]), activation="leaky_relu", param=0.5)
    array([[-0.5,  2. ]])
    >>> backward(ctx, np.ones((1, 2)))
    (array([[0.5, 1. ]]), None)
    """
    arguments.batch("x", x, "(...)", ellipsis=True)
    layout = order_of(x)
    keeps_z = ACTIVATIONS[activation].has_slope_from_z(param)
    param = _broadcast(param, x, channel_axis)
    ctx.activation, ctx.param, ctx.channel_axis = activation, param, channel_axis
    ctx.layout, ctx.input_shape, ctx.dtype = layout, x.shape, x.dtype
    z = x if overwrite and keeps_z else layout.empty(x.shape, x.dtype)
    source, result, slopes = (_ordered(layout, array) for array in (x, z, param))
    for block in element_blocks(source.shape):
        result[block] = FORMULAS[activation].value(widened(source[block]), _part(slopes, block))
    if keeps_z:
        ctx.save_for_backward(z=z)
    else:
        ctx.save_for_backward(input=x)
    return z


@_quiet
def backward(ctx, dz, *, overwrite=False):
    """Gradients of x and of the slopes of prelu.

    ``dx = dz * activation'(x)`` and ``dslope = sum(dz * min(x, 0))``.

    Parameters
    ----------
    ctx : LayerContext
        From `forward`.
    dz : ndarray
        Shape and dtype of z.
    overwrite : bool
        True writes dx over dz, if dz has the memory layout of x.

    Returns
    -------
    dx : ndarray
        In the memory layout of x; dz itself or a fresh array.
    dslope : float64 ndarray of the shape of the slopes, or None
        None for activations other than prelu.

    Raises
    ------
    TypeError, ValueError
        If dz does not have the shape and dtype of z.
    """
    arguments.gradient("dz", dz, ctx.input_shape, ctx.dtype)
    (kept,) = ctx.saved.values()  # z or x
    layout, slope, param = ctx.layout, FORMULAS[ctx.activation].slope, ctx.param
    dx = dz if overwrite and layout.has(dz) else layout.empty(dz.shape, dz.dtype)
    source, dz, result, slopes = (_ordered(layout, array) for array in (kept, dz, dx, param))
    sums = _SlopeSums(ctx) if ACTIVATIONS[ctx.activation].param == "channel" else None
    for block in element_blocks(source.shape):
        values, gradient = widened(source[block]), widened(dz[block])
        if sums is not None:
            sums.add(gradient * np.minimum(values, 0), block)
        result[block] = gradient * slope(values, _part(slopes, block))
    return dx, None if sums is None else sums.total


def _broadcast(param, x, channel_axis):
    """Return a number unchanged, and slopes broadcast to the shape of x."""
    if not isinstance(param, np.ndarray):
        return param
    if len(param) == 1:
        return np.broadcast_to(param, x.shape)
    if x.ndim < 2 or x.shape[channel_axis] != len(param):
        raise ValueError(f"num_slopes={len(param)} requires an x with as many channels, got shape {x.shape}")
    shape = [1] * x.ndim
    shape[channel_axis] = len(param)
    return np.broadcast_to(param.reshape(shape), x.shape)


def _ordered(layout, array):
    """Return a view of an array in memory order; numbers and None unchanged."""
    return layout.in_memory_order(array) if isinstance(array, np.ndarray) else array


def _part(param, block):
    """Return the slopes of a block; numbers and None unchanged."""
    return param[block] if isinstance(param, np.ndarray) else param


class _SlopeSums:
    """Accumulates the gradients of the slopes of prelu in float64, one block at a time."""

    def __init__(self, ctx):
        ndim = len(ctx.input_shape)
        channel = ctx.channel_axis % ndim if ndim > 1 else 0
        self.shared = not any(ctx.param.strides)  # one slope for all channels
        self.axis = ctx.layout.order.index(channel)
        self.others = tuple(axis for axis in range(ndim) if axis != self.axis)
        self.total = np.zeros(1 if self.shared else ctx.input_shape[channel])

    def add(self, products, block):
        if self.shared:
            self.total += products.sum(dtype=np.float64)
            return
        channels = block[self.axis] if self.axis < len(block) else slice(None)
        self.total[channels] += products.sum(axis=self.others, dtype=np.float64)


# ---- the formulas ------------------------------------------------------------------------------------------


class Formula(NamedTuple):
    """``value(y, param)`` and ``slope(kept, param)``, the derivative. See `Activation.has_slope_from_z`.

    `kept` is z if the derivative is a function of z, else y.
    """

    value: Callable
    slope: Callable


def _sigmoid(y):
    small = np.exp(-np.abs(y))
    return np.where(y >= 0, 1, small) / (1 + small)


def _one(z):
    return np.ones((), z.dtype)


_SELU_SCALE = 1.0507009873554804934193349852946
_SELU_ALPHA = 1.6732632423543772848170429916717


def _elu(y, alpha, rate=1.0, scale=1.0):
    return np.where(y >= 0, scale * y, scale * alpha * np.expm1(np.minimum(y, 0) * rate))


def _elu_slope(kept, alpha):
    left = kept + alpha if alpha > 0 else alpha * np.exp(np.minimum(kept, 0))
    return np.where(kept >= 0, 1, left)


def _celu_slope(kept, alpha):
    left = 1 + kept / alpha if alpha > 0 else np.exp(np.minimum(kept, 0) / alpha)
    return np.where(kept >= 0, 1, left)


def _hard_sigmoid(y):
    return np.clip(y + 3, 0, 6) / 6


def _inside(z, high, slope):
    """Return `slope` where 0 < z < high, else 0."""
    return np.where((z > 0) & (z < high), _one(z) * slope, 0)


_GELU_RATE = math.sqrt(8 / math.pi)  # (1 + tanh(u)) / 2 = sigmoid(2 u)
_GELU_CUBIC = 0.044715


def _gelu_tanh_slope(y, _):
    u = _GELU_RATE * (y + _GELU_CUBIC * y**3)
    return _sigmoid(u) * (1 + y * _sigmoid(-u) * _GELU_RATE * (1 + 3 * _GELU_CUBIC * y**2))


def _normal_cdf(y):
    half = np.vectorize(math.erfc, otypes=[y.dtype])(np.abs(y) * math.sqrt(0.5)) / 2
    return np.where(y < 0, half, 1 - half)


def _tanh_softplus(y):
    """Return tanh(log(1 + e)) = e (e + 2) / (e (e + 2) + 2) for e = exp(y), without overflow."""
    small = np.exp(-np.abs(y))
    top = np.where(y >= 0, 1 + 2 * small, small * (small + 2))
    return top / (top + 2 * np.where(y >= 0, small**2, 1))


def _mish_slope(y, _):
    gate = _tanh_softplus(y)
    return gate + y * _sigmoid(y) * (1 - gate**2)


_LEAKY = Formula(lambda y, a: np.where(y >= 0, y, a * y), lambda z, a: np.where(z >= 0, _one(z), a))

FORMULAS = {
    "identity": Formula(lambda y, _: y, lambda z, _: _one(z)),
    "leaky_relu": _LEAKY,
    "prelu": _LEAKY,
    "elu": Formula(_elu, _elu_slope),
    "celu": Formula(lambda y, a: _elu(y, a, 1 / a), _celu_slope),
    "selu": Formula(
        lambda y, _: _elu(y, _SELU_ALPHA, 1.0, _SELU_SCALE),
        lambda z, _: np.where(z >= 0, _SELU_SCALE, z + _SELU_SCALE * _SELU_ALPHA),
    ),
    "softplus": Formula(lambda y, _: np.logaddexp(0, y), lambda z, _: -np.expm1(-z)),
    "sigmoid": Formula(lambda y, _: _sigmoid(y), lambda z, _: z * (1 - z)),
    "tanh": Formula(lambda y, _: np.tanh(y), lambda z, _: (1 - z) * (1 + z)),
    "silu": Formula(lambda y, _: y * _sigmoid(y), lambda y, _: _sigmoid(y) * (1 + y * _sigmoid(-y))),
    "gelu": Formula(
        lambda y, _: y * _normal_cdf(y),
        lambda y, _: _normal_cdf(y) + y * np.exp(-(y**2) / 2) / math.sqrt(2 * math.pi),
    ),
    "gelu_tanh": Formula(lambda y, _: y * _sigmoid(_GELU_RATE * (y + _GELU_CUBIC * y**3)), _gelu_tanh_slope),
    "mish": Formula(lambda y, _: y * _tanh_softplus(y), _mish_slope),
    "relu": Formula(lambda y, _: np.maximum(y, 0), lambda z, _: (z > 0).astype(z.dtype)),
    "relu6": Formula(lambda y, _: np.clip(y, 0, 6), lambda z, _: _inside(z, 6, 1)),
    "hardsigmoid": Formula(lambda y, _: _hard_sigmoid(y), lambda z, _: _inside(z, 1, 1 / 6)),
    "hardswish": Formula(
        lambda y, _: np.maximum(y, -3) * _hard_sigmoid(y),
        lambda y, _: np.where(y >= 3, 1, np.where(y <= -3, 0, y / 3 + 0.5)),
    ),
}
