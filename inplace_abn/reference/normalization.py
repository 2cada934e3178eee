"""Forward and backward of batch normalization and activation, for every strategy."""

from dataclasses import dataclass, replace

import numpy as np

from .._keyword_only import hides_others, too_many
from .._results import ChannelSums, Gradients
from .activations import ACTIVATIONS
from .moments import (
    channels_last,
    check_mask,
    quiet,
    restore_axes,
    statistics,
    sum_per_channel,
    values_per_channel,
)

# ---- the strategies ----------------------------------------------------------------------------------------

# strategy -> the array that batch norm and activation keep for the backward. The consumer of z, such as a
# convolution, keeps z in addition.
KEEPS = {
    "standard": "x",  # Fig. 2(a): x here and z in the consumer, two buffers
    "checkpoint": "x",  # (b): x alone; z is recomputed from x
    "checkpoint_xhat": "xhat",  # (c): xhat, in the memory of x; z is recomputed from xhat
    "pre_activation": "y",  # not in the paper: y, in the memory of x; xhat = (y - residual - bias) / weight
    "inplace_1": "z",  # (d): z, in the memory of x; xhat = (phi^-1(z) - bias) / weight
    "inplace_2": "z",  # (e): z, in the memory of x; gradients in terms of y = phi^-1(z)
    "inplace": "z",  # another name of inplace_2, the default
}


@dataclass(frozen=True)
class Context:
    """The arrays and settings that a forward keeps for its backward.

    Attributes
    ----------
    x, xhat, y, z : ndarray of the shape of x, or None
        The one that the strategy keeps; the other three are None. 0 where the mask is False.
    residual : ndarray of the shape of x, or None
        Kept by every strategy.
    mask : ndarray of bool and shape (N, *spatial), or None
        True for valid positions. Everything is computed on the array of valid positions, of shape (M, C).
    branch_mask : ndarray of bool and the shape of x, or None
        True if y is left of the activation's minimum. None if z is not kept or there is no minimum.
    unrecoverable : ndarray of bool, with the channels last, or None
        True if xhat cannot be recovered from y or z: see `_unrecoverable`. None if neither is kept.
    kept_xhat : ndarray or None
        xhat of the elements where `unrecoverable` is True.
    weight, bias : ndarray of shape (C,) or None
    mean, inv_std : ndarray of shape (C,)
        inv_std = 1 / sqrt(var + eps), with the biased variance.
    activation, training, channel_axis
        As given to `forward`.
    param : float or ndarray
        activation_param or slope, whichever the activation takes.
    """

    weight: np.ndarray | None
    bias: np.ndarray | None
    mean: np.ndarray
    inv_std: np.ndarray
    activation: str
    param: float | np.ndarray
    training: bool
    channel_axis: int
    residual: np.ndarray | None
    mask: np.ndarray | None = None
    x: np.ndarray | None = None
    xhat: np.ndarray | None = None
    y: np.ndarray | None = None
    z: np.ndarray | None = None
    branch_mask: np.ndarray | None = None
    unrecoverable: np.ndarray | None = None
    kept_xhat: np.ndarray | None = None

    @property
    def gamma(self):
        """The weight, or 1 without one."""
        return 1 if self.weight is None else self.weight

    @property
    def beta(self):
        """The bias, or 0 without one."""
        return 0 if self.bias is None else self.bias

    @property
    def added(self):
        """The residual with the channels last, or 0 without one."""
        return 0 if self.residual is None else self.channels_last(self.residual)

    def channels_last(self, array, dtype=None):
        """Return the array with the channels last; with a mask, its valid positions."""
        return channels_last(array, self.channel_axis, dtype, self.mask)

    def restore_axes(self, array):
        """Return an array from `channels_last` with the axes of x; with a mask, 0 where it is False."""
        return restore_axes(array, self.channel_axis, self.mask)


# ---- forward ----------------------------------------------------------------------------------------------


@hides_others
def forward(
    x, *others, weight=None, bias=None, running_mean=None, running_var=None, training=True, eps=1e-5,
    activation="leaky_relu", activation_param=0.01, strategy="inplace", channel_axis=1, residual=None,
    slope=None, mask=None, dtype=np.float64,
):  # fmt: skip
    """Batch normalization and activation (section 3.1): z = phi(weight * xhat + bias + residual).

    Parameters
    ----------
    x : array_like of shape (N, C, ...), or (N, ..., C) with ``channel_axis=-1``
    weight, bias : array_like of shape (C,), optional
        Any values, including negative ones and zero.
    running_mean, running_var : array_like of shape (C,)
        Required and used if `training` is False. `update_running` computes new ones from those of a batch.
    training, eps, activation, activation_param, strategy, channel_axis
        As in `inplace_abn.functional.forward`.
    residual : array_like of the shape of x, optional
    slope : array_like of shape (C,) or (1,), optional
        Required for prelu. Any sign.
    mask : ndarray of bool and shape (N, *spatial), optional
        True for valid positions. Statistics, z and gradients are those of the valid positions alone. At all
        others z and the gradients of x and residual are 0, and x, residual and dz are not read.
    dtype : float64 or longdouble
        The type to compute in.

    Returns
    -------
    z : ndarray of the shape of x
    ctx : Context

    Raises
    ------
    ValueError
        For one value per channel in training, missing running statistics in evaluation, an unknown strategy
        or activation, and an in-place strategy with an activation that has no inverse.

    Examples
    --------
    >>> z, ctx = forward([[1.0], [3.0]], eps=1e-300, activation_param=0.5)
    >>> z
    array([[-0.5],
           [ 1. ]])
    """
    if others:
        raise too_many(forward, others)
    if training:
        mean, var, count = statistics(x, channel_axis=channel_axis, mask=mask, dtype=dtype)
        if count == 1:
            of = f"x of shape {np.shape(x)}" if mask is None else "a mask that leaves 1 position"
            raise ValueError(f"training needs more than 1 value per channel, got {of}")
    elif running_mean is None or running_var is None:
        raise ValueError("training=False needs running_mean and running_var")
    else:
        mean, var = running_mean, running_var
    chosen = (activation, activation_param, slope, strategy)
    return _normalize(x, mean, var, weight, bias, residual, training, eps, *chosen, channel_axis, mask, dtype)


@hides_others
def normalize(
    x, *others, mean, var, count, weight=None, bias=None, eps=1e-5, activation="leaky_relu",
    activation_param=0.01, strategy="inplace", channel_axis=1, residual=None, slope=None, mask=None,
    dtype=np.float64,
):  # fmt: skip
    """`forward` in training, with given statistics of `count` values per channel that include x (section 4).

    >>> x, names = np.array([[1.0], [3.0]]), ("mean", "var", "count")
    >>> z, ctx = normalize(x, **dict(zip(names, statistics(x))), eps=1e-300, activation="identity")
    >>> z.ravel()
    array([-1.,  1.])
    """
    if others:
        raise too_many(normalize, others)
    if count == 1:
        raise ValueError("training needs more than 1 value per channel, got count 1")
    chosen = (activation, activation_param, slope, strategy)
    return _normalize(x, mean, var, weight, bias, residual, True, eps, *chosen, channel_axis, mask, dtype)


@quiet
def _normalize(
    x, mean, var, weight, bias, residual, training, eps, activation, activation_param, slope, strategy,
    channel_axis, mask, dtype,
):  # fmt: skip
    param = _parameter(activation, activation_param, slope, strategy, dtype)
    mask = check_mask(mask, x, channel_axis)
    x = channels_last(x, channel_axis, dtype, mask)
    weight, bias, residual = (None if p is None else np.array(p, dtype) for p in (weight, bias, residual))
    mean, inv_std = np.array(mean, dtype), 1 / np.sqrt(np.array(var, dtype) + eps)
    ctx = Context(weight, bias, mean, inv_std, activation, param, training, channel_axis, residual, mask)

    xhat = (x - mean) * inv_std
    y = ctx.gamma * xhat + ctx.beta + ctx.added
    z = ACTIVATIONS[activation].phi(y, param)

    keeps = KEEPS[strategy]
    ctx = replace(ctx, **{keeps: ctx.restore_axes({"x": x, "xhat": xhat, "y": y, "z": z}[keeps]).copy()})
    if keeps == "z":
        minimum = ACTIVATIONS[activation].minimum
        branch_mask = None if minimum is None else ctx.restore_axes(y < minimum)
        ctx = replace(ctx, branch_mask=branch_mask)
    if keeps in ("y", "z"):
        unrecoverable = _unrecoverable(xhat, _recovered_xhat(ctx))
        ctx = replace(ctx, unrecoverable=unrecoverable, kept_xhat=xhat[unrecoverable])
    return ctx.restore_axes(z), ctx


def _parameter(activation, activation_param, slope, strategy, dtype):
    """Check the choices; return the parameter of the activation: activation_param or slope."""
    if strategy not in KEEPS:
        raise ValueError(f"strategy must be one of {', '.join(KEEPS)}, got {strategy!r}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if KEEPS[strategy] == "z" and ACTIVATIONS[activation].inverse is None:
        raise ValueError(f"strategy {strategy!r} needs an inverse; {activation} has none, leaky_relu has one")
    has_one = ACTIVATIONS[activation].param in ("one", "nonzero")
    if KEEPS[strategy] == "z" and has_one and not activation_param > 0:
        raise ValueError(f"strategy {strategy!r} needs activation_param > 0, got {activation_param!r}")
    if ACTIVATIONS[activation].param != "channel":
        return activation_param
    if slope is None:
        raise ValueError(f"activation {activation!r} needs slope, an array of shape (C,) or (1,), got None")
    return np.array(slope, dtype)


def _unrecoverable(xhat, recovered):
    """Return an array of bool: True if xhat cannot be recovered from y or z to working precision.

    This happens where the weight of a channel is 0 or much smaller than bias and residual, where an
    activation such as elu is flat, close to the minimum of silu, and where a slope of prelu of 0 or below
    makes two y have the same z; if y is kept, only in the first case. The paper does not treat these cases.
    Here xhat is kept for them, so that every strategy has the gradients of the standard one. The C core
    decides from weight, bias, residual and z, without the recovered xhat.
    """
    tolerance = 1024 * np.finfo(xhat.dtype).eps
    return np.isfinite(xhat) & ~(np.abs(recovered - xhat) <= tolerance * np.maximum(1, np.abs(xhat)))


@quiet
def recompute(ctx):
    """Recompute z from x, xhat or y, for Fig. 2(b), for (c), which the paper adds, and for "pre_activation".

    >>> z, ctx = forward([[1.0], [3.0]], strategy="checkpoint_xhat")
    >>> bool((recompute(ctx) == z).all())
    True
    """
    return ctx.restore_axes(ACTIVATIONS[ctx.activation].phi(_y(ctx), ctx.param))


# ---- backward ----------------------------------------------------------------------------------------------


def _from_z(ctx, function):
    """Evaluate a function of z or, if phi has a minimum, of z and the branch mask."""
    kept = (ctx.z,) if ctx.branch_mask is None else (ctx.z, ctx.branch_mask)
    z, *left = (ctx.channels_last(array) for array in kept)
    return function(z, ctx.param, *left)


def _normal(ctx):
    """Return weight * xhat + bias = y - residual, with the kept y, or y = phi^-1(z)."""
    if ctx.y is not None:
        return ctx.channels_last(ctx.y) - ctx.added
    return _from_z(ctx, ACTIVATIONS[ctx.activation].inverse) - ctx.added


def _recovered_xhat(ctx):
    """Return (y - residual - bias) / weight."""
    return (_normal(ctx) - ctx.beta) / ctx.gamma


def _xhat(ctx):
    if ctx.x is not None:
        return (ctx.channels_last(ctx.x) - ctx.mean) * ctx.inv_std
    if ctx.xhat is not None:
        return ctx.channels_last(ctx.xhat)
    xhat = _recovered_xhat(ctx)
    xhat[ctx.unrecoverable] = ctx.kept_xhat
    return xhat


def _y(ctx):
    if ctx.y is not None:
        return ctx.channels_last(ctx.y)
    return ctx.gamma * _xhat(ctx) + ctx.beta + ctx.added


def _dy(ctx, dz):
    """Return the gradient of y, dz * phi'(y), with phi' computed from z if z is kept."""
    activation = ACTIVATIONS[ctx.activation]
    if ctx.z is None:
        slope = activation.derivative(_y(ctx), ctx.param)
    else:
        slope = _from_z(ctx, activation.derivative_from_z)
        if ctx.unrecoverable.any():
            slope = np.where(ctx.unrecoverable, activation.derivative(_y(ctx), ctx.param), slope)
    return ctx.channels_last(dz, ctx.inv_std.dtype) * slope


def _dslope(ctx, dz):
    """Return the gradient of prelu's slope, sum(dz * min(y, 0)) (He et al. 2015); None for all others."""
    if ACTIVATIONS[ctx.activation].param != "channel":
        return None
    sums = sum_per_channel(ctx.channels_last(dz) * np.minimum(_y(ctx), 0))
    return sums if ctx.param.shape == sums.shape else sums.sum(keepdims=True)


@quiet
def backward_reduce(ctx, dz):
    """Sum dy and dy * xhat over each channel, with dy = dz * phi'(y): dbias and dweight (section 3.1).

    Returns ChannelSums(sum_dy, sum_dy_xhat), with dslope as an attribute.
    """
    dy = _dy(ctx, dz)
    return ChannelSums(sum_per_channel(dy), sum_per_channel(dy * _xhat(ctx)), _dslope(ctx, dz))


@quiet
@hides_others
def backward_apply(ctx, dz, *others, sum_dy, sum_dy_xhat, count):
    """Gradient of x (section 3.1) from the sums over the `count` values per channel of one or more batches.

    The two terms with sums are the gradients through mean and variance, which depend on x.
    """
    if others:
        raise too_many(backward_apply, others)
    dx = _dy(ctx, dz)
    if ctx.training:
        dx = dx - np.asarray(sum_dy) / count - _xhat(ctx) * (np.asarray(sum_dy_xhat) / count)
    return ctx.restore_axes(ctx.gamma * ctx.inv_std * dx)


@quiet
def backward(ctx, dz):
    """Return Gradients(dx, dweight, dbias) from dz, for every strategy (section 3.1).

    The gradients of slope and residual are attributes; that of the residual is dy.

    >>> z, ctx = forward([[1.0], [3.0]], weight=[2.0], activation_param=0.5, residual=[[1.0], [1.0]])
    >>> gradients = backward(ctx, [[1.0], [1.0]])
    >>> gradients.dweight.round(4), gradients.dresidual.ravel()
    (array([0.5]), array([0.5, 1. ]))
    """
    sums = backward_reduce(ctx, dz)
    count = values_per_channel(ctx.channels_last(dz))
    dx = backward_apply(ctx, dz, **sums._asdict(), count=count)
    return _gradients(ctx, dz, dx, sums.sum_dy_xhat, sums.sum_dy)


def _gradients(ctx, dz, dx, dweight, dbias):
    """Return the `Gradients`, with None for arguments that the forward did not have."""
    return Gradients(
        dx, None if ctx.weight is None else dweight, None if ctx.bias is None else dbias, _dslope(ctx, dz),
        None if ctx.residual is None else ctx.restore_axes(_dy(ctx, dz)),
    )  # fmt: skip


# ---- backward from z with the formulas of the paper --------------------------------------------------------
# In training, if xhat can be recovered from z everywhere. The tests compare them with `backward`.


@quiet
def backward_inplace_1(ctx, dz):
    """InPlace-ABN I (section 3.2, Fig. 2(d)): recover y and xhat from z, then apply the standard formulas."""
    dy = _dy(ctx, dz)
    m = values_per_channel(dy)
    xhat = _recovered_xhat(ctx)  # (phi^-1(z) - beta) / gamma
    dbias = sum_per_channel(dy)
    dweight = sum_per_channel(dy * xhat)
    dx = (dy - dbias / m - xhat * dweight / m) * ctx.gamma * ctx.inv_std
    return _gradients(ctx, dz, ctx.restore_axes(dx), dweight, dbias)


@quiet
def backward_inplace_2(ctx, dz):
    """InPlace-ABN II (section 3.2, Fig. 2(e)): the same gradients in terms of y, without xhat."""
    dy = _dy(ctx, dz)
    m = values_per_channel(dy)
    y, gamma, beta = _normal(ctx), ctx.gamma, ctx.beta
    dbias = sum_per_channel(dy)
    dweight = (sum_per_channel(dy * y) - beta * dbias) / gamma
    dx = (dy - y * dweight / (gamma * m) - (dbias - dweight * beta / gamma) / m) * gamma * ctx.inv_std
    return _gradients(ctx, dz, ctx.restore_axes(dx), dweight, dbias)
