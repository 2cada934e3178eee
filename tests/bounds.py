"""Bounds on the difference between results and the reference, derived from the arithmetic.

Every operation in the compute type (float32, or float64 for float64) has a relative error of at most
u = eps / 2, every stored value one of eps / 2 of the storage type. The resulting bounds, first order in u:

    y       (x - centre) * scale + shift: u for each step, and the error of 1 / sqrt(var + eps) in scale
    z       activation'(y) * error of y, a few u for the activation, and the rounding of the stored value
    xhat    error of the kept array; for a kept z, its error * slopes of the inverse functions
    sums    the errors of their terms, and SUMMING * u * the sum of |terms|
    dx      the errors of its three terms

Errors are relative to the terms, not to the result: y may cancel near zero, and so may sums. Where y is
within its error of a kink, either one-sided derivative is correct: `without_kinks` sets dz to 0 there.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from batches import PARAM, Batch, random_batch
from keywords import as_parameters

from inplace_abn import reference

# Errors of sums in units of u: up to some hundred terms in a row are added in the compute type, then in
# double. Rounding errors of random sign grow like the square root of that; but values of a half
# type lie on so coarse a grid that, shifted by a centre, they share their last digits, and round in one
# direction, so that their errors add up.
SUMMING = {"float32": 8, "float64": 8, "float16": 160, "bfloat16": 160}

EPS = {"float32": 2.0**-23, "float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}
SMALLEST = {"float32": 2.0**-149, "float64": 2.0**-1074, "float16": 2.0**-24, "bfloat16": 2.0**-133}
# For z below -alpha * (1 - FLAT) the slope of elu is too small to invert it: xhat is kept.
FLAT = {"float32": 2.0**-9, "float64": 2.0**-24, "float16": 2.0**-5, "bfloat16": 2.0**-4}
# xhat is kept where y cannot be recomputed from z to within this: some ten roundings at the flat end
# of elu. For sigmoid and tanh the library's limit is slightly larger.
LOST = {dtype: 64 * EPS[dtype] / FLAT[dtype] for dtype in EPS}
# xhat is also kept where (|bias| + |residual|) / |weight| is greater than this.
MOST_BESIDE = {"float32": 64, "float64": 2.0**20, "float16": 4, "bfloat16": 4}


def eps_of_compute(dtype):
    return EPS["float64" if dtype == "float64" else "float32"]


def working_type(dtype):
    """Return the dtype of the reference: wider than the tested one if the platform has such a type."""
    return np.longdouble if dtype == "float64" else np.float64


class Expected(NamedTuple):
    """Results of the reference for a batch, and their error bounds."""

    batch: Batch
    z: np.ndarray
    dx: np.ndarray
    dweight: np.ndarray
    dbias: np.ndarray
    dslope: np.ndarray | None
    dresidual: np.ndarray | None
    z_error: np.ndarray
    dx_error: np.ndarray
    dweight_error: np.ndarray
    dbias_error: np.ndarray
    dslope_error: np.ndarray
    dresidual_error: np.ndarray


def _each(values, like):
    return np.reshape(values, (1, -1) + (1,) * (like.ndim - 2))


def _sum(array):
    return array.sum(axis=(0, *range(2, array.ndim)))


PIECEWISE_LINEAR = ("identity", "leaky_relu", "prelu", "relu", "relu6", "hardsigmoid")


class Terms:
    """The quantities of one batch in the working type, and the errors of xhat, y and z in a forward."""

    def __init__(self, batch, dtype, keeps, activation, param, eps, statistics, affine):
        work = working_type(dtype)
        self.dtype, self.keeps, self.activation = dtype, keeps, activation
        self.linear = activation in PIECEWISE_LINEAR
        self.u, self.stored = eps_of_compute(dtype) / 2, EPS[dtype] / 2
        self.smallest = SMALLEST[dtype]
        # In float, the inverse is a polynomial in sqrt(z - minimum): an absolute error of 3 u in z.
        minimum = reference.ACTIVATIONS[activation].minimum
        self.solved = 0 if minimum is None or dtype == "float64" else 3 * self.u
        compute = "float64" if dtype == "float64" else "float32"
        self.tiny = 2 * SMALLEST[compute]  # a product that underflows
        self.normal = SMALLEST[compute] / EPS[compute]  # exponentials that are smaller may come out as 0
        x = batch.x.astype(work)
        slope = batch.slope_of(activation)
        self.param = param if slope is None else _each(slope.astype(work), x)
        mean, var = statistics if statistics is not None else reference.statistics(x, dtype=work)[:2]
        mean = _each(np.asarray(mean, work), x)
        self.inv_std = _each(1 / np.sqrt(np.asarray(var, work) + eps), x)
        self.gamma = _each(batch.weight.astype(work) if affine else np.ones(x.shape[1], work), x)
        self.beta = _each(batch.bias.astype(work) if affine else np.zeros(x.shape[1], work), x)
        self.residual = np.zeros(1, work) if batch.residual is None else batch.residual.astype(work)
        self.xhat = (x - mean) * self.inv_std
        normal = self.gamma * self.xhat + self.beta
        self.y = normal + self.residual
        self.z, self.slope = self.phi(self.y), self.derivative(self.y)
        # Given statistics are exact; those of the batch have errors relative to the standard deviation.
        self.sums = SUMMING[dtype] * self.u
        self.summing = self.sums if statistics is None else 0
        self.xhat_error = np.abs(self.xhat) * (4 * self.u + self.summing) + self.summing + self.tiny
        # mean and centre are rounded to double: an error relative to |mean|.
        self.xhat_error = self.xhat_error + 2 * EPS["float64"] * np.abs(mean) * self.inv_std
        # Rounding of a stored xhat; with keeps == "y" or "z" in guarded channels and escaped elements.
        self.storing_xhat = (self.stored * np.abs(self.xhat) + self.smallest) * (keeps != "x")
        if keeps == "xhat":  # forward and recompute may compute z from the stored xhat
            self.xhat_error = self.xhat_error + self.storing_xhat
        rounding = self.u * (np.abs(normal) + 2 * np.abs(self.beta))
        self.y_error = np.abs(self.gamma) * self.xhat_error + rounding
        # weight * inv_std may underflow, and so may its product with x - mean
        self.y_error = self.y_error + self.tiny * (1 + np.abs(x - mean))
        if batch.residual is not None:
            self.y_error = np.where(np.isinf(self.y), 0, self.y_error + self.u * np.abs(self.y))
        if keeps == "y":  # z is computed from the stored y
            self.y_error = self.y_error + np.where(np.isinf(self.y), 0, self.stored * np.abs(self.y))
            self.y_error = self.y_error + self.smallest
        # The argument of a curved activation is the rounded y: 2 u.
        curved = 0 if self.linear else 1
        by_y = self.moved(self.phi, self.y_error + curved * 2 * self.u * np.abs(self.y))
        by_y = by_y + curved * self.lost_exponential()
        own = 6 * self.u * np.abs(self.z)  # expm1 may be off by two units in the last place
        self.z_error = by_y + own + self.stored * np.abs(self.z) + self.smallest

    @np.errstate(over="ignore", invalid="ignore")  # y +- error may be far from y
    def phi(self, y):
        return reference.ACTIVATIONS[self.activation].phi(y, self.param)

    @np.errstate(over="ignore", invalid="ignore")
    def derivative(self, y):
        return reference.ACTIVATIONS[self.activation].derivative(y, self.param)

    def moved(self, curve, error):
        """Return the largest |curve(y + d) - curve(y)| for |d| <= error."""
        here = curve(self.y)
        error = np.where(np.isinf(self.y), 0, error)  # an infinite residual determines y
        moved = np.maximum(np.abs(curve(self.y + error) - here), np.abs(curve(self.y - error) - here))
        # Extrema between y - error and y + error: sample the curve where it varies, with a margin of 1 %.
        for at in np.linspace(-6, 6, 25).astype(here.dtype):
            inside = 1.01 * np.abs(curve(np.full_like(self.y, at)) - here)
            moved = np.where(np.abs(at - self.y) < error, np.maximum(moved, inside), moved)
        return moved

    def lost_exponential(self):
        """Return the error of a value or slope due to an exponential that underflows.

        The exponential is multiplied by y and by the slope of its exponent, at most of order y^2. For |y| >
        1000 it is 0 in any case.
        """
        return self.normal * np.maximum(2, np.minimum(np.abs(self.y), 1000) ** 3)

    def at_kink(self):
        """Return True where rounding may move y to the other side of a kink."""
        near = self.y_error + np.abs(self.gamma) * self.storing_xhat
        exactly_zero = (self.gamma * self.xhat == 0) & (self.beta == 0) & (self.residual == 0)
        at_kink = np.zeros(self.y.shape, bool)
        for kink in reference.ACTIVATIONS[self.activation].kinks:
            at_kink |= np.abs(self.y - kink) <= 4 * near
        return at_kink & ~exactly_zero

    def slope_terms(self):
        """Return the sum of |terms| of the slope; for y * gate(y) the terms are gate(y) and y * gate'(y)."""
        if self.activation == "hardswish":
            return np.where(np.abs(self.y) < 3, np.abs(self.y) / 3 + 0.5, np.abs(self.slope))
        if reference.ACTIVATIONS[self.activation].minimum is None:
            return np.abs(self.slope)
        with np.errstate(invalid="ignore"):
            share = np.where(self.y == 0, self.slope, self.z / self.y)
        return share + np.abs(self.slope - share)

    def slope_error(self, y_error):
        """Return the error of activation'(y) for this error of y, if y is not recomputed from z."""
        if self.linear:
            return 2 * self.u * np.abs(self.slope)
        by_y = self.moved(self.derivative, y_error + 2 * self.u * np.abs(self.y))
        return by_y + 8 * self.u * self.slope_terms() + self.lost_exponential()

    def inverse_error(self, z_error):
        """Return d such that phi(y +- d) differs from z by at least z_error: the error of y recovered from z.

        Towards a minimum, phi may not change by that much: then d is the distance to the minimum.
        """
        error = z_error / np.abs(np.where(self.slope == 0, 1, self.slope))
        if self.linear:
            return error
        minimum = reference.ACTIVATIONS[self.activation].minimum
        to_minimum = np.nan if minimum is None else minimum.astype(self.y.dtype) - self.y
        for _ in range(30):
            open_ = np.zeros(self.y.shape, bool)
            for sign in (1, -1):
                reached = np.abs(self.phi(self.y + sign * error) - self.z) >= z_error
                open_ |= ~(reached | ((sign * to_minimum > 0) & (error >= np.abs(to_minimum))))
            if not open_.any():
                break
            error = np.where(open_, 1.2 * error, error)
        return error

    @np.errstate(all="ignore")  # elements where z does not determine y
    def of_kept(self):
        """Return the errors of xhat, y and activation'(y) in the backward, recovered from kept arrays."""
        gamma = np.abs(self.gamma)
        direct = self.xhat_error, self.y_error, self.slope_error(self.y_error)
        if self.keeps in ("x", "xhat"):
            return direct
        if self.keeps == "y":
            return self.of_kept_y()
        y_stored = self.y_error + gamma * self.storing_xhat
        from_xhat = self.xhat_error + self.storing_xhat, y_stored, self.slope_error(y_stored)
        z_error = self.z_error + (2 if self.linear else 8) * self.u * np.abs(self.z)
        lost = self.lost(self.inverse_error(z_error) + 4 * self.u * np.abs(self.y))
        y_error = self.inverse_error(z_error + self.solved)
        y_error = y_error + 4 * self.u * np.abs(self.y)
        # The inverses of activations with a minimum, and their slopes, have an absolute error: 4e-7
        # in float, where they are polynomials; in double it is tiny, but not relative to y.
        two_sided = reference.ACTIVATIONS[self.activation].minimum is not None
        fitted = 2 * self.u if two_sided else 0
        y_error = y_error + 3 * fitted
        xhat_error = (y_error + 4 * self.u * (np.abs(self.residual) + np.abs(self.beta))) / gamma
        # The exponential of elu, celu and selu is computed as z + alpha, or 1 + z / alpha.
        exponential = {"elu": self.param, "celu": 1, "selu": 1.76}.get(self.activation, 0)
        slope_error = self.slope_error(y_error)
        if not self.linear:
            slope_error = slope_error + 4 * self.u * (
                np.maximum(exponential, self.slope_terms()) + 2 * fitted
            )
        from_z = xhat_error, y_error, slope_error
        return [
            np.maximum(one, np.where(lost, 0, other)) for one, other in zip(from_xhat, from_z, strict=True)
        ]

    def of_kept_y(self):
        """Return the errors of xhat, y and activation'(y): xhat is recovered from y, and kept where lost."""
        kept, y = self.xhat_error + self.storing_xhat, np.abs(self.y)
        error = self.y_error + 4 * self.u * (np.abs(self.residual) + np.abs(self.beta) + y)
        lost = self.lost_from_y() | (np.abs(self.beta) > 1.01 * MOST_BESIDE[self.dtype] * np.abs(self.gamma))
        recovered = np.where(lost, 0, error / np.abs(self.gamma))
        return np.maximum(kept, recovered), self.y_error, self.slope_error(self.y_error)

    def lost_from_y(self):
        """Return True where the residual is too large to recover xhat from y, or the weight is 0."""
        most = MOST_BESIDE[self.dtype] * np.abs(self.gamma)
        beside = np.abs(self.beta) + np.abs(self.residual)
        return (self.gamma == 0) | ((self.residual != 0) & (beside > 1.01 * most))

    def lost(self, y_error):
        """Return True where y cannot be recovered from z, or xhat from y, so that xhat is kept."""
        most = LOST[self.dtype] * np.maximum(1, np.abs(self.y))  # absolute for |y| < 1, else relative
        gone = self.lost_from_y() | (np.asarray(self.param) <= 0) | ~(y_error <= most)
        most = MOST_BESIDE[self.dtype] * np.abs(self.gamma)
        # Without a residual the criterion is |z / slope|, which for curves may be far less than |bias|.
        by_bias = np.abs(self.beta)
        if not self.linear:
            around = [self.beta + step * self.gamma for step in np.linspace(-2, 2, 9)]
            by_bias = np.min([by_bias, *(np.abs(self.phi(y) / self.derivative(y)) for y in around)], axis=0)
        return gone | (by_bias > 1.01 * most)

    def backward(self, dz, training):
        """Return the errors of dx, dweight, dbias, dslope and dresidual."""
        count = max(1, self.y.size // max(1, self.y.shape[1]))
        xhat_error, y_error, slope_error = self.of_kept()
        dz, xhat = np.abs(dz.astype(self.y.dtype)), np.abs(self.xhat)
        dy, dy_error = dz * np.abs(self.slope), dz * slope_error + self.tiny
        sum_error = _sum(dy_error) + self.sums * _sum(dy)
        # Near a minimum, errors of half types are as large as the values: include products of errors.
        product_error = dy * xhat_error + xhat * dy_error + xhat_error * dy_error + self.tiny
        product_error = _sum(product_error) + self.sums * _sum(dy * xhat)
        below = np.abs(np.minimum(self.y, 0))
        param_error = _sum(dz * y_error * (self.y < y_error) + self.tiny) + (self.sums + 2 * self.u) * _sum(
            dz * below
        )
        sum_dy, sum_dy_xhat = _each(_sum(dy), dy) / count, _each(_sum(dy * xhat), dy) / count
        terms, dx_error = dy, dy_error
        if training:
            terms = dy + sum_dy + xhat * sum_dy_xhat
            dx_error = dx_error + _each(sum_error, dy) / count
            mean_error = _each(product_error, dy) / count
            dx_error = dx_error + xhat * mean_error + xhat_error * (sum_dy_xhat + mean_error)
        dx_error = np.abs(self.gamma) * self.inv_std * (dx_error + (6 * self.u + self.summing) * terms)
        dx_error = dx_error + self.tiny * terms  # weight * inv_std underflows
        stored = 2 * self.u  # dweight and dbias, in the parameters' type
        per_channel = product_error + stored * _sum(dy * xhat), sum_error + stored * _sum(dy), param_error
        return dx_error, *per_channel, dy_error + self.stored * dy + self.smallest


def without_kinks(
    batch, dtype, keeps="xhat", activation="leaky_relu", param=None, eps=1e-5, statistics=None, affine=True
):
    """Return the batch with dz = 0 where rounding may move y across a kink."""
    param = PARAM[activation] if param is None else param
    terms = Terms(batch, dtype, keeps, activation, param, eps, statistics, affine)
    return batch._replace(dz=np.where(terms.at_kink(), 0, batch.dz).astype(batch.dz.dtype))


def expected(batch, dtype, keeps, activation, param=None, eps=1e-5, statistics=None, affine=True):
    """Return the reference's results and error bounds for strategies that keep `keeps`.

    `statistics`: (mean, var) of evaluation mode, None for training.
    """
    param = PARAM[activation] if param is None else param
    terms = Terms(batch, dtype, keeps, activation, param, eps, statistics, affine)
    mean, var = (None, None) if statistics is None else statistics
    parameters = (batch.weight, batch.bias) if affine else (None, None)
    z, ctx = reference.forward(
        batch.x, **as_parameters(parameters), running_mean=mean, running_var=var,
        training=statistics is None, eps=eps, strategy="standard",
        activation=activation, activation_param=param, residual=batch.residual,
        slope=batch.slope_of(activation), dtype=working_type(dtype),
    )  # fmt: skip
    sum_dy, sum_dy_xhat = reference.backward_reduce(ctx, batch.dz)
    gradients = reference.backward(ctx, batch.dz)
    dx = gradients.dx
    dx_error, *per_channel, dresidual_error = terms.backward(batch.dz, ctx.training)
    if gradients.dslope is not None and gradients.dslope.shape != per_channel[-1].shape:  # one for all
        per_channel[-1] = per_channel[-1].sum(keepdims=True)
    dx_error = dx_error + terms.stored * np.abs(dx) + terms.smallest
    return Expected(
        batch, z, dx, sum_dy_xhat, sum_dy, gradients.dslope, gradients.dresidual,
        terms.z_error, dx_error, *per_channel, dresidual_error,
    )  # fmt: skip


@cache
def expected_of_random(shape, dtype, activation, keeps, seed=0, mean=2.0, spread=1.0):
    """`expected` of `random_batch`, without kinks; computed once for all layouts and instruction sets."""
    batch = without_kinks(random_batch(shape, dtype, seed, mean, spread), dtype, keeps, activation)
    return expected(batch, dtype, keeps, activation)


def assert_within(got, want, error, name="result"):
    """Assert |got - want| <= error everywhere; the message names the worst element and its error."""
    got = np.asarray(got, want.dtype)
    assert got.shape == want.shape, name
    with np.errstate(all="ignore"):
        off = np.where(got == want, 0, np.abs(got - want) / error)
    off = np.where(np.isnan(off), np.inf, off)
    if off.size and off.max() > 1:
        at = np.unravel_index(np.argmax(off), off.shape)
        raise AssertionError(
            f"{name}{list(map(int, at))} is {got[at]}, expected {want[at]} +- {error[at]:.3g}: off by "
            f"{float(off[at]):.3g} times what rounding allows; so are {int((off > 1).sum())} of {off.size}"
        )


def assert_forward(got, expected):
    assert_within(got.z, expected.z, expected.z_error, "z")


def assert_backward(got, expected, affine=True):
    assert_within(got.dx, expected.dx, expected.dx_error, "dx")
    if affine:
        assert_within(got.dweight, expected.dweight, expected.dweight_error, "dweight")
        assert_within(got.dbias, expected.dbias, expected.dbias_error, "dbias")
    for name in ("dslope", "dresidual"):
        want = getattr(expected, name)
        assert (want is None) == (getattr(got, name) is None), name
        if want is not None:
            assert_within(getattr(got, name), want, getattr(expected, f"{name}_error"), name)
