"""In-place activated batch normalization in plain NumPy: the specification, to be read from top to bottom.

"The paper" is Rota Bulò, Porzi, Kontschieder: In-Place Activated BatchNorm for Memory-Optimized Training of
DNNs (CVPR 2018, https://arxiv.org/abs/1712.02616). A batch x has N samples, C channels and S positions (H * W
of an image); a channel has m = N * S values. With the mean and variance of those (section 3.1)::

    xhat = (x - mean) / sqrt(var + eps)        y = weight * xhat + bias        z = phi(y)

weight is the paper's gamma, bias its beta, phi the activation. Going back, dz is the gradient of the loss by
z, and dx, dweight and dbias are asked for. The schemes of Fig. 2 differ in what they keep until then.

Nothing in this file is in place and nothing is fast. Every function is pure: it leaves its arguments alone,
takes any dtype, computes in float64 (or in ``dtype=np.longdouble``) and returns new arrays of that type. The
functions of the same name in `inplace_abn.functional` work in C and in place; the tests compare the two.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

# ---- the activations ---------------------------------------------------------------------------------------


class Activation(NamedTuple):
    """An activation phi: each function takes an array and the activation's parameter.

    With the last two, z alone is enough for the backward (section 3.2); without (None), x or xhat is kept.
    """

    phi: Callable  # y -> z
    derivative: Callable  # y -> phi'(y)
    inverse: Callable | None  # z -> y
    derivative_from_z: Callable | None  # z -> phi'(y)


# At y = 0 the derivative is the one from the right, the same from y as from z.
ACTIVATIONS = {
    "identity": Activation(
        phi=lambda y, _: y,
        derivative=lambda y, _: np.ones_like(y),
        inverse=lambda z, _: z,
        derivative_from_z=lambda z, _: np.ones_like(z),
    ),
    "leaky_relu": Activation(
        phi=lambda y, slope: np.where(y >= 0, y, slope * y),
        derivative=lambda y, slope: np.where(y >= 0, 1, slope),
        inverse=lambda z, slope: np.where(z >= 0, z, z / slope),
        derivative_from_z=lambda z, slope: np.where(z >= 0, 1, slope),
    ),
    "elu": Activation(
        phi=lambda y, alpha: np.where(y >= 0, y, alpha * np.expm1(np.minimum(y, 0))),
        derivative=lambda y, alpha: np.where(y >= 0, 1, alpha * np.exp(np.minimum(y, 0))),
        inverse=lambda z, alpha: np.where(z >= 0, z, np.log1p(np.minimum(z, 0) / alpha)),
        derivative_from_z=lambda z, alpha: np.where(z >= 0, 1, z + alpha),
    ),
    "relu": Activation(
        phi=lambda y, _: np.maximum(y, 0),
        derivative=lambda y, _: np.where(y >= 0, 1, 0),
        inverse=None,
        derivative_from_z=None,
    ),
}

# ---- the strategies ----------------------------------------------------------------------------------------

# What batch norm and activation keep for their backward. The consumer of z (a convolution) keeps z itself.
KEEPS = {
    "standard": "x",  # Fig. 2(a): x here and z there, two buffers
    "checkpoint": "x",  # (b): x alone; z is computed once more, from x
    "checkpoint_xhat": "xhat",  # (c): xhat, in the memory of x; z is computed once more, from xhat
    "inplace_1": "z",  # (d): z, in the memory of x; xhat = (phi^-1(z) - bias) / weight
    "inplace_2": "z",  # (e): z, in the memory of x; the gradient is written in y = phi^-1(z)
    "inplace": "z",  # another name of inplace_2, the default
}


class Gradients(NamedTuple):
    """What backward returns. dweight and dbias are None where the forward had no weight or bias."""

    dx: np.ndarray
    dweight: np.ndarray | None
    dbias: np.ndarray | None


@dataclass(frozen=True)
class Context:
    """What a forward keeps for its backward.

    Attributes
    ----------
    x, xhat, z : ndarray or None
        One of them is kept, with the axes as given; the other two are None.
    lost, lost_xhat : ndarray
        Where z alone has forgotten xhat (bool, the channels last), and xhat at those places: see `_lost`.
    weight, bias : ndarray of shape (C,) or None
    mean, inv_std : ndarray of shape (C,)
        inv_std = 1 / sqrt(var + eps), with the biased variance.
    activation, activation_param, training, channel_axis
        As given to `forward`.
    """

    x: np.ndarray | None
    xhat: np.ndarray | None
    z: np.ndarray | None
    lost: np.ndarray
    lost_xhat: np.ndarray
    weight: np.ndarray | None
    bias: np.ndarray | None
    mean: np.ndarray
    inv_std: np.ndarray
    activation: str
    activation_param: float
    training: bool
    channel_axis: int

    @property
    def gamma(self):
        """The weight, or 1 where there is none."""
        return 1 if self.weight is None else self.weight

    @property
    def beta(self):
        """The bias, or 0 where there is none."""
        return 0 if self.bias is None else self.bias


# ---- the axis of the channels ------------------------------------------------------------------------------
# Inside this file the channels are the last axis, where NumPy broadcasts an array of C numbers unasked.


def _channels_last(array, channel_axis, dtype=None):
    return np.moveaxis(np.asarray(array, dtype), channel_axis, -1)


def _as_given(array, channel_axis):
    return np.moveaxis(array, -1, channel_axis)


def _sum_per_channel(array):
    return array.sum(axis=tuple(range(array.ndim - 1)))


def _values_per_channel(array):
    return int(np.prod(array.shape[:-1]))


# ---- forward -----------------------------------------------------------------------------------------------

_quiet = np.errstate(all="ignore")  # NaN and infinity pass through their channel without a warning


@_quiet
def statistics(x, *, channel_axis=1, dtype=np.float64):
    """Mean and biased variance of every channel, and the number m of values behind them (section 3.1).

    The variance is the mean square of the deviations: E[x^2] - E[x]^2 would lose every digit once the mean is
    far above the spread. An empty batch has zeros.

    >>> statistics([[1.0, 5.0], [3.0, 5.0]])
    (array([2., 5.]), array([1., 0.]), 2)
    """
    x = _channels_last(x, channel_axis, dtype)
    count = _values_per_channel(x)
    mean = _sum_per_channel(x) / max(count, 1)
    var = _sum_per_channel((x - mean) ** 2) / max(count, 1)
    return mean, var, count


def merge_statistics(means, vars, counts, *, dtype=np.float64):
    """Statistics of batches taken together, from those of each (section 4): zeros if all batches are empty.

    >>> merge_statistics([[0.0], [3.0]], [[1.0], [1.0]], [2, 1])
    (array([1.]), array([3.]), 3)
    """
    if not len(means) == len(vars) == len(counts) > 0 or any(n < 0 or n % 1 != 0 for n in counts):
        raise ValueError("means, vars and counts must be equally many, and counts whole numbers from 0 on")
    means, vars, shares = np.array(means, dtype), np.array(vars, dtype), np.array(counts, dtype)[:, None]
    means, vars, count = np.where(shares > 0, means, 0), np.where(shares > 0, vars, 0), int(sum(counts))
    mean = (shares * means).sum(axis=0) / max(count, 1)
    var = (shares * (vars + (means - mean) ** 2)).sum(axis=0) / max(count, 1)
    return mean, var, count


def update_running(running_mean, running_var, mean, var, count, momentum=0.1):
    """Return 1 - momentum of the old statistics and momentum of the batch's, with the unbiased variance.

    >>> update_running(np.zeros(1), np.ones(1), np.ones(1), np.ones(1), 2)
    (array([0.1]), array([1.1]))
    """
    unbiased = var * (count / (count - 1))
    return (1 - momentum) * running_mean + momentum * mean, (1 - momentum) * running_var + momentum * unbiased


def forward(
    x, weight=None, bias=None, running_mean=None, running_var=None, *, training=True, eps=1e-5,
    activation="leaky_relu", activation_param=0.01, strategy="inplace", channel_axis=1, dtype=np.float64,
):  # fmt: skip
    """Batch normalization and activation (section 3.1): z = phi(weight * xhat + bias).

    Parameters
    ----------
    x : array_like of shape (N, C, ...), or (N, ..., C) with ``channel_axis=-1``
    weight, bias : array_like of shape (C,), optional; any sign, and zero
    running_mean, running_var : array_like of shape (C,)
        Used where `training` is False; `update_running` makes new ones from those of a batch.
    training, eps, activation, activation_param, strategy, channel_axis
        As in `inplace_abn.functional.forward`.
    dtype : float64 or longdouble
        The type to compute in.

    Returns
    -------
    z : ndarray of the shape of x
    ctx : Context

    Raises
    ------
    ValueError
        For one value per channel in training, no running statistics without it, unknown or unfit choices.

    Examples
    --------
    >>> z, ctx = forward([[1.0], [3.0]], eps=1e-300, activation_param=0.5)
    >>> z
    array([[-0.5],
           [ 1. ]])
    """
    if training:
        mean, var, count = statistics(x, channel_axis=channel_axis, dtype=dtype)
        if count == 1:
            raise ValueError(f"training needs more than 1 value per channel, got x of shape {np.shape(x)}")
    elif running_mean is None or running_var is None:
        raise ValueError("training=False needs running_mean and running_var")
    else:
        mean, var = running_mean, running_var
    options = (training, eps, activation, activation_param, strategy, channel_axis, dtype)
    return _normalize(x, mean, var, weight, bias, *options)


def normalize(
    x, mean, var, count, weight=None, bias=None, *, eps=1e-5,
    activation="leaky_relu", activation_param=0.01, strategy="inplace", channel_axis=1, dtype=np.float64,
):  # fmt: skip
    """`forward` in training, with the statistics of `count` values per channel, x among them (section 4).

    >>> x = np.array([[1.0], [3.0]])
    >>> z, ctx = normalize(x, *statistics(x), eps=1e-300, activation="identity")
    >>> z.ravel()
    array([-1.,  1.])
    """
    if count == 1:
        raise ValueError("training needs more than 1 value per channel, got count 1")
    options = (True, eps, activation, activation_param, strategy, channel_axis, dtype)
    return _normalize(x, mean, var, weight, bias, *options)


@_quiet
def _normalize(x, mean, var, weight, bias, training, eps, activation, param, strategy, channel_axis, dtype):
    if strategy not in KEEPS:
        raise ValueError(f"strategy must be one of {', '.join(KEEPS)}, got {strategy!r}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if KEEPS[strategy] == "z" and ACTIVATIONS[activation].inverse is None:
        raise ValueError(f"strategy {strategy!r} needs an inverse; {activation} has none, leaky_relu has one")
    x = _channels_last(x, channel_axis, dtype)
    weight, bias = (None if p is None else np.array(p, dtype) for p in (weight, bias))
    mean, inv_std = np.array(mean, dtype), 1 / np.sqrt(np.array(var, dtype) + eps)
    constants = (weight, bias, mean, inv_std, activation, param, training, channel_axis)

    xhat = (x - mean) * inv_std
    ctx = Context(None, None, None, np.zeros(x.shape, bool), np.zeros(0, dtype), *constants)
    z = ACTIVATIONS[activation].phi(ctx.gamma * xhat + ctx.beta, param)

    kept = {"x": x, "xhat": xhat, "z": z}[KEEPS[strategy]]
    ctx = replace(ctx, **{KEEPS[strategy]: _as_given(kept, channel_axis).copy()})
    if ctx.z is not None:
        lost = _lost(xhat, _xhat_from_z(ctx))
        ctx = replace(ctx, lost=lost, lost_xhat=xhat[lost])
    return _as_given(z, channel_axis), ctx


def _lost(xhat, recovered):
    """Where z has forgotten xhat: a channel whose weight is 0 or far below its bias, the flat end of elu.

    The paper leaves these cases open. Here xhat is kept for them, beside z, so that every scheme has the
    gradients of the standard one. The compiled functions tell by weight, bias and z alone.
    """
    tolerance = 1024 * np.finfo(xhat.dtype).eps
    return np.isfinite(xhat) & ~(np.abs(recovered - xhat) <= tolerance * np.maximum(1, np.abs(xhat)))


@_quiet
def recompute(ctx):
    """Return z once more, from x or xhat: the checkpointing schemes, Fig. 2(b) and the paper's own, (c).

    >>> z, ctx = forward([[1.0], [3.0]], strategy="checkpoint_xhat")
    >>> bool((recompute(ctx) == z).all())
    True
    """
    y = ctx.gamma * _xhat(ctx) + ctx.beta
    return _as_given(ACTIVATIONS[ctx.activation].phi(y, ctx.activation_param), ctx.channel_axis)


# ---- backward ----------------------------------------------------------------------------------------------


def _y_from_z(ctx):
    z = _channels_last(ctx.z, ctx.channel_axis)
    return ACTIVATIONS[ctx.activation].inverse(z, ctx.activation_param)


def _xhat_from_z(ctx):
    return (_y_from_z(ctx) - ctx.beta) / ctx.gamma


def _xhat(ctx):
    if ctx.x is not None:
        return (_channels_last(ctx.x, ctx.channel_axis) - ctx.mean) * ctx.inv_std
    if ctx.xhat is not None:
        return _channels_last(ctx.xhat, ctx.channel_axis)
    xhat = _xhat_from_z(ctx)
    xhat[ctx.lost] = ctx.lost_xhat
    return xhat


def _dy(ctx, dz):
    """Gradient by y: dz * phi'(y), from z itself where that is what was kept."""
    activation, param = ACTIVATIONS[ctx.activation], ctx.activation_param
    if ctx.z is None:
        slope = activation.derivative(ctx.gamma * _xhat(ctx) + ctx.beta, param)
    else:
        slope = activation.derivative_from_z(_channels_last(ctx.z, ctx.channel_axis), param)
    return _channels_last(dz, ctx.channel_axis, ctx.inv_std.dtype) * slope


def _gradients(ctx, dx, dweight, dbias):
    return Gradients(dx, None if ctx.weight is None else dweight, None if ctx.bias is None else dbias)


@_quiet
def backward_reduce(ctx, dz):
    """Sum dy and dy * xhat over each channel, which is dbias and dweight; dy = dz * phi'(y) (section 3.1)."""
    dy = _dy(ctx, dz)
    return _sum_per_channel(dy), _sum_per_channel(dy * _xhat(ctx))


@_quiet
def backward_apply(ctx, dz, sum_dy, sum_dy_xhat, count):
    """Gradient by x (section 3.1), given the sums over all `count` values of a channel, wherever they are.

    The two terms with sums are there because the statistics of the batch depend on x.
    """
    dx = _dy(ctx, dz)
    if ctx.training:
        dx = dx - np.asarray(sum_dy) / count - _xhat(ctx) * (np.asarray(sum_dy_xhat) / count)
    return _as_given(ctx.gamma * ctx.inv_std * dx, ctx.channel_axis)


def backward(ctx, dz):
    """Gradients(dx, dweight, dbias) from dz, of the shape of z (section 3.1), whatever was kept.

    >>> z, ctx = forward([[1.0], [3.0]], weight=[2.0], activation_param=0.5)
    >>> backward(ctx, [[1.0], [1.0]]).dweight.round(4)
    array([0.5])
    """
    sum_dy, sum_dy_xhat = backward_reduce(ctx, dz)
    count = _values_per_channel(_channels_last(dz, ctx.channel_axis))
    dx = backward_apply(ctx, dz, sum_dy, sum_dy_xhat, count)
    return _gradients(ctx, dx, sum_dy_xhat, sum_dy)


# ---- backward from z, as the paper writes it ---------------------------------------------------------------
# For training, and where z has forgotten nothing. There `backward` gives the same numbers, which is tested.


@_quiet
def backward_inplace_1(ctx, dz):
    """InPlace-ABN I (section 3.2, Fig. 2(d)): back from z to y and on to xhat, then the standard formulas."""
    dy = _dy(ctx, dz)
    m = _values_per_channel(dy)
    xhat = _xhat_from_z(ctx)  # (phi^-1(z) - beta) / gamma
    dbias = _sum_per_channel(dy)
    dweight = _sum_per_channel(dy * xhat)
    dx = (dy - dbias / m - xhat * dweight / m) * ctx.gamma * ctx.inv_std
    return _gradients(ctx, _as_given(dx, ctx.channel_axis), dweight, dbias)


@_quiet
def backward_inplace_2(ctx, dz):
    """InPlace-ABN II (section 3.2, Fig. 2(e)): the same gradients in terms of y; xhat is never formed."""
    dy = _dy(ctx, dz)
    m = _values_per_channel(dy)
    y, gamma, beta = _y_from_z(ctx), ctx.gamma, ctx.beta
    dbias = _sum_per_channel(dy)
    dweight = (_sum_per_channel(dy * y) - beta * dbias) / gamma
    dx = (dy - y * dweight / (gamma * m) - (dbias - dweight * beta / gamma) / m) * gamma * ctx.inv_std
    return _gradients(ctx, _as_given(dx, ctx.channel_axis), dweight, dbias)
