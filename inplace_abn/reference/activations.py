"""The activations of `inplace_abn.reference` in plain NumPy, each from its formula.

Every function takes an array and the activation's parameter, and computes in the dtype of the array, float64
or longdouble. Inverses without a closed form are found by a search.

=========================  ==============================================================================
prelu                      He, Zhang, Ren, Sun 2015, https://arxiv.org/abs/1502.01852
elu                        Clevert, Unterthiner, Hochreiter 2015, https://arxiv.org/abs/1511.07289
celu                       Barron 2017, https://arxiv.org/abs/1704.07483
selu                       Klambauer, Unterthiner, Mayr, Hochreiter 2017, https://arxiv.org/abs/1706.02515
silu, gelu, gelu_tanh      Hendrycks, Gimpel 2016, https://arxiv.org/abs/1606.08415
silu, there called swish   Ramachandran, Zoph, Le 2017, https://arxiv.org/abs/1710.05941
mish                       Misra 2019, https://arxiv.org/abs/1908.08681
relu6                      Howard et al. 2017, https://arxiv.org/abs/1704.04861
hardsigmoid                Courbariaux, Bengio, David 2015, https://arxiv.org/abs/1511.00363
hardswish                  Howard et al. 2019, https://arxiv.org/abs/1905.02244
=========================  ==============================================================================

>>> silu = ACTIVATIONS["silu"]
>>> y = np.array([-3.0, -0.5, 2.0])
>>> z = silu.phi(y, None)
>>> z.round(3)
array([-0.142, -0.189,  1.762])
>>> silu.inverse(z, None, y < silu.minimum).round(3)
array([-3. , -0.5,  2. ])
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

__all__ = ["ACTIVATIONS", "Activation"]


class Activation(NamedTuple):
    """An activation phi.

    With `inverse` and `derivative_from_z` the backward needs z alone (section 3.2 of the paper), provided
    that a parameter that is one number is positive. If they are None, x or xhat must be kept. If there is a
    minimum, they take a third argument, an array of bool: True if y is left of the minimum.
    """

    phi: Callable  # y -> z
    derivative: Callable  # y -> phi'(y)
    inverse: Callable | None  # z -> y
    derivative_from_z: Callable | None  # z -> phi'(y)
    param: str | None = None  # "one" number; "nonzero": one, not 0; "channel": one per channel (last axis)
    minimum: np.longdouble | None = None  # the y at which phi has its minimum, or None
    kinks: tuple = ()  # the y at which the derivative jumps


# ---- parts of the formulas ---------------------------------------------------------------------------------


def _constant(like, digits):
    return like.dtype.type(digits)


def _sigmoid(y):
    small = np.exp(-np.abs(y))
    return np.where(y >= 0, 1, small) / (1 + small)


def _hard_sigmoid(y):
    return np.clip(y + 3, 0, 6) / 6


def _cubic(y):
    """Return u and its derivative, for gelu_tanh: y * (1 + tanh(u)) / 2 = y * sigmoid(2u)."""
    scale = _constant(y, "0.797884560802865355879892119868763737")  # sqrt(2 / pi)
    cubic = _constant(y, "0.044715")
    return scale * (y + cubic * y**3), scale * (1 + 3 * cubic * y**2)


def _tanh_softplus(y):
    """Return tanh(log(1 + e)) = e (e + 2) / (e (e + 2) + 2) for e = exp(y), without overflow."""
    small = np.exp(-np.abs(y))
    top = np.where(y >= 0, 1 + 2 * small, small * (small + 2))
    return top / (top + 2 * np.where(y >= 0, small**2, 1))


def _normal_density(y):
    return np.exp(-(y**2) / 2) / _constant(y, "2.50662827463100050241576528481104525")  # sqrt(2 pi)


_PI = np.longdouble("3.14159265358979323846264338327950288")


def _normal_cdf(y):
    """Return the cumulative distribution function of the normal distribution, accurate in the left tail."""
    x = np.abs(y) / _constant(y, "1.41421356237309504880168872420969808")  # sqrt(2)
    half = _erfc(x) / 2
    return np.where(y < 0, half, 1 - half)


def _erfc(x):
    """Return 1 - erf(x) for x >= 0."""
    if x.dtype != np.longdouble:
        return np.vectorize(math.erfc, otypes=[x.dtype])(x)
    return np.where(x < 1, 1 - _erf_near_0(np.minimum(x, 1)), _erfc_from_1(np.clip(x, 1, 200)))


def _erf_near_0(x):
    """Return erf(x) from the series of positive terms in Abramowitz and Stegun 7.1.6, for 0 <= x <= 1."""
    term = total = x
    for n in range(1, 26):
        term = term * (2 * x**2) / (2 * n + 1)
        total = total + term
    return 2 / np.sqrt(_PI) * np.exp(-(x**2)) * total


def _erfc_from_1(x):
    """Return 1 - erf(x) for x >= 1 by the trapezoidal rule (Hunter, Regan 1972); error exp(-(pi / h)^2)."""
    h = np.longdouble(0.45)
    total = 1 / (2 * x**2)
    for n in range(1, 17):
        total = total + np.exp(-((n * h) ** 2)) / (x**2 + (n * h) ** 2)
    pole = np.where(x < _PI / h, 2 / np.expm1(2 * _PI * x / h), 0)
    return 2 * h * x / _PI * np.exp(-(x**2)) * total - pole


# ---- activations with a minimum: two y for a z -------------------------------------------------------------


def _two_sided(phi, derivative, minimum):
    """Return the `Activation`; its inverse is found by Newton's method with bisection as the fallback."""

    def inverse(z, param, left):
        y = np.array(z)
        known = np.isfinite(z) & ~(left & (z >= 0))  # left of the minimum z < 0, unless it underflows
        y[known] = _search(phi, derivative, z.dtype.type(minimum), z[known], left[known])
        return y

    def derivative_from_z(z, param, left):
        return derivative(inverse(z, param, left), param)

    return Activation(phi, derivative, inverse, derivative_from_z, minimum=np.longdouble(minimum))


@np.errstate(all="ignore")
def _search(phi, derivative, turn, z, left):
    """Return y with phi(y) = z: y <= turn where `left` is True, else y >= turn; phi is smallest at turn."""
    low, high, y = _bracket(phi, turn, z, left)
    open_ = np.arange(z.size)  # indices of the elements that have not converged
    for _ in range(200):
        if not open_.size:
            break
        here, value = y[open_], phi(y[open_], None)
        # In the left tail log(-z) is nearly linear in y. Both differences increase with y.
        on_left = left[open_]
        off = np.where(on_left, np.log(value / z[open_]), value - z[open_])
        slope = derivative(here, None) / np.where(on_left, value, 1)
        low[open_] = np.where(off <= 0, here, low[open_])
        high[open_] = np.where(off >= 0, here, high[open_])
        newton, middle = here - off / slope, (low[open_] + high[open_]) / 2
        y[open_] = np.where((low[open_] < newton) & (newton < high[open_]), newton, middle)
        open_ = open_[np.abs(y[open_] - here) > 2 * np.finfo(z.dtype).eps * np.abs(here)]
    return y


def _bracket(phi, turn, z, left):
    """Return bounds of y, and an initial guess from a parabola and a line or, left of `turn`, exp(y)."""
    above = np.maximum(z - phi(turn, None), 0)
    lowest = np.log(np.finfo(z.dtype).smallest_subnormal) - 16
    low, high = np.where(left, lowest, turn), np.where(left, turn, np.maximum(z, 0) + 1)
    guess = np.where(left, np.minimum(np.log(np.abs(z)), turn), turn + 2 * np.sqrt(above) + above)
    return low, high, np.clip(guess, low, high)


# ---- the table ---------------------------------------------------------------------------------------------
# In the order of csrc/abn.h. At a kink at y = 0 the derivative is the right-hand one, from y as well as from
# z. At the kinks of relu6, hardsigmoid and hardswish it is that of the outer side, as in PyTorch.

_LEAKY = {
    "phi": lambda y, slope: np.where(y >= 0, y, slope * y),
    "derivative": lambda y, slope: np.where(y >= 0, 1, slope),
    "inverse": lambda z, slope: np.where(z >= 0, z, z / slope),
    "derivative_from_z": lambda z, slope: np.where(z >= 0, 1, slope),
    "kinks": (0.0,),
}


def _selu(like):
    """Return scale and scale * alpha, chosen so that mean 0 and variance 1 are a fixed point."""
    scale = _constant(like, "1.0507009873554804934193349852946")
    return scale, scale * _constant(like, "1.6732632423543772848170429916717")


ACTIVATIONS = {
    "identity": Activation(
        phi=lambda y, _: y,
        derivative=lambda y, _: np.ones_like(y),
        inverse=lambda z, _: z,
        derivative_from_z=lambda z, _: np.ones_like(z),
    ),
    "leaky_relu": Activation(**_LEAKY, param="one"),
    "prelu": Activation(**_LEAKY, param="channel"),  # two y for a z >= 0 if a slope is below 0: xhat is kept
    "elu": Activation(
        phi=lambda y, alpha: np.where(y >= 0, y, alpha * np.expm1(np.minimum(y, 0))),
        derivative=lambda y, alpha: np.where(y >= 0, 1, alpha * np.exp(np.minimum(y, 0))),
        inverse=lambda z, alpha: np.where(z >= 0, z, np.log1p(np.minimum(z, 0) / alpha)),
        derivative_from_z=lambda z, alpha: np.where(z >= 0, 1, z + alpha),
        param="one",
        kinks=(0.0,),
    ),
    "celu": Activation(
        phi=lambda y, alpha: np.where(y >= 0, y, alpha * np.expm1(np.minimum(y, 0) / alpha)),
        derivative=lambda y, alpha: np.where(y >= 0, 1, np.exp(np.minimum(y, 0) / alpha)),
        inverse=lambda z, alpha: np.where(z >= 0, z, alpha * np.log1p(np.minimum(z, 0) / alpha)),
        derivative_from_z=lambda z, alpha: np.where(z >= 0, 1, 1 + z / alpha),
        param="nonzero",
    ),
    "selu": Activation(
        phi=lambda y, _: np.where(y >= 0, _selu(y)[0] * y, _selu(y)[1] * np.expm1(np.minimum(y, 0))),
        derivative=lambda y, _: np.where(y >= 0, _selu(y)[0], _selu(y)[1] * np.exp(np.minimum(y, 0))),
        inverse=lambda z, _: np.where(z >= 0, z / _selu(z)[0], np.log1p(np.minimum(z, 0) / _selu(z)[1])),
        derivative_from_z=lambda z, _: np.where(z >= 0, _selu(z)[0], z + _selu(z)[1]),
        kinks=(0.0,),
    ),
    "softplus": Activation(
        phi=lambda y, _: np.logaddexp(0, y),
        derivative=lambda y, _: _sigmoid(y),
        inverse=lambda z, _: z + np.log(-np.expm1(-z)),
        derivative_from_z=lambda z, _: -np.expm1(-z),
    ),
    "sigmoid": Activation(
        phi=lambda y, _: _sigmoid(y),
        derivative=lambda y, _: _sigmoid(y) * _sigmoid(-y),
        inverse=lambda z, _: np.log(z) - np.log1p(-z),
        derivative_from_z=lambda z, _: z * (1 - z),
    ),
    "tanh": Activation(
        phi=lambda y, _: np.tanh(y),
        derivative=lambda y, _: 4 * _sigmoid(2 * y) * _sigmoid(-2 * y),
        inverse=lambda z, _: np.arctanh(z),
        derivative_from_z=lambda z, _: (1 - z) * (1 + z),
    ),
    "silu": _two_sided(
        phi=lambda y, _: y * _sigmoid(y),
        derivative=lambda y, _: _sigmoid(y) * (1 + y * _sigmoid(-y)),
        minimum="-1.27846454276107379510935873902298016",
    ),
    "gelu": _two_sided(
        phi=lambda y, _: y * _normal_cdf(y),
        derivative=lambda y, _: _normal_cdf(y) + y * _normal_density(y),
        minimum="-0.75179152469356445745790494677952404",
    ),
    "gelu_tanh": _two_sided(
        phi=lambda y, _: y * _sigmoid(2 * _cubic(y)[0]),
        derivative=lambda y, _: (
            _sigmoid(2 * _cubic(y)[0]) * (1 + y * _sigmoid(-2 * _cubic(y)[0]) * 2 * _cubic(y)[1])
        ),
        minimum="-0.752461422071016258487954443288916091",
    ),
    "mish": _two_sided(
        phi=lambda y, _: y * _tanh_softplus(y),
        derivative=lambda y, _: _tanh_softplus(y) + y * _sigmoid(y) * (1 - _tanh_softplus(y) ** 2),
        minimum="-1.19243121451549521213758834042073941",
    ),
    "relu": Activation(
        phi=lambda y, _: np.maximum(y, 0),
        derivative=lambda y, _: np.where(y >= 0, 1, 0),
        inverse=None,
        derivative_from_z=None,
        kinks=(0.0,),
    ),
    "relu6": Activation(
        phi=lambda y, _: np.clip(y, 0, 6),
        derivative=lambda y, _: np.where((y > 0) & (y < 6), 1, 0),
        inverse=None,
        derivative_from_z=None,
        kinks=(0.0, 6.0),
    ),
    "hardsigmoid": Activation(
        phi=lambda y, _: _hard_sigmoid(y),
        derivative=lambda y, _: np.where((y > -3) & (y < 3), 1 / _constant(y, 6), 0),
        inverse=None,
        derivative_from_z=None,
        kinks=(-3.0, 3.0),
    ),
    "hardswish": Activation(
        phi=lambda y, _: np.maximum(y, -3) * _hard_sigmoid(y),  # the maximum avoids -inf * 0
        derivative=lambda y, _: np.where(y >= 3, 1, np.where(y <= -3, 0, y / 3 + 0.5)),
        inverse=None,
        derivative_from_z=None,
        kinks=(-3.0, 3.0),
    ),
}
