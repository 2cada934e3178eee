"""The properties of activations that layers use are those of the specification."""

import numpy as np
import pytest

from inplace_abn import reference
from inplace_abn._activations import ACTIVATIONS, KEEPS
from inplace_abn.ops.activation import FORMULAS


def test_the_tables_list_the_same_activations_and_strategies():
    assert list(ACTIVATIONS) == list(reference.ACTIVATIONS) == list(FORMULAS)
    assert KEEPS == reference.KEEPS


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_properties_are_those_of_the_specification(name):
    ours, specified = ACTIVATIONS[name], reference.ACTIVATIONS[name]
    assert ours.param == specified.param
    assert ours.invertible == (specified.inverse is not None)
    assert ours.minimum == (None if specified.minimum is None else float(specified.minimum))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_formulas_are_those_of_the_specification(name, dtype):
    y = np.concatenate([-np.geomspace(1e-3, 30, 60), np.geomspace(1e-3, 30, 60)]).astype(dtype)
    specified, eps = reference.ACTIVATIONS[name], np.finfo(dtype).eps
    want = specified.phi(y.astype(np.longdouble), 0.3)
    z = FORMULAS[name].value(y, 0.3)
    assert z.dtype == dtype
    # 1 - |z| cancels up to the slope of the exponent, 30.
    np.testing.assert_allclose(z, want.astype(dtype), rtol=64 * eps, atol=4 * eps)
    slope = FORMULAS[name].slope(z if ACTIVATIONS[name].slope_from_z else y, 0.3)
    want = specified.derivative(y.astype(np.longdouble), 0.3)
    np.testing.assert_allclose(slope, want.astype(dtype), rtol=64 * eps, atol=16 * eps)
