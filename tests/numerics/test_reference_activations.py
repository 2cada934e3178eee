"""The activations of the specification: derivatives, inverses, and the definitions of PyTorch."""

import math

import numpy as np
import pytest
from batches import PARAM
from finite_differences import numerical_gradient

from inplace_abn.reference import ACTIVATIONS

try:
    import torch
except ImportError:
    torch = None

INVERTIBLE = [name for name, activation in ACTIVATIONS.items() if activation.inverse]
TWO_SIDED = [name for name, activation in ACTIVATIONS.items() if activation.minimum is not None]
TYPES = [np.float64, np.longdouble]
Y = [-20, -7, -5, -3, -2, -1.5, -0.9, -0.3, -1e-3, -0.0, 0.0, 1e-9, 1e-3, 0.3, 1, 2, 5, 9]


def sides(name, y):
    minimum = ACTIVATIONS[name].minimum
    return () if minimum is None else (y < minimum,)


def test_the_order_is_the_order_of_the_c_table():
    assert list(ACTIVATIONS) == [
        "identity", "leaky_relu", "prelu", "elu", "celu", "selu", "softplus", "sigmoid", "tanh", "silu",
        "gelu", "gelu_tanh", "mish", "relu", "relu6", "hardsigmoid", "hardswish",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_derivative_equals_finite_differences(name):
    y = np.array([-30, -5, -2, -0.7, -0.3, 0.3, 2, 50], np.longdouble)
    slope = numerical_gradient(lambda: ACTIVATIONS[name].phi(y, PARAM[name]).sum(), y)
    np.testing.assert_allclose(ACTIVATIONS[name].derivative(y, PARAM[name]), slope, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", INVERTIBLE)
def test_y_and_the_derivative_are_recovered_from_z(name, dtype):
    """Up to the rounding of z: eps * |z| / phi'(y) in y, and that times phi''(y) in the derivative."""
    activation, param, eps = ACTIVATIONS[name], PARAM[name], np.finfo(dtype).eps
    y = np.array(Y, dtype)
    z, slope = activation.phi(y, param), activation.derivative(y, param)
    with np.errstate(divide="ignore"):  # z may be rounded to 1, where the inverse is infinite
        back = activation.inverse(z, param, *sides(name, y))
    from_z = activation.derivative_from_z(z, param, *sides(name, y))
    assert {z.dtype, back.dtype} == {np.dtype(dtype)}
    determined = (np.abs(z) * eps / np.maximum(np.abs(slope), eps) < 1e-3) & (np.abs(slope) > 1e3 * eps)
    assert determined.sum() > len(y) - 4
    y_error = 4 * eps * (np.abs(y) + 1 + np.abs(z) / np.maximum(np.abs(slope), eps))
    assert (np.abs(back - y) <= y_error)[determined].all()
    assert (np.abs(from_z - slope) <= 3 * (y_error + 16 * eps))[determined].all()


@pytest.mark.parametrize("name", TWO_SIDED)
def test_phi_is_smallest_at_the_minimum(name):
    activation, eps = ACTIVATIONS[name], np.finfo(np.longdouble).eps
    turn = activation.minimum
    assert abs(activation.derivative(turn[()], None)) < 4 * eps
    around = turn + np.array([-1e-4, 0, 1e-4], np.longdouble)
    z = activation.phi(around, None)
    assert z[1] < min(z[0], z[2])
    low, _, high = activation.inverse(z, None, around < turn)
    np.testing.assert_allclose([low, high], around[[0, 2]], rtol=0, atol=1e5 * eps)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", TWO_SIDED)
def test_inverse_of_z_below_the_minimum_and_of_0_on_the_left(name, dtype):
    turn = dtype(ACTIVATIONS[name].minimum)
    least = ACTIVATIONS[name].phi(np.array([turn]), None) * (1 + np.finfo(dtype).eps)
    for left in (True, False):
        assert abs(ACTIVATIONS[name].inverse(least, None, np.array([left])) - turn) < 1e-6
    assert ACTIVATIONS[name].inverse(np.array([-0.0]), None, np.array([True])) == 0
    assert np.isnan(ACTIVATIONS[name].inverse(np.array([np.nan]), None, np.array([False])))


@pytest.mark.parametrize("dtype", TYPES)
def test_gelu_is_accurate_in_the_left_tail(dtype):
    y = -np.linspace(0, 37, 75).astype(dtype)
    want = [float(v) * math.erfc(-float(v) / math.sqrt(2)) / 2 for v in y]
    np.testing.assert_allclose(ACTIVATIONS["gelu"].phi(y, None).astype(float), want, rtol=2e-13)


def in_torch(name):
    functional = torch.nn.functional
    found = {
        "identity": lambda y: y * 1,
        "leaky_relu": lambda y: functional.leaky_relu(y, PARAM[name]),
        "prelu": lambda y: functional.prelu(y, torch.full((1,), PARAM[name], dtype=y.dtype)),
        "elu": lambda y: functional.elu(y, PARAM[name]),
        "celu": lambda y: functional.celu(y, PARAM[name]),
        "softplus": lambda y: functional.softplus(y, threshold=40),
        "gelu_tanh": lambda y: functional.gelu(y, approximate="tanh"),
    }
    return found.get(name) or getattr(functional, name)


@pytest.mark.torch
@pytest.mark.skipif(torch is None, reason="torch is not installed")
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_and_derivatives_equal_torch(name):
    y = torch.tensor([v for v in [*Y, 3, 6] if v], dtype=torch.float64, requires_grad=True)
    z = in_torch(name)(y)
    z.sum().backward()
    there = y.detach().numpy()
    np.testing.assert_allclose(ACTIVATIONS[name].phi(there, PARAM[name]), z.detach(), rtol=1e-11, atol=1e-15)
    rtol = 1e-7 if name == "hardsigmoid" else 1e-10  # PyTorch's slope is float32's 1 / 6
    np.testing.assert_allclose(
        ACTIVATIONS[name].derivative(there, PARAM[name]), y.grad, rtol=rtol, atol=1e-14
    )
