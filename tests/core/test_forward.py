"""The forward: options, running statistics, memory of z, NaN, empty batches. See also test_kernels.py."""

import numpy as np
import pytest
from batches import (
    ACTIVATIONS,
    DTYPES,
    ISAS,
    LAYOUTS,
    PARAM,
    STRATEGIES,
    Batch,
    channels_first,
    dtype_of,
    lay_out,
    parameter_dtype,
    random_batch,
    run,
    sampled,
)
from bounds import EPS, assert_forward, assert_within, eps_of_compute, expected
from cases import each
from keywords import as_merged, as_running

from inplace_abn import _core, functional, reference


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("dtype", DTYPES)
@each(layout=LAYOUTS)
def test_evaluation_normalizes_with_the_running_statistics(layout, dtype, strategy):
    batch = random_batch((3, 17, 5, 3), dtype)
    running_mean = np.linspace(-1, 2, 17).astype(parameter_dtype(dtype))
    running_var = np.linspace(0.1, 4, 17).astype(parameter_dtype(dtype))
    keeps = reference.KEEPS[strategy]
    want = expected(batch, dtype, keeps, "leaky_relu", statistics=(running_mean, running_var))
    running = running_mean.copy(), running_var.copy()
    got = run(
        batch, layout, training=False, strategy=strategy, running_mean=running[0], running_var=running[1]
    )
    assert_forward(got, want)
    assert np.array_equal(running[0], running_mean)
    assert np.array_equal(running[1], running_var)


def test_evaluation_accepts_one_value_per_channel():
    x, one, zero = np.array([[3.0, 5.0]], np.float32), np.ones(2, np.float32), np.zeros(2, np.float32)
    z, _ = functional.forward(x, running_mean=zero, running_var=one, training=False, eps=1e-12)
    assert z.tolist() == [[3.0, 5.0]]


@pytest.mark.parametrize("dtype", DTYPES)
@each(momentum=[0, 0.1, 0.75, 1], layout=LAYOUTS)
def test_running_statistics_are_updated_by_momentum(dtype, layout, momentum):
    """With the unbiased variance. Momentum 0 keeps exactly the old values, 1 gives exactly the batch's."""
    batch = random_batch((3, 17, 5, 3), dtype)
    old = batch.weight.copy(), np.abs(batch.bias)
    running = old[0].copy(), old[1].copy()
    x, axis = LAYOUTS[layout](batch.x)
    functional.forward(x, **as_running(running), momentum=momentum, channel_axis=axis)
    mean, var, count = reference.statistics(batch.x.astype(np.float64))
    want = reference.update_running(*(a.astype(np.float64) for a in old), mean, var, count, momentum)
    scale = np.abs(old[0]) + np.abs(mean) + np.sqrt(var), old[1] + var
    for name, now, then, new, size in zip(("mean", "var"), running, old, want, scale, strict=True):
        assert_within(now, new, 16 * eps_of_compute(dtype) * size, f"running_{name}")
        assert momentum != 0 or np.array_equal(now, then)


def test_running_statistics_may_be_strided():
    batch = random_batch((3, 5, 7), "float32")
    both = np.zeros((5, 2), np.float32)
    plain = np.zeros(5, np.float32), np.zeros(5, np.float32)
    functional.forward(batch.x.copy(), running_mean=both[:, 0], running_var=both[:, 1])
    functional.forward(batch.x.copy(), **as_running(plain))
    assert np.array_equal(both.T, plain)


def test_parameters_may_be_strided_and_read_only():
    batch = random_batch((3, 5, 7), "float32")
    both = np.stack([batch.weight, batch.bias], axis=1)
    both.flags.writeable = False
    got, _ = functional.forward(batch.x.copy(), weight=both[:, 0], bias=both[:, 1])
    want, _ = functional.forward(batch.x.copy(), weight=batch.weight, bias=batch.bias)
    assert np.array_equal(got, want)


@pytest.mark.parametrize("dtype", DTYPES)
@each(weight=[True, False], bias=[True, False])
def test_weight_and_bias_are_each_optional(weight, bias, dtype):
    batch = random_batch((3, 5, 7), dtype)
    one, zero = np.ones_like(batch.weight), np.zeros_like(batch.bias)
    got, _ = functional.forward(
        batch.x.copy(), weight=batch.weight if weight else None, bias=batch.bias if bias else None
    )
    want, _ = functional.forward(
        batch.x.copy(), weight=batch.weight if weight else one, bias=batch.bias if bias else zero
    )
    assert np.array_equal(got, want)


@pytest.mark.parametrize("strategy", [*STRATEGIES, "inplace"])
@each(layout=LAYOUTS)
def test_which_strategies_write_z_into_x(strategy, layout):
    """In-place strategies write z into x, checkpoint_xhat writes xhat, the others do not change x."""
    batch = random_batch((3, 5, 4, 4), "float32")
    x, axis = LAYOUTS[layout](batch.x)
    z, _ = functional.forward(x, weight=batch.weight, bias=batch.bias, strategy=strategy, channel_axis=axis)
    keeps = reference.KEEPS[strategy]
    assert (z is x) == (keeps == "z")
    assert np.shares_memory(z, x) == (keeps == "z")
    assert z.shape == x.shape
    assert z.dtype == x.dtype
    now = np.moveaxis(x, axis, 1)
    if keeps == "x":
        assert np.array_equal(now, batch.x)
    if keeps == "xhat":
        mean, var, _ = reference.statistics(batch.x)
        xhat = (batch.x - mean[:, None, None]) / np.sqrt(var + 1e-5)[:, None, None]
        assert_within(now, xhat, 16 * EPS["float32"] * (1 + np.abs(xhat)), "xhat")


@pytest.mark.parametrize("strategy", ["standard", "checkpoint"])
def test_a_kept_x_may_be_read_only(strategy):
    batch = random_batch((3, 5, 7), "float32")
    z, ctx = functional.forward(batch.x, weight=batch.weight, bias=batch.bias, strategy=strategy)
    functional.backward(ctx, np.ones_like(z))
    assert not batch.x.flags.writeable


@sampled(dtype=DTYPES, layout=LAYOUTS, activation=ACTIVATIONS, strategy=STRATEGIES)
@each(bad=[np.nan, np.inf, -np.inf])
def test_nan_and_infinity_stay_in_their_channel(activation, strategy, bad, layout, dtype):
    batch = random_batch((3, 19, 5), dtype)
    options = {"activation": activation, "activation_param": PARAM[activation], "strategy": strategy}
    healthy = run(batch, layout, **options)
    x = batch.x.copy()
    x[1, 2, 3] = x[2, 18, 4] = bad
    spoiled = run(batch._replace(x=x), layout, **options)
    others = [c for c in range(19) if c not in (2, 18)]
    for name in ("z", "dx"):
        got, want = getattr(spoiled, name), getattr(healthy, name)
        assert np.array_equal(got[:, others], want[:, others]), name
        assert np.isnan(got[:, [2, 18]].astype(np.float64)).all(), name
    for name in ("dweight", "dbias"):
        assert np.array_equal(getattr(spoiled, name)[others], getattr(healthy, name)[others]), name
    assert np.isnan(spoiled.dweight[[2, 18]]).all()


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4, 4), (2, 3, 0), (2, 0, 4), (0, 0, 0)], ids=str)
@each(layout=LAYOUTS, strategy=STRATEGIES)
def test_an_empty_batch(shape, strategy, layout):
    """As in PyTorch: z is empty, running statistics do not change, gradients are zero."""
    channels = shape[1]
    x, axis = LAYOUTS[layout](np.zeros(shape, np.float32))
    running = np.full(channels, 3, np.float32), np.full(channels, 4, np.float32)
    one = np.ones(channels, np.float32)
    z, ctx = functional.forward(
        x, weight=one, bias=one, **as_running(running), strategy=strategy, channel_axis=axis
    )
    assert z.shape == x.shape
    assert (running[0] == 3).all()
    assert (running[1] == 4).all()
    dx, dweight, dbias = functional.backward(ctx, lay_out(np.zeros(shape, np.float32), layout))
    assert dx.shape == x.shape
    assert dweight.tolist() == dbias.tolist() == [0] * channels


@pytest.mark.parametrize("dtype", DTYPES)
@each(value=[0, 3, -1e4, 0.1], layout=["first", "last"])
def test_a_constant_channel_has_xhat_zero(layout, value, dtype):
    x = np.full((3, 5, 49), value, dtype_of(dtype))
    x[:, 1] = np.arange(49)
    bias = np.linspace(-2, 2, 5).astype(parameter_dtype(dtype))
    batch = Batch(x, np.ones_like(x), np.full_like(bias, 1.5), bias)
    got = run(batch, layout, activation="identity")
    constant = [0, 2, 3, 4]
    want = np.broadcast_to(bias[constant, None].astype(np.float64), (3, 4, 49))
    assert_within(got.z[:, constant], want, EPS[dtype] * np.abs(want), "z")


def test_normalize_with_the_statistics_of_the_batch_equals_forward():
    batch = random_batch((3, 17, 49), "float64")
    want, _ = functional.forward(batch.x.copy(), weight=batch.weight, bias=batch.bias)
    got, _ = functional.normalize(
        batch.x.copy(), **as_merged(functional.statistics(batch.x)), weight=batch.weight, bias=batch.bias
    )
    np.testing.assert_allclose(got, want, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@each(layout=LAYOUTS)
def test_normalize_accepts_statistics_of_other_data(dtype, layout, isa):
    """The given count is 1000 values per channel; the running variance is unbiased with that count."""
    batch = random_batch((3, 17, 5, 3), dtype)
    mean, var = np.linspace(-1, 2, 17), np.linspace(0.1, 4, 17)
    x, axis = LAYOUTS[layout](batch.x)
    running = np.zeros_like(batch.weight), np.zeros_like(batch.weight)
    z, ctx = _core.normalize(
        x,
        mean=mean,
        var=var,
        count=1000,
        weight=batch.weight,
        bias=batch.bias,
        **as_running(running),
        momentum=0.5,
        channel_axis=axis,
        isa=isa,
    )
    want = expected(batch, dtype, "z", "leaky_relu", statistics=(mean, var))
    assert z is x
    assert ctx.training
    assert_within(np.moveaxis(z, axis, 1), want.z, want.z_error, "z")
    eps = eps_of_compute(dtype)
    assert_within(running[0], mean / 2, eps * np.abs(mean), "running_mean")
    assert_within(running[1], var / 2 * 1000 / 999, eps * var, "running_var")


def test_the_default_is_inplace_2_with_leaky_relu():
    batch = random_batch((3, 5, 7), "float32")
    x, _ = channels_first(batch.x)
    z, ctx = functional.forward(x)
    want, _ = functional.forward(
        channels_first(batch.x)[0], training=True, momentum=0.1, eps=1e-5,
        activation="leaky_relu", activation_param=0.01, strategy="inplace_2", channel_axis=1, threads=None,
    )  # fmt: skip
    assert z is x
    assert np.array_equal(z, want)
    assert ctx.strategy in ("inplace", "inplace_2")
