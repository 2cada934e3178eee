"""Fit the approximations of silu, gelu, gelu_tanh and mish that csrc/kernels/curves.h uses.

python tools/fit_activations.py | clang-format --assume-filename=csrc/abn.h > csrc/kernels/curve_fits.h
"""

import mpmath as mp
import numpy as np
from scipy.optimize import brentq
from scipy.special import log_expit, log_ndtr

BEND, CUBIC = 2 * np.sqrt(2 / np.pi), 0.044715  # gelu_tanh: y * sigmoid(BEND * (y + CUBIC * y^3))


def log_gate_mish(y):
    """Return log(tanh(softplus(y))), y < 0."""
    e = np.exp(y)
    return y + np.log((e + 2) / (e * (e + 2) + 2))


# z = y * gate(y). name: (log(gate) for y < 0; gate for mpmath; y below which the fit is in log(-z); y above
# which z = y; (least y, greatest y, density of the intervals at both ends, found by search) of the piecewise
# fits for float32).
CURVES = {
    "silu": (log_expit, lambda y: 1 / (1 + mp.exp(-y)), -5, 20, (-4.7, 17.8, 1.22, 1.24)),
    "gelu": (log_ndtr, lambda y: mp.ncdf(y), -3.2, 6, (-2.8, 5.5, 1.86, 2.58)),
    "gelu_tanh": (
        lambda y: log_expit(BEND * (y + CUBIC * y**3)),
        lambda y: 1 / (1 + mp.exp(-mp.sqrt(8 / mp.pi) * (y + mp.mpf("0.044715") * y**3))),
        -3.2,
        6,
        (-2.8, 5.35, 1.86, 2.58),
    ),
    "mish": (log_gate_mish, lambda y: mp.tanh(mp.log1p(mp.exp(y))), -5, 11, (-4.5, 10, 1.09, 2.23)),
}
LEAST_LOG = -690  # the tails are fitted down to this log(-z)


def chebyshev(x, degree):
    low, high = x.min(), x.max()
    return np.polynomial.chebyshev.chebvander((2 * x - low - high) / (high - low), degree)


def monomials(coefficients, x):
    """Convert coefficients in the Chebyshev basis on the range of x to coefficients of 1, x, x^2, ..."""
    series = np.polynomial.Chebyshev(coefficients, [x.min(), x.max()])
    return series.convert(kind=np.polynomial.Polynomial, domain=[-1, 1], window=[-1, 1]).coef


def fit_rational(x, f, weight, above, below, rounds=60):
    """Fit f by a nearly minimax N(x)/D(x): least squares, reweighted by 1/D and by the errors (Lawson)."""
    numerator, denominator = chebyshev(x, above), chebyshev(x, below)
    bottom, lawson, best = np.ones_like(x), np.ones_like(x), (np.inf,)
    for _ in range(rounds):
        row_weight = weight * np.sqrt(lawson) / bottom
        rows = np.hstack([numerator, -f[:, None] * denominator[:, 1:]]) * row_weight[:, None]
        scale = np.linalg.norm(rows, axis=0)
        c = np.linalg.lstsq(rows / scale, f * row_weight, rcond=None)[0] / scale
        top, bottom = numerator @ c[: above + 1], denominator @ np.r_[1, c[above + 1 :]]
        error = np.abs(weight * (top / bottom - f))
        if (bottom > 0).all() and error.max() < best[0]:
            best = error.max(), c
        lawson *= error / error.max() + 1e-3
        lawson /= lawson.mean()
    error, c = best
    top, bottom = monomials(c[: above + 1], x), monomials(np.r_[1, c[above + 1 :]], x)
    return top / bottom[0], bottom / bottom[0], error


def near_fit(gate, minimum, least_z, low, high):
    """Fit (y - minimum) / s in s = +-sqrt(z - least z), which is smooth through the minimum."""
    angle = np.linspace(0, np.pi, 1500)
    y = (low + high) / 2 - (high - low) / 2 * np.cos(angle)
    y = np.r_[y, float(minimum) + (y - float(minimum)) / 20]
    distance = np.sort(y - float(minimum))
    distance = distance[np.abs(distance) > 1e-6]
    z = [gate(minimum + d) * (minimum + d) - least_z for d in map(mp.mpf, distance)]
    s = np.array([float(mp.sqrt(v)) for v in z]) * np.sign(distance)
    ratio = distance / s
    return s, fit_rational(s, ratio, 1 / ratio, 4, 4)


def fit_interval(d, difference, slope, dz, degree=8, rounds=20):
    """Fit y - z by a polynomial in d whose derivative, added to dz/dd, gives the slope as well."""
    scale = np.abs(d).max()
    values = np.polynomial.polynomial.polyvander(d / scale, degree)
    derivatives = np.hstack([np.zeros((len(d), 1)), values[:, :-1] * np.arange(1, degree + 1)]) / scale
    weight = slope**2 / dz  # error of the slope / error of the derivative
    rows = np.vstack([values, derivatives * weight[:, None]])
    f = np.r_[difference, (dz / slope - dz) * weight]
    lawson, best = np.ones_like(f), (np.inf,)
    for _ in range(rounds):
        root = np.sqrt(lawson)
        c = np.linalg.lstsq(rows * root[:, None], f * root, rcond=None)[0]
        error = np.abs(rows @ c - f)
        best = min(best, (error.max(), *c))
        lawson *= error / error.max() + 1e-3
        lawson /= lawson.mean()
    return np.array(best[1:]) / scale ** np.arange(degree + 1), best[0]


def intervals_fit(gate, minimum, least_z, low, high, first, last):
    """Fit y - z in v = sqrt(s - (s of z = -0)), s = +-sqrt(z - least z), in eight intervals.

    The number of an interval is a cubic of v from -0.49 to 7.49, rounded. Its slopes at the ends are `first`
    and `last` times the mean slope.
    """
    angle = np.linspace(0, np.pi, 3000)
    y = (low + high) / 2 - (high - low) / 2 * np.cos(angle)
    distance = np.sort(np.r_[y, float(minimum) + (y - float(minimum)) / 20] - float(minimum))
    y = [minimum + d for d in map(mp.mpf, distance[np.abs(distance) > 1e-4])]
    z = [gate(v) * v for v in y]
    s = np.array([float(mp.sign(a - minimum) * mp.sqrt(b - least_z)) for a, b in zip(y, z, strict=True)])
    difference = np.array([float(a - b) for a, b in zip(y, z, strict=True)])
    slope = np.array([float(mp.diff(lambda x: x * gate(x), v)) for v in y])
    v = np.sqrt(s + float(mp.sqrt(-least_z)))
    t = np.polynomial.Polynomial([-v[0], 1]) / (v[-1] - v[0])
    number = -0.49 + 7.98 * ((t**3 - 2 * t**2 + t) * first + (3 - 2 * t) * t**2 + (t**3 - t**2) * last)
    columns, errors = [], []
    for interval in range(8):
        inside = np.abs(number(v) - interval) < 0.501
        centre = float(np.float32((v[inside][0] + v[inside][-1]) / 2))
        c, error = fit_interval(v[inside] - centre, difference[inside], slope[inside], (4 * s * v)[inside])
        columns.append([centre, *c])
        errors.append(error)
    return np.array(columns).T, number.coef, v[0] ** 2, s[-1], max(errors)


def tail_fit(log_gate, low):
    """Fit y in x = sqrt(-log(-z)); errors are weighted by their effect on log(-z)."""

    def log_z(y):
        return np.log(-y) + log_gate(y)

    high = brentq(lambda y: log_z(y) - LEAST_LOG, -800, low)
    y = (low + high) / 2 - (high - low) / 2 * np.cos(np.linspace(0, np.pi, 1500))
    x = np.sqrt(-log_z(y))
    return fit_rational(x, y, np.abs(np.gradient(log_z(y), y)), 4, 2)


def table(name, values, comment):
    print(f"static const real {name}[] = {{ /* {comment} */")
    print(", ".join(f"(real){float(v).hex()}" for v in values) + ",};")


def normal_tail(degree, centre, largest):
    """Fit (t + centre) * exp(t^2/2) * Phi(-t), 0 <= t <= largest, in (t - centre) / (t + centre)."""

    def f(v):
        t = centre * (1 + v) / (1 - v)
        return (t + centre) * mp.exp(t**2 / 2) * mp.erfc(t / mp.sqrt(2)) / 2

    range_ = [-1, mp.mpf(largest - centre) / (largest + centre)]
    values, error = mp.chebyfit(f, range_, degree + 1, error=True)
    return values[::-1], f"relative error {float(error / f(range_[1])):.1e}"


def main():
    mp.mp.dps = 40
    print("/* Printed by tools/fit_activations.py, which says how. Coefficients of 1, x, x^2, ... */")
    print('#ifndef ABN_CURVE_FITS_H\n#define ABN_CURVE_FITS_H\n\n#include "vector.h"\n')
    for name, (log_gate, gate, low, high, intervals) in CURVES.items():
        minimum = mp.findroot(lambda y, gate=gate: mp.diff(lambda x: x * gate(x), y), -1)
        least_z = gate(minimum) * minimum
        s, near = near_fit(gate, minimum, least_z, low, high)
        tail = tail_fit(log_gate, low)
        for label, (top, bottom, error) in (("near", near), ("tail", tail)):
            table(f"{name}_{label}_top", top, f"relative error {error:.1e}")
            table(f"{name}_{label}_bottom", bottom[1:], "the first is 1")
        print(f"#define {name.upper()}_LEAST_Z {float(least_z).hex()}")
        print(f"#define {name.upper()}_TAIL_Z {float(gate(mp.mpf(low)) * low).hex()}")
        print(f"#define {name.upper()}_LARGEST_S {s.max():.3f}")
        print(f"#define {name.upper()}_LARGEST_Z {high}")
        rows, number, least, largest, error = intervals_fit(gate, minimum, least_z, *intervals)
        print(f"static const real {name}_polynomials[][8] = {{ /* error {error:.1e}; first the centres */")
        for row in rows:
            print("{" + ", ".join(f"(real){float(v).hex()}" for v in row) + "},")
        print("};")
        table(f"{name}_interval", number, "a cubic of v")
        print(f"#define {name.upper()}_ZERO_S {float(mp.sqrt(-least_z)).hex()}")
        print(f"#define {name.upper()}_POLYNOMIALS_LEAST {least:.5f}")
        print(f"#define {name.upper()}_POLYNOMIALS_LARGEST_S {largest:.4f}\n")
    centre = 4
    print(f"#define NORMAL_TAIL_CENTRE {centre}")
    for start, degree, largest in (("#ifdef ABN_DTYPE_FLOAT64", 22, 39), ("#else", 9, 14)):
        print(start)
        table("normal_tail", *normal_tail(degree, centre, largest))
    print("#endif\n\n#endif")


if __name__ == "__main__":
    main()
