"""Activation parameters, statistics, gradients and x that take results out of the storage type's range."""

import numpy as np
import pytest
from batches import (
    ACTIVATIONS,
    DTYPES,
    INVERTIBLE,
    ISAS,
    LAYOUTS,
    PARAM,
    STRATEGIES,
    Batch,
    dtype_of,
    lay_out,
    parameter_dtype,
    random_batch,
    relative_l2,
    run,
    sampled,
)
from bounds import EPS, SMALLEST, without_kinks, working_type
from cases import each
from keywords import as_merged, as_parameters, as_running, as_sums

from inplace_abn import _core, functional, reference

pytestmark = pytest.mark.arithmetic

INPLACE = ["inplace_1", "inplace_2"]
HALVES = DTYPES[2:]


def with_parameters(dtype, weight, bias, shape=(8, None, 7, 9), mean=0.0):
    """Return a batch with one channel for each weight and bias."""
    parameter = parameter_dtype(dtype)
    weight, bias = np.broadcast_arrays(weight, bias)
    batch = random_batch((shape[0], len(weight), *shape[2:]), dtype, mean=mean)
    return batch._replace(weight=weight.astype(parameter), bias=bias.astype(parameter))


def expected(batch, statistics=None, **options):
    """Return the reference's results in float64. `statistics`: (mean, var) of evaluation mode."""
    options = {"strategy": "standard", "training": statistics is None, **options}
    z, ctx = reference.forward(
        batch.x, weight=batch.weight, bias=batch.bias, **as_running(statistics or (None, None)), **options
    )
    return z, reference.backward(ctx, batch.dz)


def assert_channels(got, want, dtype, most):
    """Assert for each channel a relative L2 error of at most `most`, or the rounding of the storage type."""
    with np.errstate(over="ignore"):
        stored = want.astype(dtype_of(dtype)).astype(np.float64)
    got = got.astype(np.float64)
    for c in range(want.shape[1]):
        finite = np.isfinite(stored[:, c])
        off = np.abs(got[:, c] - want[:, c])[finite]
        size = np.sqrt((want[:, c][finite] ** 2).mean()) if finite.any() else 0
        assert np.isfinite(got[:, c][finite]).all(), c
        if finite.any():
            assert np.sqrt((off**2).mean()) <= most * size + SMALLEST[dtype], (c, size, off.max())


# ---- activation parameters that take z out of the storage type's range -------------------------------------


@pytest.mark.parametrize("alpha", [1e-9, 1e-7, 1e-6, 1e-5, 5e-5, 2e-4, 3e4, 7e4, 1e6])
@each(layout=LAYOUTS, strategy=INPLACE)
def test_elu_of_float16_with_any_alpha(alpha, strategy, layout):
    """Below 6e-5 z is subnormal or zero throughout, above 65504 it may be infinite."""
    batch = with_parameters("float16", [1, -0.5, 2, 0.1, 8], [0, 0.3, -1, 0.1, 2])
    options = {"activation": "elu", "activation_param": alpha}
    batch = batch._replace(dz=(batch.dz.astype(np.float64) * min(1, 10 / alpha)).astype(np.float16))
    batch = without_kinks(batch, "float16", "z", "elu", alpha)
    z, want = expected(batch, **options)
    got = run(batch, layout, strategy=strategy, **options)
    assert_channels(got.z, z, "float16", 2e-3)
    assert_channels(got.dx, want.dx, "float16", 4e-3)
    size = np.abs(batch.dz.astype(np.float64)).sum((0, 2, 3)) * max(1, alpha)
    assert (np.abs(got.dweight - want.dweight) <= 4e-3 * size).all()


@pytest.mark.parametrize("strategy", INPLACE)
@pytest.mark.parametrize("slope", [1e-6, 1e-3, 2.0, 300.0, 1e4, 1e6])
def test_leaky_relu_of_float16_with_any_slope(slope, strategy):
    """z = slope * y may overflow where y does not."""
    batch = with_parameters("float16", [1, 20, -3, 100], [0, 1, 2, -100], (8, None, 33, 33))
    batch = batch._replace(dz=(batch.dz.astype(np.float64) * min(1, 0.1 / slope)).astype(np.float16))
    options = {"activation": "leaky_relu", "activation_param": slope}
    batch = without_kinks(batch, "float16", "xhat", "leaky_relu", slope)
    z, want = expected(batch, **options)
    got = run(batch, strategy=strategy, **options)
    assert_channels(got.z, z, "float16", 2e-3)
    assert_channels(got.dx, want.dx, "float16", 4e-3)
    assert np.isfinite(got.dweight).all()


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("strategy", INPLACE)
def test_elu_near_minus_alpha(strategy, layout):
    """Recovered from z near -alpha, y and slope have few correct digits, for any weight and bias."""
    weight = np.tile([0.05, 0.13, 0.5, 1, 2, 4], 13)
    bias = np.repeat(np.linspace(-10, 2, 13), 6) - 0.2
    batch = with_parameters("float32", weight, bias, (8, None, 15, 15))
    options = {"activation": "elu", "activation_param": 1.0}
    z, want = expected(batch, **options)
    got = run(batch, layout, strategy=strategy, **options)
    assert_channels(got.z, z, "float32", 1e-6)
    for c in range(len(weight)):
        assert relative_l2(got.dx[:, c], want.dx[:, c]) < 1e-5, (weight[c], bias[c])


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("activation", INVERTIBLE)
def test_an_inverse_std_that_overflows_float(activation, layout):
    """inv_std = 1e40 needs the double kernels. With bias -9, z is at an asymptote: xhat is lost."""
    batch = with_parameters("float32", np.array([1, -2, 0.5]), np.array([0, -9, 2]))
    batch = batch._replace(x=batch.x * np.float32(1e-40), dz=batch.dz * np.float32(1e-30))
    options = {"activation": activation, "activation_param": PARAM[activation], "eps": 1e-300}
    z, want = expected(batch, slope=batch.slope_of(activation), **options)
    got = run(batch, layout, strategy="inplace", **options)
    assert_channels(got.z, z, "float32", 1e-6)
    assert_channels(got.dx, want.dx, "float32", 1e-4)


@pytest.mark.parametrize("layout", ["first", "last"])
def test_gradients_of_float64_beyond_float(layout):
    batch = with_parameters("float64", np.array([1, -2, 0.5]), np.array([0, 1, 2]))
    batch = batch._replace(dz=batch.dz * 1e60)
    got, (_, want) = run(batch, layout), expected(batch)
    for name in ("dx", "dweight", "dbias"):
        assert relative_l2(getattr(got, name), getattr(want, name)) < 1e-12


# ---- given statistics --------------------------------------------------------------------------------------


def far_from_given_statistics(dtype):
    """Return a batch for evaluation with a few x so far above and below the mean that z overflows."""
    batch = random_batch((4, 6, 9, 5), dtype, mean=0.0)
    x = np.array(batch.x)
    far = {"float16": 1000, "float32": 1e38, "bfloat16": 1e38, "float64": 1e307}[dtype]
    x[0, :3, 0, 0] = far
    x[1, 2:5, 3, 1] = -far
    weight = np.array([1, -1, 0.5, 2, 1, 1], parameter_dtype(dtype))
    statistics = np.zeros(6, weight.dtype), np.full(6, 1e-4, weight.dtype)
    return batch._replace(x=x, weight=weight, bias=0 * weight), statistics


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["identity", "leaky_relu", "elu"])
@each(layout=LAYOUTS, strategy=INPLACE)
def test_z_that_overflows_with_given_statistics(activation, strategy, dtype, layout):
    """These elements escape: dx is finite and correct."""
    batch, statistics = far_from_given_statistics(dtype)
    options = {"activation": activation, "activation_param": 0.5}
    batch = without_kinks(batch, dtype, "xhat", activation, 0.5, statistics=statistics)
    z, want = expected(batch, statistics, dtype=working_type(dtype), **options)
    x, axis = LAYOUTS[layout](batch.x)
    got_z, ctx = _core.forward(
        x,
        weight=batch.weight,
        bias=batch.bias,
        **as_running(statistics),
        training=False,
        channel_axis=axis,
        strategy=strategy,
        **options,
    )
    got_z = np.moveaxis(got_z, axis, 1)
    with np.errstate(over="ignore"):
        assert np.isinf(got_z.astype(np.float64)).any()
        assert np.array_equal(
            np.isinf(got_z.astype(np.float64)), np.isinf(z.astype(got_z.dtype).astype(float))
        )
    dx, dweight, dbias, *_ = _core.backward(ctx, lay_out(batch.dz, layout))
    dx = np.moveaxis(dx, axis, 1).astype(working_type(dtype))
    most = 1e-5 if dtype in ("float32", "float64") else 8 * EPS[dtype]
    for c in range(6):
        assert relative_l2(dx[:, c], want.dx[:, c]) <= most, c
    np.testing.assert_allclose(dbias, want.dbias, rtol=10 * most, atol=10 * most)
    if dtype == "float16":
        np.testing.assert_allclose(dweight, want.dweight, rtol=1e-2, atol=1)


@pytest.mark.parametrize("strategy", INPLACE)
def test_normalize_with_statistics_of_other_batches(strategy):
    """This batch is part of a larger one with a far smaller standard deviation: z overflows float16."""
    batch, (mean, var) = far_from_given_statistics("float16")
    statistics = mean.astype(np.float64), var.astype(np.float64), 1e6
    batch = without_kinks(batch, "float16", "xhat", "leaky_relu", 0.5, statistics=statistics[:2])
    options = {"activation": "leaky_relu", "activation_param": 0.5}
    _, want_ctx = reference.normalize(
        batch.x, **as_merged(statistics), weight=batch.weight, bias=batch.bias, strategy="standard", **options
    )
    _, ctx = functional.normalize(
        batch.x.copy(),
        **as_merged(statistics),
        weight=batch.weight,
        bias=batch.bias,
        strategy=strategy,
        **options,
    )
    want_sums, sums = reference.backward_reduce(want_ctx, batch.dz), functional.backward_reduce(ctx, batch.dz)
    for want, got in zip(want_sums, sums, strict=True):
        np.testing.assert_allclose(got, want, rtol=4e-3, atol=0.5)
    want = reference.backward_apply(want_ctx, batch.dz, **as_sums(want_sums), count=1e6)
    assert_channels(
        functional.backward_apply(ctx, batch.dz, **as_sums(sums), count=1e6), want, "float16", 4e-3
    )


# ---- intermediate results that overflow float32 ------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("size", "dz_size"),
    [(1e-30, 1e30), (1e-20, 1e-28), (1e-5, 1e-36), (1e10, 1e32), (1e15, 1e27), (1e20, 1e22), (1e30, 1e10)],
)
@each(layout=LAYOUTS)
def test_weights_and_gradients_of_all_sizes(size, dz_size, strategy, layout):
    """weight * xhat * dz overflows float32, dx and dweight do not."""
    batch = with_parameters("float32", np.array([size, -size, 3 * size]), [0, size / 10, size])
    x, dz = batch.x.astype(np.float64) * 1e8, batch.dz.astype(np.float64) * dz_size
    batch = batch._replace(x=x.astype(np.float32), dz=dz.astype(np.float32))
    batch = without_kinks(batch, "float32", reference.KEEPS[strategy])
    z, want = expected(batch)
    got = run(batch, layout, strategy=strategy)
    assert_channels(got.z, z, "float32", 1e-6)
    assert_channels(got.dx, want.dx, "float32", 1e-5)
    scale = np.abs(batch.dz.astype(np.float64)).sum((0, 2, 3))
    assert (np.abs(got.dweight - want.dweight) <= 1e-5 * scale).all()
    assert (np.abs(got.dbias - want.dbias) <= 1e-5 * scale).all()


@pytest.mark.parametrize("isa", ISAS)
@each(layout=LAYOUTS, strategy=STRATEGIES)
def test_x_at_the_ends_of_float32(isa, strategy, layout):
    """Squares, and differences from the mean, overflow or underflow."""
    rng = np.random.default_rng(4)
    x = rng.choice([-3.3e38, 3.3e38], (6, 6, 5, 7))
    x[:, 1] = 3.3e38
    x[0, 1] = -3.3e38
    x[:, 2] = rng.normal(size=(6, 5, 7)) * 1e37
    x[:, 3] = rng.normal(size=(6, 5, 7)) * 1e-30
    x[:, 4] = rng.normal(size=(6, 5, 7)) * 1e-22 + 1e-21
    x[:, 5] = rng.normal(size=(6, 5, 7))
    dz = rng.normal(size=x.shape) * np.reshape([1e30, 1e30, 1e30, 1e-20, 1, 1], (1, 6, 1, 1))
    weight, bias = np.array([1, -1e-3, 2, 1, 0.5, 1]), np.array([0.5, 0, -1, 0.1, 0.2, 0])
    batch = Batch(*(array.astype(np.float32) for array in (x, dz, weight, bias)))
    batch = without_kinks(batch, "float32", reference.KEEPS[strategy], eps=1e-80)
    z, want = expected(batch, eps=1e-80)
    got = run(batch, layout, isa=isa, strategy=strategy, eps=1e-80)
    assert_channels(got.z, z, "float32", 1e-6)
    assert_channels(got.dx, want.dx, "float32", 1e-5)
    np.testing.assert_allclose(got.dbias, want.dbias, rtol=1e-4)
    scale = np.abs(batch.dz.astype(np.float64)).sum((0, 2, 3))
    assert (np.abs(got.dweight - want.dweight) <= 1e-5 * scale).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_statistics_of_tiny_and_huge_numbers(layout):
    x = random_batch((4, 5, 6, 7), "float64", mean=0.0).x * np.reshape(
        [1e-38, 1e-30, 1e-19, 1e19, 1e37], (5, 1, 1)
    )
    x = x.astype(np.float32)
    array, axis = LAYOUTS[layout](x)
    mean, var, _ = functional.statistics(array, channel_axis=axis)
    want_mean, want_var, _ = reference.statistics(x)
    np.testing.assert_allclose(mean, want_mean, rtol=1e-4)
    np.testing.assert_allclose(var, want_var, rtol=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_constant_channels_with_a_tiny_eps(strategy):
    """inv_std = 1e40 is multiplied by x - mean = 0."""
    batch = with_parameters("float32", [1, 0, -1], [1, 2, -3])
    batch = batch._replace(x=np.zeros_like(batch.x) + 7)
    z = run(batch, strategy=strategy, eps=1e-80).z
    np.testing.assert_allclose(
        z, np.broadcast_to(np.reshape([1, 2, -0.03], (1, 3, 1, 1)), z.shape), rtol=1e-6
    )


# ---- forward, recompute and backward use the same rounded values -------------------------------------------


@sampled(
    strategy=["checkpoint", "checkpoint_xhat", "pre_activation"],
    activation=ACTIVATIONS,
    dtype=DTYPES,
    layout=LAYOUTS,
    isa=ISAS,
)
def test_recompute_gives_the_same_bits(strategy, activation, dtype, layout, isa):
    """Also from xhat in a half type: the forward computes z from the rounded xhat that it stores."""
    batch = random_batch((5, 19, 7, 5), dtype)
    parameters = batch.weight.copy(), batch.bias.copy()
    parameters[0][:3] = 0, 1e-39, 1e30
    x, axis = LAYOUTS[layout](batch.x)
    z, ctx = _core.forward(
        x,
        **as_parameters(parameters),
        activation=activation,
        activation_param=0.3,
        strategy=strategy,
        channel_axis=axis,
        isa=isa,
        slope=batch.slope_of(activation),
    )
    again = ctx.recompute(isa=isa)
    assert again is not z
    assert again.tobytes() == z.tobytes()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("strategy", INPLACE)
def test_guarded_channels_use_the_sign_of_z(strategy, dtype, layout):
    """Checked by dx of each element in evaluation, which is dz * slope * weight * inv_std."""
    weight, bias = np.array([1, -1, 3, 0.5]), np.array([5.0, 5.0, -13.0, 2.5])
    each = (4, 1, 1)
    y = np.random.default_rng(5).normal(size=(8, 4, 33, 33)) * 0.01
    x = 0.3 + (y - bias.reshape(each)) / weight.reshape(each) * np.sqrt(1.7)
    x, axis = LAYOUTS[layout](x.astype(dtype_of(dtype)))
    parameter = parameter_dtype(dtype)
    weight, bias = weight.astype(parameter), bias.astype(parameter)
    given = np.full(4, 0.3, parameter), np.full(4, 1.7, parameter)
    z, ctx = _core.forward(
        x,
        weight=weight,
        bias=bias,
        **as_running(given),
        training=False,
        activation_param=0.25,
        strategy=strategy,
        channel_axis=axis,
    )
    assert "guarded_xhat" in list(ctx.saved)
    z = np.moveaxis(z, axis, 1).astype(np.float64)
    dx, *_ = _core.backward(ctx, lay_out(np.ones(z.shape, dtype_of(dtype)), layout))
    steep = np.moveaxis(dx, axis, 1).astype(np.float64) / weight.reshape(each) > 0.5
    assert 0.1 < steep.mean() < 0.9
    assert np.array_equal(steep[z != 0], z[z != 0] > 0)


# ---- channels are independent ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 3, 7, 9), (6, 40, 4, 4), (700, 12), (3, 5, 70, 70)], ids=str)
@each(layout=LAYOUTS)
def test_a_guarded_channel_does_not_change_its_neighbours(shape, dtype, layout):
    """z, dx and the sums of the other channels are bitwise equal."""
    batch = random_batch(shape, dtype)
    weight, bias = np.abs(batch.weight) + 0.5, np.clip(batch.bias, -0.5, 0.5)
    guarded = weight.copy()
    guarded[1] = 0
    results = [
        run(batch._replace(weight=each, bias=bias), layout, activation="elu", activation_param=1.0)
        for each in (weight, guarded)
    ]
    others = np.arange(shape[1]) != 1
    for name in ("z", "dx"):
        one, other = (np.asarray(getattr(result, name)[:, others], np.float64) for result in results)
        assert np.array_equal(one, other), name
    for name in ("dweight", "dbias"):
        one, other = (getattr(result, name)[others] for result in results)
        assert np.array_equal(one, other), name
