"""Regression tests: faults found by fuzzing and review, each reduced to a small case."""

import batches
import numpy as np
import pytest
from cases import each
from keywords import as_parameters, as_running, as_sums

from inplace_abn import _core, functional, reference

pytestmark = [pytest.mark.arithmetic, pytest.mark.essential]


@pytest.mark.parametrize("positions", [300, 1500, 6272, 20000])
@pytest.mark.parametrize("channels", [65, 100, 128])
def test_joined_rows_of_channels_last_are_never_cut_between_channels(channels, positions):
    """For any cache size. Rows that join several positions were split into strips of channels."""
    x = np.random.default_rng(0).normal(size=(1, positions, channels)).astype(np.float32)
    mean, var, _ = _core.statistics(x, channel_axis=-1, threads=2)
    np.testing.assert_allclose(mean, x.mean((0, 1), dtype=np.float64), atol=2e-6)
    np.testing.assert_allclose(var, x.var((0, 1), dtype=np.float64), rtol=1e-5)


@pytest.mark.parametrize(("shape", "channel_axis"), [((1, 40000, 64), -1), ((1200, 30, 49), 1)])
def test_recomputed_sums_of_one_channel_do_not_change_the_others(shape, channel_axis):
    """The first elements are not typical of their channel, and each thread finishes other channels."""
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    x[0, :8, 48] = 1e4
    results = {
        functional.forward(x.copy(), channel_axis=channel_axis, threads=threads)[0].tobytes()
        for threads in (1, 2, 3, 7, 16)
    }
    assert len(results) == 1


def test_nan_does_not_propagate_to_columns_beyond_a_strip():
    x = np.random.default_rng(0).normal(size=(11000, 82, 25)).astype(np.float32)
    x[0, 40:80] = np.nan
    z, ctx = functional.forward(
        x, weight=np.ones(82, np.float32), bias=np.zeros(82, np.float32), strategy="standard"
    )
    dweight = functional.backward(ctx, np.ones_like(x)).dweight
    assert np.isnan(dweight).nonzero()[0].tolist() == list(range(40, 80))
    assert z is not x


@pytest.mark.parametrize("isa", _core.info()["isa_usable"])
def test_a_constant_channel_of_a_large_value_has_finite_gradients(isa):
    x = np.full((3, 2, 5), 2e36, np.float32)
    _, ctx = _core.forward(
        x, weight=np.ones(2, np.float32), bias=np.zeros(2, np.float32), strategy="standard", isa=isa
    )
    dx, dweight, *_ = _core.backward(ctx, np.ones_like(x), isa=isa)
    assert np.isfinite(dx).all()
    assert not dweight.any()


def test_backward_apply_in_evaluation_does_not_need_xhat():
    """As in `backward`: dx is dz * weight * inv_std, however far x is from the mean."""
    x, mean, var = np.ones((4, 1), np.float32), np.full(1, 1e30, np.float32), np.zeros(1, np.float32)
    _, ctx = functional.forward(
        x, running_mean=mean, running_var=var, training=False, eps=1e-30, activation="identity"
    )
    dx = functional.backward_apply(ctx, np.ones_like(x), sum_dy=np.zeros(1), sum_dy_xhat=np.zeros(1), count=4)
    np.testing.assert_allclose(dx, 1e15, rtol=1e-6)


@pytest.mark.parametrize("strategy", ["standard", "inplace_1", "inplace_2"])
def test_constants_of_dx_that_underflow_in_float32(strategy):
    """xhat / weight * sums underflows, weight * xhat is large, and their product is in range."""
    rng = np.random.default_rng(0)
    x = rng.choice([-3e38, 3e38], (200, 1)).astype(np.float32)
    dz, weight = rng.normal(size=x.shape).astype(np.float32) / 1000, np.full(1, 1e6, np.float32)
    options = {"activation": "identity"}
    want = reference.backward(reference.forward(x, weight=weight, strategy="standard", **options)[1], dz).dx
    _, ctx = functional.forward(x, weight=weight, strategy=strategy, **options)
    dx = functional.backward(ctx, dz).dx
    assert np.abs(dx - want).max() < 1e-6 * np.abs(want).max()


@pytest.mark.parametrize("isa", _core.info()["isa_usable"])
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "mish"])
def test_a_y_that_overflows_gives_no_nan(activation, isa):
    """Infinity times a gate of zero was NaN. For y = -infinity, z is 0."""
    zero, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    x, weight = np.array([[-1e30], [1.0]], np.float32), np.full(1, 1e9, np.float32)
    options = {"training": False, "activation": activation, "strategy": "standard", "isa": isa}
    z, _ = _core.forward(x, weight=weight, running_mean=zero, running_var=one, **options)
    assert z[0, 0] == 0
    assert z[1, 0] > 9e8


@pytest.mark.parametrize("isa", _core.info()["isa_usable"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("activation", ["leaky_relu", "elu", "gelu"])
@each(channel_axis=[1, -1], strategy=["checkpoint_xhat", "pre_activation", "inplace_1", "inplace_2"])
def test_an_xhat_that_overflows_the_storage_type(strategy, activation, dtype, channel_axis, isa):
    """Given statistics far from the batch: xhat = infinity was kept, and infinity * weight 0 is NaN."""
    size = 1e4 if dtype == "float16" else 1e30
    x = np.array([[size, 1, size, 1], [1, -size, 3, 2], [-size, 2, 1, size]] * 3, dtype)
    weight, bias = np.array([0, 3e-10 / size, 0, 1], np.float32), np.array([1, 0, -1, 0], np.float32)
    given = np.zeros(4, np.float32), np.array([1e-30, 1e-20, 1, 1e9], np.float32)
    x, residual, dz = (a.reshape(3, 3, 4) for a in (x, x[::-1] / np.array(size, dtype), np.ones_like(x)))
    x, residual, dz = (np.ascontiguousarray(np.moveaxis(a, -1, channel_axis)) for a in (x, residual, dz))
    options = {"training": False, "eps": 1e-32, "activation": activation, "channel_axis": channel_axis}
    want_z, want = reference.forward(
        x, weight=weight, bias=bias, **as_running(given), residual=residual, strategy="standard", **options
    )
    want = reference.backward(want, dz)
    z, ctx = _core.forward(
        x,
        weight=weight,
        bias=bias,
        **as_running(given),
        residual=residual,
        strategy=strategy,
        isa=isa,
        **options,
    )
    close = {"rtol": 2e-3 if dtype == "float16" else 1e-5, "atol": 1e-3 if dtype == "float16" else 1e-6}
    np.testing.assert_allclose(z, want_z.astype(dtype), **close)
    assert "escape_xhat" in ctx.saved
    if strategy == "checkpoint_xhat":
        assert ctx.recompute(isa=isa).tobytes() == z.tobytes()
    dx, dweight, dbias, _, dresidual = _core.backward(ctx, dz, isa=isa)
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(dx, want.dx.astype(dtype), **close)
        np.testing.assert_allclose(dweight, want.dweight.astype(np.float32), rtol=1e-3)
    np.testing.assert_allclose(dbias, want.dbias, **close)
    np.testing.assert_allclose(dresidual, want.dresidual, **close)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_z_that_overflows_by_a_steep_slope(dtype):
    """Given statistics far from the batch: y is 1e30, z is not, and infinity times a dz of 0 was NaN."""
    x, mean = np.ones((2, 1), batches.dtype_of(dtype)), np.full(1, 1e30, np.float32)
    options = {"training": False, "activation": "prelu", "slope": np.full(1, 1e30, np.float32)}
    _, ctx = functional.forward(x, running_mean=mean, running_var=np.ones(1, np.float32), **options)
    assert functional.backward(ctx, np.zeros_like(x)).dslope == 0


@pytest.mark.parametrize("activation", ["sigmoid", "silu", "elu"])
@pytest.mark.parametrize("weight", [0, 2e-41])
def test_backward_apply_of_an_xhat_that_overflows_float(weight, activation):
    x, dz = np.array([[1e36], [1.0], [-1.0]], np.float32), np.ones((3, 1), np.float32)
    residual = np.full((3, 1), 0.25, np.float32)
    given = np.full(1, weight, np.float32), None, np.zeros(1, np.float32), np.full(1, 1e-10, np.float32)
    options = {"training": False, "eps": 1e-12, "activation": activation, "residual": residual}
    want = reference.backward(reference.forward(x, **as_parameters(given), **options)[1], dz)
    _, ctx = functional.forward(x, **as_parameters(given), strategy="standard", **options)
    sums, dresidual = functional.backward_reduce(ctx, dz), np.zeros_like(x)
    dx = functional.backward_apply(ctx, dz, **as_sums(sums), count=3, residual_grad=dresidual)
    np.testing.assert_allclose(dresidual, want.dresidual, rtol=1e-5)
    np.testing.assert_allclose(dx, want.dx, rtol=1e-5, atol=1e-44)


@pytest.mark.parametrize("activation", ["leaky_relu", "silu", "tanh"])
@pytest.mark.parametrize("strategy", ["standard", "checkpoint_xhat", "pre_activation", "inplace"])
def test_backward_apply_in_evaluation_of_an_xhat_that_overflows_float(strategy, activation):
    """With weight 0 it gave NaN, which only the sums of dy reveal."""
    x, dz = np.array([[3e38], [1]], np.float32), np.full((2, 1), 0.1, np.float32)
    given = np.zeros(1, np.float32), None, np.zeros(1, np.float32), np.full(1, 0.1, np.float32)
    options = {"training": False, "activation": activation, "residual": np.full_like(x, 5)}
    want = reference.backward(
        reference.forward(x, **as_parameters(given), strategy="standard", **options)[1], dz
    )
    _, ctx = functional.forward(x.copy(), **as_parameters(given), strategy=strategy, **options)
    sums, dresidual = functional.backward_reduce(ctx, dz), np.zeros_like(x)
    assert not functional.backward_apply(ctx, dz, **as_sums(sums), count=2, residual_grad=dresidual).any()
    np.testing.assert_allclose(dresidual, want.dresidual, rtol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("strategy", ["standard", "checkpoint_xhat", "pre_activation", "inplace"])
@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"activation": "selu"}, 3e38),
        ({"activation": "prelu", "slope": np.full(1, 100, np.float32)}, 1e38),
        ({"activation": "leaky_relu", "activation_param": 1e3}, 1e38),
        ({"activation": "elu", "activation_param": 30}, 1e38),
    ],
    ids=["selu", "prelu", "leaky_relu", "elu"],
)
def test_backward_apply_of_overflowing_dy_that_cancel(options, size, strategy, training):
    x, weight = np.array([[-1], [-1], [3], [-1]], np.float32), np.full(1, 1e-3, np.float32)
    dz = np.array([[size], [-size], [0], [0]], np.float32)
    given = weight, None, np.zeros(1, np.float32), np.ones(1, np.float32)
    want_ctx = reference.forward(
        x, **as_parameters(given), strategy="standard", training=training, **options
    )[1]
    want = reference.backward(want_ctx, dz).dx
    assert 1e35 < np.abs(want).max() < 3e38
    _, ctx = functional.forward(
        x.copy(), **as_parameters(given), strategy=strategy, training=training, **options
    )
    dx = functional.backward_apply(ctx, dz, **as_sums(functional.backward_reduce(ctx, dz)), count=4)
    np.testing.assert_allclose(dx, want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("strategy", ["inplace_1", "inplace_2"])
def test_a_slope_whose_inverse_is_infinite(strategy):
    x, dz = np.array([[-1, 2, -0.5, 0.7, -1]]).T, np.arange(1.0, 6)[:, None]
    given, options = (np.full(1, 1e6), None), {"activation": "leaky_relu", "activation_param": 1e-310}
    want = reference.backward(
        reference.forward(x, **as_parameters(given), strategy="standard", **options)[1], dz
    ).dx
    _, ctx = functional.forward(x.copy(), **as_parameters(given), strategy=strategy, **options)
    dx = functional.backward_apply(ctx, dz, **as_sums(functional.backward_reduce(ctx, dz)), count=5)
    np.testing.assert_allclose(dx, want, rtol=1e-12)


@pytest.mark.parametrize("strategy", ["inplace_1", "inplace_2"])
@pytest.mark.parametrize(
    ("activation", "dtype", "least"), [("elu", "float16", -15), ("selu", "float32", 3.3e38)]
)
def test_a_z_that_overflows_by_the_slope_of_its_activation(activation, dtype, least, strategy):
    """With given statistics: elu in float16 with a large alpha, selu in float32 near the largest float."""
    x = np.array([[least], [1], [0], [0.5]], dtype)
    given = np.full(1, 0.1 if dtype == "float16" else 1, np.float32), None, np.zeros(1, np.float32)
    given += (np.ones(1, np.float32),)
    options = {"training": False, "activation": activation, "activation_param": 1e5}
    dz = np.full_like(x, 1e-3 if dtype == "float32" else 1)
    want = reference.backward(
        reference.forward(x, **as_parameters(given), strategy="standard", **options)[1], dz
    )
    _, ctx = functional.forward(x.copy(), **as_parameters(given), strategy=strategy, **options)
    got = functional.backward(ctx, dz)
    np.testing.assert_allclose(got.dx.astype(float), want.dx, rtol=2e-3)
    np.testing.assert_allclose(got.dweight, want.dweight, rtol=2e-3)


@pytest.mark.parametrize("isa", _core.info()["isa_usable"])
@pytest.mark.parametrize(("alpha", "weight"), [(1e9, 1e-36), (1e20, 1e-24), (1e36, 1e-10)])
@pytest.mark.parametrize(
    "strategy", ["standard", "checkpoint_xhat", "pre_activation", "inplace_1", "inplace_2"]
)
def test_celu_where_y_over_alpha_is_too_small_for_a_float(strategy, alpha, weight, isa):
    x, dz = np.array([[-1], [2], [-0.5], [0.7]], np.float32), np.arange(1, 5, dtype=np.float32)[:, None]
    given, options = (np.full(1, weight, np.float32), None), {"activation": "celu", "activation_param": alpha}
    want_z, want_ctx = reference.forward(x, **as_parameters(given), strategy="standard", **options)
    want = reference.backward(want_ctx, dz)
    z, ctx = _core.forward(x.copy(), **as_parameters(given), strategy=strategy, isa=isa, **options)
    np.testing.assert_allclose(z, want_z, rtol=1e-6)
    dx, dweight = _core.backward(ctx, dz, isa=isa)[:2]
    np.testing.assert_allclose(dx, want.dx, rtol=1e-5)
    np.testing.assert_allclose(dweight, want.dweight, rtol=1e-5)


@pytest.mark.parametrize("strategy", ["standard", "inplace_1", "inplace_2"])
def test_tiny_gradients_beside_tiny_weights(strategy):
    """dy * (weight * xhat) had fewer digits than dy * xhat."""
    x = np.array([[-3e-6], [1e-6], [2e-6], [5e-7]], np.float32)
    dz = np.array([[1.5e-38], [0], [0], [0]], np.float32)
    given, options = (np.full(1, 1e-6, np.float32), None), {"activation": "identity", "eps": 1e-30}
    want = reference.backward(
        reference.forward(x, **as_parameters(given), strategy="standard", **options)[1], dz
    )
    got = functional.backward(
        functional.forward(x.copy(), **as_parameters(given), strategy=strategy, **options)[1], dz
    )
    np.testing.assert_allclose(got.dweight, want.dweight, rtol=1e-6)


@pytest.mark.parametrize("least", [1e20, -3e20], ids=["sum beyond float", "sum of zero"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("strategy", ["standard", "checkpoint_xhat", "pre_activation", "inplace"])
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=batches.without_ml_dtypes)])
def test_backward_apply_of_a_dy_that_overflows_float(dtype, strategy, training, least):
    """dz * a steep slope overflows float; a small inv_std brings dx back into range."""
    x = np.array([[-2], [-1], [1.5]], batches.dtype_of(dtype))
    dz = np.array([[3e20], [least], [1e20]], x.dtype)
    slope, given = np.array([1e25], np.float32), [np.zeros(1, np.float32), np.ones(1, np.float32)]
    options = {"activation": "prelu", "eps": 1e30, "slope": slope, "training": training}
    want_ctx = reference.forward(x, **as_running(given), strategy="standard", **options)[1]
    want = reference.backward(want_ctx, dz).dx
    _, ctx = functional.forward(x, **as_running(given), strategy=strategy, **options)
    dx = functional.backward_apply(ctx, dz, **as_sums(functional.backward_reduce(ctx, dz)), count=3)
    assert batches.relative_l2(dx.astype(float), want) < (1e-5 if dtype == "float32" else 1e-2)


@pytest.mark.parametrize(
    "strategy", ["standard", "checkpoint_xhat", "pre_activation", "inplace_1", "inplace_2"]
)
@pytest.mark.parametrize(("slope", "isa"), [(s, isa) for s in (2e3, 1) for isa in _core.info()["isa_usable"]])
def test_overflowing_terms_of_dx_that_cancel(slope, isa, strategy):
    """A weight of 1e25 times dy overflows float; dy equals xhat except in one element, so dx is in range."""
    x, weight = np.linspace(-0.01, 0.01, 400, dtype=np.float32)[:, None], np.full(1, 1e25, np.float32)
    x[0] = 1
    options = {"activation": "prelu", "slope": np.full(1, slope, np.float32), "training": True}
    want_ctx = reference.forward(x, weight=weight, strategy="standard", **options)[1]
    normal = (x.astype(float) - x.mean(dtype=float)) / np.sqrt(x.var(dtype=float) + 1e-5)
    size = 1e38 / 1e25 * np.sqrt(x.var(dtype=float) + 1e-5)
    dz = normal * size
    dz[1] += size
    dz = (dz / np.where(normal < 0, slope, 1)).astype(np.float32)
    want = reference.backward(want_ctx, dz).dx
    assert 0.9e38 < abs(want[1, 0]) < 1.1e38
    for whole in True, False:
        _, ctx = _core.forward(x.copy(), weight=weight, strategy=strategy, isa=isa, **options)
        if whole:
            dx = _core.backward(ctx, dz, isa=isa)[0]
        else:
            dx = _core.backward_apply(
                ctx, dz, **as_sums(_core.backward_reduce(ctx, dz, isa=isa)[:2]), count=400, isa=isa
            )
        np.testing.assert_allclose(dx, want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("isa", _core.info()["isa_usable"])
@pytest.mark.parametrize("strategy", ["inplace_1", "inplace_2"])
@pytest.mark.parametrize("activation", ["leaky_relu", "prelu", "elu", "celu", "selu"])
@pytest.mark.parametrize("way", ["tile", "pieces", "double"])
def test_the_slope_where_z_is_rounded_to_zero(way, activation, strategy, isa):
    """y just below 0 gives z = -0.0 in float16; y = 0, -0 and y just above 0 give z = 0.0."""
    x = np.array([[-1e-7, 1e-7, 0, -0.0, 0, -2, 2]], np.float16) * np.ones((9, 1), np.float16)
    weight, bias = np.full(7, 0.125, np.float32), np.full(7, -0.0, np.float32)
    weight[4] *= -1
    options = {"activation": activation, "activation_param": 0.04, "training": False}
    options["residual"] = np.full_like(x, -0.0) if way == "pieces" else None
    options["slope"] = np.full(7, 0.04, np.float32) if activation == "prelu" else None
    options["eps"] = 1e78 if way == "double" else 1e-5
    given = weight, bias, np.zeros(7, np.float32), np.ones(7, np.float32)
    want = reference.backward(
        reference.forward(x, **as_parameters(given), strategy="standard", **options)[1], np.ones_like(x)
    )
    z, ctx = _core.forward(x.copy(), **as_parameters(given), strategy=strategy, isa=isa, **options)
    assert (z[:, :5] == 0).all()
    dx, _, dbias = _core.backward(ctx, np.ones_like(x), isa=isa)[:3]
    np.testing.assert_allclose(dbias, want.dbias, rtol=2e-3)
    np.testing.assert_allclose(dx.astype(float), want.dx, rtol=2e-3, atol=1e-30)


@pytest.mark.parametrize("activation", ["leaky_relu", "silu"])
def test_recompute_restores_the_sign_of_zero(activation):
    """For a bias of -0.0 and xhat = 0 the forward dropped the sign of y, and recompute did not."""
    x, weight, bias = np.zeros((3, 1), np.float32), -np.ones(1, np.float32), np.full(1, -0.0, np.float32)
    z, ctx = functional.forward(
        x, weight=weight, bias=bias, activation=activation, strategy="checkpoint_xhat"
    )
    assert ctx.recompute().tobytes() == z.tobytes()


@batches.without_ml_dtypes
@pytest.mark.parametrize("isa", _core.info()["isa_usable"])
@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0xFFFFFFFF, 0x7FBFFFFF])
@pytest.mark.parametrize("activation", ["silu", "celu"])
def test_any_nan_beside_an_escaped_bfloat16(activation, bits, isa):
    """Rounding a NaN to bfloat16 carried its low bits into the exponent: the result was 0."""
    x = np.zeros((64, 2), batches.dtype_of("bfloat16"))
    residual, dz = x.copy(), np.ones_like(x)
    residual[5] = 1000
    var = np.array([bits, 0x3F800000], np.uint32).view(np.float32)
    given = None, None, np.zeros(2, np.float32), var
    _, ctx = _core.forward(
        x, **as_parameters(given), training=False, activation=activation, residual=residual, isa=isa
    )
    dx, _, _, _, dresidual = _core.backward(ctx, dz, isa=isa)
    assert np.isnan(dx[5, 0].astype(float))
    assert np.isnan(dresidual[5, 0].astype(float))
