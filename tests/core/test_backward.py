"""The backward: finite differences, evaluation, overwrite, reduce and apply. See also test_kernels.py."""

import numpy as np
import pytest
from batches import (
    ACTIVATIONS,
    DTYPES,
    ISAS,
    LAYOUTS,
    PARAM,
    STRATEGIES,
    each_scheme,
    lay_out,
    parameter_dtype,
    random_batch,
    run,
    sampled,
)  # fmt: skip
from bounds import EPS, assert_backward, assert_within, expected, without_kinks
from cases import each
from finite_differences import numerical_gradient
from keywords import as_running, as_sums

from inplace_abn import _core, functional, reference


@each_scheme
@each(training=[True, False], layout=["first", "last"])
def test_gradients_equal_finite_differences(activation, strategy, layout, training):
    """Differences of the compiled forward in float64, independent of the formulas of the backward."""
    batch = random_batch((3, 4, 2, 2), "float64", seed=5)
    x, weight, bias = batch.x.copy(), batch.weight.copy(), batch.bias.copy()
    running = bias / 2 + 1, weight**2
    options = {
        "activation": activation, "activation_param": PARAM[activation], "strategy": strategy,
        "training": training, "channel_axis": LAYOUTS[layout](x)[1],
        "slope": batch.slope_of(activation),
    }  # fmt: skip
    dz = lay_out(batch.dz, layout)

    def forward():
        return functional.forward(
            lay_out(x, layout),
            weight=weight,
            bias=bias,
            running_mean=running[0].copy(),
            running_var=running[1].copy(),
            **options,
        )

    def loss():
        return (forward()[0] * dz).sum()

    dx, dweight, dbias = functional.backward(forward()[1], dz)
    for got, by in ((np.moveaxis(dx, options["channel_axis"], 1), x), (dweight, weight), (dbias, bias)):
        np.testing.assert_allclose(got, numerical_gradient(loss, by), rtol=1e-8, atol=1e-9)


@sampled(dtype=DTYPES, layout=LAYOUTS, activation=ACTIVATIONS, strategy=STRATEGIES)
def test_the_derivative_at_zero_equals_the_reference(activation, strategy, layout, dtype):
    """With gamma = beta = 0, as in new residual branches, every y is 0 or -0: all strategies agree on it."""
    batch = random_batch((4, 6, 5, 7), dtype)
    batch = batch._replace(weight=np.array([0, -0.0] * 3, batch.weight.dtype), bias=np.zeros_like(batch.bias))
    want = expected(batch, dtype, reference.KEEPS[strategy], activation)
    options = {"activation": activation, "activation_param": PARAM[activation], "strategy": strategy}
    got = run(batch, layout, **options)
    at_zero = reference.ACTIVATIONS[activation].phi(np.zeros(1), PARAM[activation])[0]
    assert np.abs(got.z.astype(float) - at_zero).max() <= EPS[dtype] * at_zero
    assert not got.dx.any()
    assert_backward(got, want)
    slope = reference.ACTIVATIONS[activation].derivative(np.zeros(1), PARAM[activation])[0]
    dbias = slope * batch.dz.astype(float).sum(axis=(0, 2, 3))
    np.testing.assert_allclose(got.dbias, dbias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strategy", STRATEGIES)
@each(layout=LAYOUTS)
def test_dx_in_evaluation_has_no_terms_of_the_statistics(layout, strategy, dtype):
    keeps = reference.KEEPS[strategy]
    batch = random_batch((3, 17, 5, 3), dtype)
    running = [a.astype(parameter_dtype(dtype)) for a in (np.linspace(-1, 2, 17), np.linspace(0.1, 4, 17))]
    batch = without_kinks(batch, dtype, keeps, statistics=running)
    want = expected(batch, dtype, keeps, "leaky_relu", statistics=running)
    got = run(
        batch, layout, strategy=strategy, training=False, running_mean=running[0], running_var=running[1]
    )
    assert_backward(got, want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strategy", STRATEGIES)
@each(layout=LAYOUTS)
def test_overwrite_writes_the_same_dx_into_dz(layout, strategy, dtype):
    batch = random_batch((3, 17, 5, 3), dtype)

    def forward():
        x, axis = LAYOUTS[layout](batch.x)
        return functional.forward(
            x, weight=batch.weight, bias=batch.bias, strategy=strategy, channel_axis=axis
        )[1]

    dz = lay_out(batch.dz, layout)
    fresh = functional.backward(forward(), dz)
    assert np.array_equal(dz, lay_out(batch.dz, layout))
    assert not np.shares_memory(fresh.dx, dz)
    over = functional.backward(forward(), dz, overwrite=True)
    assert over.dx is dz
    for name in functional.Gradients._fields:
        assert np.array_equal(getattr(over, name), getattr(fresh, name)), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dz_may_have_other_strides_than_x_and_be_read_only(layout):
    """x and dz are both channels-first or both channels-last; one is a slice of a larger array."""
    batch = random_batch((3, 17, 5, 3), "float32")
    kind = "last" if "last" in layout else "first"
    x, axis = LAYOUTS[kind](batch.x)
    _, ctx = functional.forward(x, weight=batch.weight, bias=batch.bias, channel_axis=axis)
    want = functional.backward(ctx, lay_out(batch.dz, kind))
    x, axis = LAYOUTS[kind](batch.x)
    _, ctx = functional.forward(x, weight=batch.weight, bias=batch.bias, channel_axis=axis)
    dz = np.moveaxis(lay_out(batch.dz, layout), LAYOUTS[layout](batch.dz)[1], axis)
    dz.flags.writeable = False
    got = functional.backward(ctx, dz)
    np.testing.assert_allclose(got.dx, want.dx, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.dweight, want.dweight, rtol=1e-5, atol=1e-6)


def test_gradients_of_omitted_parameters_are_none():
    batch = random_batch((3, 5, 7), "float32")
    for weight, bias in ((batch.weight, None), (None, batch.bias), (None, None)):
        _, ctx = functional.forward(batch.x.copy(), weight=weight, bias=bias)
        got = functional.backward(ctx, batch.dz)
        assert isinstance(got, functional.Gradients)
        assert (got.dweight is None) == (weight is None)
        assert (got.dbias is None) == (bias is None)


def test_parameters_changed_after_the_forward_do_not_affect_the_backward():
    batch = random_batch((3, 5, 7), "float32")
    want = run(batch)
    weight, bias = batch.weight.copy(), batch.bias.copy()
    running = np.zeros(5, np.float32), np.ones(5, np.float32)
    _, ctx = functional.forward(batch.x.copy(), weight=weight, bias=bias, **as_running(running))
    for array in (weight, bias, *running):
        array[...] = np.nan
    got = functional.backward(ctx, batch.dz)
    assert np.array_equal(got.dx, want.dx)
    assert np.array_equal(got.dweight, want.dweight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
@each(training=[True, False], layout=LAYOUTS)
def test_reduce_and_apply_equal_backward(isa, layout, dtype, training):
    batch = without_kinks(random_batch((3, 17, 5, 3), dtype), dtype, "z")
    running = np.zeros_like(batch.weight), np.ones_like(batch.weight)
    statistics = None if training else running
    batch = without_kinks(batch, dtype, "z", statistics=statistics)
    want = expected(batch, dtype, "z", "leaky_relu", statistics=statistics)
    x, axis = LAYOUTS[layout](batch.x)
    _, ctx = _core.forward(
        x,
        weight=batch.weight,
        bias=batch.bias,
        **as_running(running),
        momentum=0,
        training=training,
        channel_axis=axis,
        isa=isa,
    )
    dz = lay_out(batch.dz, layout)
    sum_dy, sum_dy_xhat, _ = _core.backward_reduce(ctx, dz, isa=isa)
    assert sum_dy.dtype == sum_dy_xhat.dtype == np.float64
    assert_within(sum_dy, want.dbias, want.dbias_error, "sum_dy")
    assert_within(sum_dy_xhat, want.dweight, want.dweight_error, "sum_dy_xhat")
    again = _core.backward_reduce(ctx, dz, isa=isa)
    assert np.array_equal(again[0], sum_dy)
    assert np.array_equal(again[1], sum_dy_xhat)
    dx = _core.backward_apply(
        ctx, dz, sum_dy=sum_dy, sum_dy_xhat=sum_dy_xhat, count=45 if training else 0, isa=isa
    )
    assert not np.shares_memory(dx, dz)
    assert_within(np.moveaxis(dx, axis, 1), want.dx, want.dx_error, "dx")


def test_apply_overwrites_dz_on_request():
    batch = random_batch((3, 5, 7), "float32")
    _, ctx = functional.forward(batch.x.copy(), weight=batch.weight, bias=batch.bias)
    dz = batch.dz.copy()
    sums = functional.backward_reduce(ctx, dz)
    assert np.array_equal(dz, batch.dz)
    dx = functional.backward_apply(ctx, dz, **as_sums(sums), count=21, overwrite=True)
    assert dx is dz
    np.testing.assert_allclose(dx, run(batch).dx, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nan_and_infinity_in_dz_stay_in_their_channel(layout, bad):
    batch = random_batch((3, 19, 5), "float32")
    healthy = run(batch, layout)
    dz = batch.dz.copy()
    dz[1, 2, 3] = bad
    spoiled = run(batch._replace(dz=dz), layout)
    others = [c for c in range(19) if c != 2]
    assert np.array_equal(spoiled.dx[:, others], healthy.dx[:, others])
    assert np.array_equal(spoiled.dweight[others], healthy.dweight[others])
    assert np.isnan(spoiled.dx[1, 2, 3])
