"""How far a result may be from the reference, derived from the arithmetic, and the comparison itself.

Every operation in the compute type (float32, or float64 for float64) is right to a relative u = eps / 2,
every stored value to half a unit of the storage type. From these and the errors of sums, first order in u:

    y       (x - centre) * scale + shift: each step off by u, scale by the error of 1 / sqrt(var + eps) too
    z       activation'(y) times the error of y, its own few u, and being stored
    xhat    what is kept, taken back: for a kept z its error times the slopes of the inverse functions
    sums    the errors of their terms, and SUMMING u of the sum of the sizes of the terms
    dx      the errors of its three terms

Sizes of terms count, not sizes of results: y may cancel near zero, and so may sums. Where the sign of y is
open, within its error of 0, the derivative is open too: `without_kinks` takes such elements out of dz.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from batches import PARAM, Batch, random_batch

from inplace_abn import reference

# Errors of sums in units of u: up to some hundred terms in a row are added in the compute type, then in
# double. Rounding errors that point either way leave less than the square root of that; but values of a half
# type lie on so coarse a grid that, shifted by a centre, they share their last digits, and lose them in one
# direction.
SUMMING = {"float32": 8, "float64": 8, "float16": 160, "bfloat16": 160}

EPS = {"float32": 2.0**-23, "float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}
SMALLEST = {"float32": 2.0**-149, "float64": 2.0**-1074, "float16": 2.0**-24, "bfloat16": 2.0**-133}
# Below -alpha * (1 - FLAT) the slope of elu is too small to go back from z: xhat is kept beside it.
FLAT = {"float32": 2.0**-9, "float64": 2.0**-24, "float16": 2.0**-5, "bfloat16": 2.0**-4}


def eps_of_compute(dtype):
    return EPS["float64" if dtype == "float64" else "float32"]


def working_type(dtype):
    """The type for the reference: wider than what is tested wherever the platform has one."""
    return np.longdouble if dtype == "float64" else np.float64


class Expected(NamedTuple):
    """The reference's results for a batch, and how far off they may be."""

    batch: Batch
    z: np.ndarray
    dx: np.ndarray
    dweight: np.ndarray
    dbias: np.ndarray
    z_error: np.ndarray
    dx_error: np.ndarray
    dweight_error: np.ndarray
    dbias_error: np.ndarray


def _each(values, like):
    return np.reshape(values, (1, -1) + (1,) * (like.ndim - 2))


def _sum(array):
    return array.sum(axis=(0, *range(2, array.ndim)))


class _Terms:
    """The quantities of one batch in the working type, and the errors of xhat, y and z in a forward."""

    def __init__(self, batch, dtype, keeps, activation, param, eps, statistics, affine):
        work = working_type(dtype)
        self.u, self.stored = eps_of_compute(dtype) / 2, EPS[dtype] / 2
        self.smallest, self.flat = SMALLEST[dtype], FLAT[dtype]
        self.tiny = 2 * SMALLEST["float64" if dtype == "float64" else "float32"]  # a product that underflows
        self.keeps, self.activation, self.param = keeps, activation, param
        x = batch.x.astype(work)
        mean, var = statistics if statistics is not None else reference.statistics(x, dtype=work)[:2]
        mean = _each(np.asarray(mean, work), x)
        self.inv_std = _each(1 / np.sqrt(np.asarray(var, work) + eps), x)
        self.gamma = _each(batch.weight.astype(work) if affine else np.ones(x.shape[1], work), x)
        self.beta = _each(batch.bias.astype(work) if affine else np.zeros(x.shape[1], work), x)
        self.xhat = (x - mean) * self.inv_std
        self.y = self.gamma * self.xhat + self.beta
        phi, derivative, *_ = reference.ACTIVATIONS[activation]
        self.z, self.slope = phi(self.y, param), derivative(self.y, param)
        # Given statistics are exact; those of the batch are sums, whose error is relative to the spread.
        self.sums = SUMMING[dtype] * self.u
        self.summing = self.sums if statistics is None else 0
        self.xhat_error = np.abs(self.xhat) * (4 * self.u + self.summing) + self.summing
        # mean and centre are rounded to double, wherever they lie.
        self.xhat_error = self.xhat_error + 2 * EPS["float64"] * np.abs(mean) * self.inv_std
        # Where xhat itself is stored: for keeps == "z" in guarded channels, which the library chooses.
        self.storing_xhat = (self.stored * np.abs(self.xhat) + self.smallest) * (keeps != "x")
        if keeps == "xhat":  # z may be computed from what is stored, now and again
            self.xhat_error = self.xhat_error + self.storing_xhat
        rounding = self.u * (np.abs(self.y) + 2 * np.abs(self.beta))
        self.y_error = np.abs(self.gamma) * self.xhat_error + rounding
        steepest = np.where(self.at_kink(), np.maximum(1, param), np.abs(self.slope))
        own = 6 * self.u * np.abs(self.z)  # expm1 may be off by two units in the last place
        self.z_error = steepest * self.y_error + own + self.stored * np.abs(self.z) + self.smallest

    def at_kink(self):
        """Where y may come out on the other side of 0: by its error, or by underflow in the stored z."""
        near = self.y_error + np.abs(self.gamma) * self.storing_xhat + self.smallest / min(1, self.param)
        return (np.abs(self.y) <= 4 * near) & (self.y != 0)

    @np.errstate(over="ignore")  # of what no z gives back
    def of_kept(self):
        """Errors of xhat and of activation'(y) in the backward, from what was kept."""
        alpha = self.param if self.activation == "elu" else 0
        curved = alpha * np.exp(np.minimum(self.y, 0))  # elu: how fast its slope changes with y
        gamma = np.abs(self.gamma)
        slope_error = curved * (self.y_error + 6 * self.u) + 2 * self.u * self.slope + self.tiny * (alpha > 0)
        if self.keeps != "z":
            return self.xhat_error, slope_error
        beside = self.xhat_error + self.storing_xhat
        slope_beside = slope_error + curved * gamma * self.storing_xhat
        y_error = (self.z_error + 2 * self.u * np.abs(self.z)) / np.where(self.slope == 0, 1, self.slope)
        y_error = y_error + 4 * self.u * (np.abs(self.y) + np.abs(self.beta))
        lost = (gamma == 0) | ((alpha > 0) & (self.z + self.z_error < -alpha * (1 - self.flat)))
        xhat_error = np.maximum(beside, np.where(lost, 0, y_error / np.where(gamma == 0, 1, gamma)))
        from_z = (self.z_error if alpha else 0) + 4 * self.u * np.maximum(alpha, self.slope)
        return xhat_error, np.maximum(slope_beside, from_z)

    def backward(self, dz, training):
        """Errors of dx, dweight and dbias."""
        count = max(1, self.y.size // self.y.shape[1])
        xhat_error, slope_error = self.of_kept()
        dz, xhat = np.abs(dz.astype(self.y.dtype)), np.abs(self.xhat)
        dy, dy_error = dz * np.abs(self.slope), dz * slope_error + self.tiny
        sum_error = _sum(dy_error) + self.sums * _sum(dy)
        product_error = _sum(dy * xhat_error + xhat * dy_error) + self.sums * _sum(dy * xhat)
        sum_dy, sum_dy_xhat = _each(_sum(dy), dy) / count, _each(_sum(dy * xhat), dy) / count
        terms, dx_error = dy, dy_error
        if training:
            terms = dy + sum_dy + xhat * sum_dy_xhat
            dx_error = dx_error + _each(sum_error, dy) / count
            dx_error = dx_error + xhat * _each(product_error, dy) / count + xhat_error * sum_dy_xhat
        dx_error = np.abs(self.gamma) * self.inv_std * (dx_error + (6 * self.u + self.summing) * terms)
        stored = 2 * self.u  # dweight and dbias, in the parameters' type
        return dx_error, product_error + stored * _sum(dy * xhat), sum_error + stored * _sum(dy)


def without_kinks(
    batch, dtype, keeps="xhat", activation="leaky_relu", param=None, eps=1e-5, statistics=None, affine=True
):
    """Return the batch with dz = 0 wherever rounding may decide on which side of 0 y is."""
    param = PARAM[activation] if param is None else param
    terms = _Terms(batch, dtype, keeps, activation, param, eps, statistics, affine)
    return batch._replace(dz=np.where(terms.at_kink(), 0, batch.dz).astype(batch.dz.dtype))


def expected(batch, dtype, keeps, activation, param=None, eps=1e-5, statistics=None, affine=True):
    """Results of the reference, and bounds for strategies that keep `keeps`; statistics: evaluation mode."""
    param = PARAM[activation] if param is None else param
    terms = _Terms(batch, dtype, keeps, activation, param, eps, statistics, affine)
    mean, var = (None, None) if statistics is None else statistics
    parameters = (batch.weight, batch.bias) if affine else (None, None)
    z, ctx = reference.forward(
        batch.x, *parameters, mean, var, training=statistics is None, eps=eps, strategy="standard",
        activation=activation, activation_param=param, dtype=working_type(dtype),
    )  # fmt: skip
    sum_dy, sum_dy_xhat = reference.backward_reduce(ctx, batch.dz)
    dx = reference.backward(ctx, batch.dz).dx
    dx_error, dweight_error, dbias_error = terms.backward(batch.dz, ctx.training)
    dx_error = dx_error + terms.stored * np.abs(dx) + terms.smallest
    return Expected(batch, z, dx, sum_dy_xhat, sum_dy, terms.z_error, dx_error, dweight_error, dbias_error)


@cache
def expected_of_random(shape, dtype, activation, keeps, seed=0, mean=2.0, spread=1.0):
    """`expected` of `random_batch`, without kinks; computed once for all layouts and instruction sets."""
    batch = without_kinks(random_batch(shape, dtype, seed, mean, spread), dtype, keeps, activation)
    return expected(batch, dtype, keeps, activation)


def assert_within(got, want, error, name="result"):
    """Assert |got - want| <= error everywhere; the message tells where it is worst and by how much."""
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
