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
@pytest.mark.parametrize(
    ("name", "param"),
    [(name, 0.3) for name in ACTIVATIONS]
    + [("leaky_relu", -0.3), ("leaky_relu", 0.0), ("elu", -0.3), ("elu", 0.0), ("celu", -3.0)],
)
def test_formulas_are_those_of_the_specification(name, param, dtype):
    y = np.concatenate([-np.geomspace(1e-3, 30, 60), np.geomspace(1e-3, 30, 60)]).astype(dtype)
    specified, eps = reference.ACTIVATIONS[name], np.finfo(dtype).eps
    want = specified.phi(y.astype(np.longdouble), param)
    z = FORMULAS[name].value(y, param)
    assert z.dtype == dtype
    # 1 - |z| cancels; the exponent magnifies the error by up to 30.
    np.testing.assert_allclose(z, want.astype(dtype), rtol=64 * eps, atol=4 * eps)
    slope = FORMULAS[name].slope(z if ACTIVATIONS[name].has_slope_from_z(param) else y, param)
    want = specified.derivative(y.astype(np.longdouble), param)
    np.testing.assert_allclose(slope, want.astype(dtype), rtol=64 * eps, atol=16 * eps)
