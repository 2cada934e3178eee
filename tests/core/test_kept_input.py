"""Strategies that keep x, xhat or y: activations without an inverse, activation parameters of any sign."""

import itertools

import numpy as np
import pytest
from batches import (
    DTYPES,
    HARD,
    ISAS,
    LAYOUTS,
    STRATEGIES,
    dtype_of,
    forward,
    parameter_dtype,
    random_batch,
    run,
    with_residual,
)
from bounds import EPS, assert_backward, assert_forward, expected, without_kinks

from inplace_abn import _core, functional, gradcheck, layers, reference

pytestmark = pytest.mark.arithmetic

KEEPING = [name for name in STRATEGIES if reference.KEEPS[name] != "z"]
IN_PLACE = [name for name in STRATEGIES if reference.KEEPS[name] == "z"]
PARAMS = [
    ("leaky_relu", -0.5),
    ("leaky_relu", 0.0),
    ("leaky_relu", -3.0),
    ("elu", -1.5),
    ("elu", 0.0),
    ("celu", -4.0),
]


def options_of(activation, param, strategy):
    return {"activation": activation, "activation_param": param, "strategy": strategy}


# ---- parameters of any sign --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("activation", "param"), PARAMS)
def test_results_equal_the_reference(activation, param, residual, dtype):
    """Strategies, layouts and instruction sets are cycled, so that every pair of them occurs."""
    batch = random_batch((3, 19, 5, 7), dtype)
    batch = with_residual(batch) if residual else batch
    for keeps in ("x", "xhat", "y"):
        given = without_kinks(batch, dtype, keeps, activation, param)
        want = expected(given, dtype, keeps, activation, param)
        strategies = [name for name in KEEPING if reference.KEEPS[name] == keeps]
        for layout, isa in itertools.product(LAYOUTS, ISAS):
            strategy = strategies[(list(LAYOUTS).index(layout) + ISAS.index(isa)) % len(strategies)]
            got = run(given, layout, isa=isa, **options_of(activation, param, strategy))
            assert_forward(got, want)
            assert_backward(got, want)


@pytest.mark.parametrize("strategy", KEEPING)
@pytest.mark.parametrize(("activation", "param"), PARAMS)
def test_gradients_equal_finite_differences(activation, param, strategy):
    layer = layers.ABN(3, **options_of(activation, param, strategy))
    layer.weight.data[:], layer.bias.data[:] = (1.5, -0.5, 0), (0.1, -0.2, 0.3)
    x, residual = np.random.default_rng(0).normal(size=(2, 4, 3, 5))
    report = gradcheck(layer, (x, residual), samples=20)
    assert report, report


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_of_zero_and_given_statistics(dtype, training):
    batch = random_batch((4, 6, 5, 7), dtype)
    batch = batch._replace(weight=np.where(np.arange(6) % 2, batch.weight, 0).astype(batch.weight.dtype))
    running = np.linspace(-1, 1, 6), np.linspace(0.5, 2, 6)
    running = [array.astype(batch.weight.dtype) for array in running]
    statistics = None if training else running
    given = {} if training else {"running_mean": running[0], "running_var": running[1]}
    cases = [*PARAMS, *((name, 1.0) for name in HARD)]
    for (activation, param), strategy in itertools.product(cases, KEEPING[1:]):
        keeps = reference.KEEPS[strategy]
        judged = without_kinks(batch, dtype, keeps, activation, param, statistics=statistics)
        want = expected(judged, dtype, keeps, activation, param, statistics=statistics)
        got = run(judged, training=training, **given, **options_of(activation, param, strategy))
        assert_forward(got, want)
        assert_backward(got, want)


@pytest.mark.parametrize("param", [-0.5, 0.0, np.nan, np.inf])
@pytest.mark.parametrize("activation", ["leaky_relu", "elu", "celu"])
@pytest.mark.parametrize("strategy", IN_PLACE)
def test_in_place_strategies_refuse_parameters_that_are_not_positive(strategy, activation, param):
    x = np.ones((4, 3), np.float32)
    with pytest.raises(ValueError, match=f"positive and finite with strategy '{strategy}', got .*'standard'"):
        functional.forward(x, **options_of(activation, param, strategy))
    assert (x == 1).all()
    if not np.isfinite(param):
        return
    with pytest.raises(ValueError, match="activation_param > 0"):
        reference.forward(x, **options_of(activation, param, strategy))
    what = (
        "must not be 0"
        if activation == "celu" and param == 0
        else f"positive .* '{strategy}', got .*'standard'"
    )
    with pytest.raises(ValueError, match=what):
        layers.ABN(3, **options_of(activation, param, strategy))
    if activation == "celu" and param == 0:
        return
    layer = layers.ABN(3, **options_of(activation, param, "standard"))
    with pytest.raises(ValueError, match="positive and finite with strategy"):
        layer.strategy = strategy
    assert layer.strategy == "standard"


@pytest.mark.parametrize("strategy", KEEPING)
def test_other_strategies_refuse_invalid_parameters(strategy):
    x = np.ones((4, 3), np.float32)
    for param, activation, what in [
        (np.nan, "elu", "must be finite, got nan"),
        (-np.inf, "leaky_relu", "must be finite, got -inf"),
        (0, "celu", "a number other than 0 for activation 'celu', got 0.0"),
        (-1e60, "elu", "in float32's range"),
    ]:
        with pytest.raises(ValueError, match=what):
            functional.forward(x, **options_of(activation, param, strategy))
    assert (x == 1).all()


def test_an_activation_alone_keeps_its_input_where_z_is_ambiguous():
    for name, param in PARAMS:
        layer, x = layers.Activation(name, param, inplace=True), np.array([[-1.0, 2.0]])
        z = layer(x)
        assert not layer.overwrites_input
        assert x.tolist() == [[-1, 2]]
        np.testing.assert_allclose(z, reference.ACTIVATIONS[name].phi(x, param))
        dx = layer.backward(np.ones((1, 2)))
        np.testing.assert_allclose(dx, reference.ACTIVATIONS[name].derivative(x, param))


def test_a_residual_is_not_added_in_place_before_an_activation_that_cannot_be_inverted():
    branch = layers.Sequential(layers.ABN(3, activation="identity", strategy="inplace"))
    for last in (layers.Activation("hardswish"), layers.Activation("leaky_relu", -0.5)):
        assert not branch[-1].takes_residual(last)
        block = layers.Residual(branch, activation=last)
        report = gradcheck(block, np.random.default_rng(0).normal(size=(4, 3, 5)))
        assert report, report


# ---- kinks -------------------------------------------------------------------------------------------------

# y, z and the derivative in PyTorch 2.13.
AT_KINKS = {
    "relu6": [(-1, 0, 0), (0, 0, 0), (0.5, 0.5, 1), (5.5, 5.5, 1), (6, 6, 0), (7, 6, 0)],
    "hardsigmoid": [(-4, 0, 0), (-3, 0, 0), (0, 0.5, 1 / 6), (3, 1, 0), (4, 1, 0)],
    "hardswish": [
        (-4, 0, 0),
        (-3, 0, 0),
        (-1.5, -0.375, 0),
        (0, 0, 0.5),
        (1.5, 1.125, 1),
        (3, 3, 1),
        (4, 4, 1),
    ],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", HARD)
def test_values_and_derivatives_at_kinks(activation, dtype):
    """Evaluation with mean 0, variance 1 and a negligible eps: y = x."""
    y, z, slope = np.array(AT_KINKS[activation] * 5).T
    x = np.stack([y, y[::-1]], axis=1).astype(dtype_of(dtype))
    one, zero = np.ones(2, parameter_dtype(dtype)), np.zeros(2, parameter_dtype(dtype))
    for isa, strategy, axis in itertools.product(ISAS, KEEPING, (1, -1)):
        given = np.moveaxis(x.reshape(-1, 2, 1), 1, axis).copy()
        got, ctx = _core.forward(
            given, running_mean=zero, running_var=one, training=False, eps=1e-300, activation=activation,
            strategy=strategy, channel_axis=axis, isa=isa,
        )  # fmt: skip
        dx = _core.backward(ctx, np.ones_like(got), isa=isa)[0]
        got, dx = (np.moveaxis(array, axis, 1).reshape(-1, 2).astype(float) for array in (got, dx))
        np.testing.assert_allclose(got, np.stack([z, z[::-1]], axis=1), rtol=EPS[dtype], atol=0)
        np.testing.assert_allclose(dx, np.stack([slope, slope[::-1]], axis=1), rtol=EPS[dtype], atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", HARD)
def test_values_are_within_a_few_units_in_the_last_place(activation, dtype):
    y = np.concatenate([np.linspace(-8, 8, 40_001), [-1e30, -3e38, 1e30, 3e38]]).astype(dtype)
    want = reference.ACTIVATIONS[activation].phi(y.astype(np.longdouble), None)
    slope = reference.ACTIVATIONS[activation].derivative(y.astype(np.longdouble), None)
    zero, one = np.zeros(1, dtype), np.ones(1, dtype)
    for isa in ISAS:
        z, _ = _core.forward(
            y.copy().reshape(-1, 1), running_mean=zero, running_var=one, training=False, eps=1e-300,
            strategy="standard", isa=isa, activation=activation,
        )  # fmt: skip
        off = np.abs(z[:, 0] - want)
        assert (off <= EPS[dtype] * (2 * np.abs(want) + np.abs(slope * y))).all()


@pytest.mark.parametrize("activation", HARD)
def test_an_overflowing_y_gives_no_nan(activation):
    """y = -infinity has the limits of the value and of the slope."""
    batch = with_residual(random_batch((4, 3, 40), "float32"))
    batch.residual[0, 1, :20] = -np.inf
    for isa, layout, strategy in itertools.product(ISAS, ("first", "last"), KEEPING):
        z, ctx = forward(batch, layout, isa=isa, activation=activation, strategy=strategy)
        at_left = z[0, 1, :20] if layout == "first" else z[0, :20, 1]
        assert (at_left == 0).all()
        ctx.release()
