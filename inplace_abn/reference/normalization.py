"""Forward and backward of batch normalization and activation, whatever is kept in between."""

from dataclasses import dataclass, replace

import numpy as np

from .._keyword_only import lists_keywords
from .._results import ChannelSums, Gradients
from .activations import ACTIVATIONS
from .moments import (
    as_given,
    channels_last,
    check_mask,
    quiet,
    statistics,
    sum_per_channel,
    values_per_channel,
)

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


@dataclass(frozen=True)
class Context:
    """What a forward keeps for its backward.

    Attributes
    ----------
    x, xhat, z : ndarray or None
        One of them is kept, with the axes as given; the other two are None. Zeros where a mask is False.
    residual : ndarray or None
        With the axes as given, kept by every strategy.
    mask : ndarray of bool and shape (N, *spatial), or None
        Which positions are valid. All else is computed from the array of valid positions, of shape (M, C).
    sides : ndarray of bool, or None
        With the axes as given: does y lie left of the activation's minimum? Where z is kept and there is one.
    lost, lost_xhat : ndarray
        Where z alone has forgotten xhat (bool, the channels last), and xhat at those places: see `_lost`.
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
    z: np.ndarray | None = None
    sides: np.ndarray | None = None
    lost: np.ndarray | None = None
    lost_xhat: np.ndarray | None = None

    @property
    def gamma(self):
        """The weight, or 1 where there is none."""
        return 1 if self.weight is None else self.weight

    @property
    def beta(self):
        """The bias, or 0 where there is none."""
        return 0 if self.bias is None else self.bias

    @property
    def added(self):
        """The residual, the channels last, or 0 where there is none."""
        return 0 if self.residual is None else self.channels_last(self.residual)

    def channels_last(self, array, dtype=None):
        """Return the array with the channels last; with a mask, its valid positions."""
        return channels_last(array, self.channel_axis, dtype, self.mask)

    def as_given(self, array):
        """Return the array with the axes of x; with a mask, zeros where it is False."""
        return as_given(array, self.channel_axis, self.mask)


# ---- forward ----------------------------------------------------------------------------------------------


@lists_keywords
def forward(
    x, *, weight=None, bias=None, running_mean=None, running_var=None, training=True, eps=1e-5,
    activation="leaky_relu", activation_param=0.01, strategy="inplace", channel_axis=1, residual=None,
    slope=None, mask=None, dtype=np.float64,
):  # fmt: skip
    """Batch normalization and activation (section 3.1): z = phi(weight * xhat + bias + residual).

    Parameters
    ----------
    x : array_like of shape (N, C, ...), or (N, ..., C) with ``channel_axis=-1``
    weight, bias : array_like of shape (C,), optional; any sign, and zero
    running_mean, running_var : array_like of shape (C,)
        Used where `training` is False; `update_running` makes new ones from those of a batch.
    training, eps, activation, activation_param, strategy, channel_axis
        As in `inplace_abn.functional.forward`.
    residual : array_like of the shape of x, optional
    slope : array_like of shape (C,) or (1,), of any sign; for prelu, which needs it
    mask : ndarray of bool and shape (N, *spatial), optional
        True where a position is valid. Statistics, z and gradients are those of the valid positions alone.
        Elsewhere z and the gradients of x and residual are 0; x, residual and dz are not looked at.
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


@lists_keywords
def normalize(
    x, *, mean, var, count, weight=None, bias=None, eps=1e-5, activation="leaky_relu", activation_param=0.01,
    strategy="inplace", channel_axis=1, residual=None, slope=None, mask=None, dtype=np.float64,
):  # fmt: skip
    """`forward` in training, with the statistics of `count` values per channel, x among them (section 4).

    >>> x, names = np.array([[1.0], [3.0]]), ("mean", "var", "count")
    >>> z, ctx = normalize(x, **dict(zip(names, statistics(x))), eps=1e-300, activation="identity")
    >>> z.ravel()
    array([-1.,  1.])
    """
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
    ctx = replace(ctx, **{keeps: ctx.as_given({"x": x, "xhat": xhat, "z": z}[keeps]).copy()})
    if keeps == "z":
        minimum = ACTIVATIONS[activation].minimum
        sides = None if minimum is None else ctx.as_given(y < minimum)
        ctx = replace(ctx, sides=sides)
        lost = _lost(xhat, _xhat_from_z(ctx))
        ctx = replace(ctx, lost=lost, lost_xhat=xhat[lost])
    return ctx.as_given(z), ctx


def _parameter(activation, activation_param, slope, strategy, dtype):
    """Return the one of activation_param and slope that the activation takes."""
    if strategy not in KEEPS:
        raise ValueError(f"strategy must be one of {', '.join(KEEPS)}, got {strategy!r}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if KEEPS[strategy] == "z" and ACTIVATIONS[activation].inverse is None:
        raise ValueError(f"strategy {strategy!r} needs an inverse; {activation} has none, leaky_relu has one")
    if ACTIVATIONS[activation].param != "channel":
        return activation_param
    if slope is None:
        raise ValueError(f"activation {activation!r} needs slope, an array of shape (C,) or (1,), got None")
    return np.array(slope, dtype)


def _lost(xhat, recovered):
    """Where z has forgotten xhat.

    That is a channel whose weight is 0 or far below bias and residual, the flat end of elu, the minimum of
    silu, and what a slope of 0 or below maps to where y >= 0 goes. The paper leaves these cases open. Here
    xhat is kept for them, beside z, so that every scheme has the gradients of the standard one. The compiled
    functions tell by weight, bias, residual and z alone.
    """
    tolerance = 1024 * np.finfo(xhat.dtype).eps
    return np.isfinite(xhat) & ~(np.abs(recovered - xhat) <= tolerance * np.maximum(1, np.abs(xhat)))


@quiet
def recompute(ctx):
    """Return z once more, from x or xhat: the checkpointing schemes, Fig. 2(b) and the paper's own, (c).

    >>> z, ctx = forward([[1.0], [3.0]], strategy="checkpoint_xhat")
    >>> bool((recompute(ctx) == z).all())
    True
    """
    return ctx.as_given(ACTIVATIONS[ctx.activation].phi(_y(ctx), ctx.param))


# ---- backward ----------------------------------------------------------------------------------------------


def _from_z(ctx, function):
    """Return a function of z; where phi has a minimum, of z and its sides."""
    kept = (ctx.z,) if ctx.sides is None else (ctx.z, ctx.sides)
    z, *sides = (ctx.channels_last(array) for array in kept)
    return function(z, ctx.param, *sides)


def _y_from_z(ctx):
    """Return weight * xhat + bias: phi^-1(z), less the residual."""
    return _from_z(ctx, ACTIVATIONS[ctx.activation].inverse) - ctx.added


def _xhat_from_z(ctx):
    """Return (phi^-1(z) - residual - bias) / weight."""
    return (_y_from_z(ctx) - ctx.beta) / ctx.gamma


def _xhat(ctx):
    if ctx.x is not None:
        return (ctx.channels_last(ctx.x) - ctx.mean) * ctx.inv_std
    if ctx.xhat is not None:
        return ctx.channels_last(ctx.xhat)
    xhat = _xhat_from_z(ctx)
    xhat[ctx.lost] = ctx.lost_xhat
    return xhat


def _y(ctx):
    return ctx.gamma * _xhat(ctx) + ctx.beta + ctx.added


def _dy(ctx, dz):
    """Gradient by y: dz * phi'(y), from z itself where that is what was kept."""
    activation = ACTIVATIONS[ctx.activation]
    if ctx.z is None:
        slope = activation.derivative(_y(ctx), ctx.param)
    else:
        slope = _from_z(ctx, activation.derivative_from_z)
        if ctx.lost.any():
            slope = np.where(ctx.lost, activation.derivative(_y(ctx), ctx.param), slope)
    return ctx.channels_last(dz, ctx.inv_std.dtype) * slope


def _dslope(ctx, dz):
    """Gradient of prelu's slope (He et al. 2015): z = slope * y where y < 0, so sum dz * y there."""
    if ACTIVATIONS[ctx.activation].param != "channel":
        return None
    sums = sum_per_channel(ctx.channels_last(dz) * np.minimum(_y(ctx), 0))
    return sums if ctx.param.shape == sums.shape else sums.sum(keepdims=True)


@quiet
def backward_reduce(ctx, dz):
    """Sum dy and dy * xhat over each channel, which is dbias and dweight; dy = dz * phi'(y) (section 3.1).

    Beside the two there is dslope, as an attribute.
    """
    dy = _dy(ctx, dz)
    return ChannelSums(sum_per_channel(dy), sum_per_channel(dy * _xhat(ctx)), _dslope(ctx, dz))


@quiet
@lists_keywords
def backward_apply(ctx, dz, *, sum_dy, sum_dy_xhat, count):
    """Gradient by x (section 3.1), given the sums over all `count` values of a channel, wherever they are.

    The two terms with sums are there because the statistics of the batch depend on x.
    """
    dx = _dy(ctx, dz)
    if ctx.training:
        dx = dx - np.asarray(sum_dy) / count - _xhat(ctx) * (np.asarray(sum_dy_xhat) / count)
    return ctx.as_given(ctx.gamma * ctx.inv_std * dx)


@quiet
def backward(ctx, dz):
    """Gradients(dx, dweight, dbias) from dz, of the shape of z (section 3.1), whatever was kept.

    As attributes they have the gradients of slope and residual; that of the residual is dy.

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
    """Return what the forward had arguments for."""
    return Gradients(
        dx, None if ctx.weight is None else dweight, None if ctx.bias is None else dbias, _dslope(ctx, dz),
        None if ctx.residual is None else ctx.as_given(_dy(ctx, dz)),
    )  # fmt: skip


# ---- backward from z, as the paper writes it ---------------------------------------------------------------
# For training, and where z has forgotten nothing. There `backward` gives the same numbers, which is tested.


@quiet
def backward_inplace_1(ctx, dz):
    """InPlace-ABN I (section 3.2, Fig. 2(d)): back from z to y and on to xhat, then the standard formulas."""
    dy = _dy(ctx, dz)
    m = values_per_channel(dy)
    xhat = _xhat_from_z(ctx)  # (phi^-1(z) - beta) / gamma
    dbias = sum_per_channel(dy)
    dweight = sum_per_channel(dy * xhat)
    dx = (dy - dbias / m - xhat * dweight / m) * ctx.gamma * ctx.inv_std
    return _gradients(ctx, dz, ctx.as_given(dx), dweight, dbias)


@quiet
def backward_inplace_2(ctx, dz):
    """InPlace-ABN II (section 3.2, Fig. 2(e)): the same gradients in terms of y; xhat is never formed."""
    dy = _dy(ctx, dz)
    m = values_per_channel(dy)
    y, gamma, beta = _y_from_z(ctx), ctx.gamma, ctx.beta
    dbias = sum_per_channel(dy)
    dweight = (sum_per_channel(dy * y) - beta * dbias) / gamma
    dx = (dy - y * dweight / (gamma * m) - (dbias - dweight * beta / gamma) / m) * gamma * ctx.inv_std
    return _gradients(ctx, dz, ctx.as_given(dx), dweight, dbias)
