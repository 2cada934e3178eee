"""A residual added before the activation: z = phi(weight * xhat + bias + residual), and its gradient."""

from functools import cache

import numpy as np
import pytest
from batches import (
    ACTIVATIONS,
    DTYPES,
    INVERTIBLE,
    ISAS,
    LAYOUTS,
    PARAM,
    SCHEMES,
    STRATEGIES,
    THOROUGH,
    forward,
    lay_out,
    parameter_dtype,
    random_batch,
    relative_l2,
    run,
    sampled,
    with_residual,
)
from bounds import (
    EPS,
    MOST_BESIDE,
    assert_backward,
    assert_forward,
    assert_within,
    expected,
    without_kinks,
    working_type,
)
from cases import each
from finite_differences import numerical_gradient
from keywords import as_sums

from inplace_abn import functional, reference

INPLACE = ["inplace_1", "inplace_2"]


def options_of(activation, **more):
    return {"activation": activation, "activation_param": PARAM[activation], **more}


def gradients(batch, dtype, activation, **options):
    """Return z and the gradients of the reference."""
    z, ctx = reference.forward(
        batch.x, weight=batch.weight, bias=batch.bias, residual=batch.residual,
        slope=batch.slope_of(activation),
        strategy="standard", dtype=working_type(dtype), **options_of(activation), **options,
    )  # fmt: skip
    return z, reference.backward(ctx, batch.dz)


def saved(ctx):
    return dict(ctx.saved)


@sampled(isa=ISAS, layout=LAYOUTS, dtype=DTYPES, activation=ACTIVATIONS, strategy=STRATEGIES)
def test_results_equal_the_reference(isa, layout, dtype, activation, strategy):
    want = expected_with_residual(dtype, activation, reference.KEEPS[strategy])
    got = run(want.batch, layout, isa=isa, strategy=strategy, **options_of(activation))
    assert got.dresidual.dtype == want.batch.x.dtype
    assert_forward(got, want)
    assert_backward(got, want)


@cache
def expected_with_residual(dtype, activation, keeps):
    """Expected results of a batch without kinks, computed once for all layouts and instruction sets."""
    batch = without_kinks(with_residual(random_batch((3, 19, 5, 7), dtype)), dtype, keeps, activation)
    return expected(batch, dtype, keeps, activation)


@pytest.mark.parametrize("activation", ["identity", "prelu", "elu", "silu", "tanh"])
@pytest.mark.parametrize("strategy", STRATEGIES)
@each(training=[True, False], layout=["first", "last"])
def test_gradients_equal_finite_differences(strategy, activation, layout, training):
    batch = with_residual(random_batch((3, 4, 2, 2), "float64", seed=5))
    x, weight, bias, residual = (a.copy() for a in (batch.x, batch.weight, batch.bias, batch.residual))
    running = {"running_mean": bias / 2 + 1, "running_var": weight**2} if not training else {}
    dz = lay_out(batch.dz, layout)

    def both():
        changed = batch._replace(x=x, weight=weight, bias=bias, residual=residual)
        return forward(
            changed, layout, strategy=strategy, training=training, **running, **options_of(activation)
        )

    got = functional.backward(both()[1], dz)
    pairs = (got.dx, x), (got.dresidual, residual), (got.dweight, weight), (got.dbias, bias)
    for gradient, by in pairs:
        want = numerical_gradient(lambda: (both()[0] * dz).sum(), by)
        gradient = np.moveaxis(gradient, LAYOUTS[layout](x)[1], 1) if by.ndim > 1 else gradient
        np.testing.assert_allclose(gradient, want, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["identity", "leaky_relu", "gelu"])
@each(strategy=STRATEGIES)
def test_evaluation(activation, strategy, dtype):
    keeps = reference.KEEPS[strategy]
    running = [a.astype(parameter_dtype(dtype)) for a in (np.linspace(-1, 2, 17), np.linspace(0.1, 4, 17))]
    batch = with_residual(random_batch((3, 17, 5, 3), dtype))
    batch = without_kinks(batch, dtype, keeps, activation, statistics=running)
    want = expected(batch, dtype, keeps, activation, statistics=running)
    got = run(
        batch, strategy=strategy, training=False, running_mean=running[0], running_var=running[1],
        **options_of(activation),
    )  # fmt: skip
    assert_forward(got, want)
    assert_backward(got, want)


# ---- residuals so large that xhat cannot be recovered from z -----------------------------------------------


def ordinary(dtype, channels=12):
    """Return a residual that is small compared with the weight."""
    batch = with_residual(random_batch((4, channels, 9, 7), dtype, mean=0.0), 0.5)
    weight = np.linspace(1, 2, channels) * np.where(np.arange(channels) % 2, 1, -1)
    return batch._replace(weight=weight.astype(batch.weight.dtype), bias=np.clip(batch.bias, -0.5, 0.5))


def residual_far_larger(dtype, scale, channels=12):
    """Return a batch; its residual is near `scale` in every third channel and in a few elements."""
    batch = ordinary(dtype, channels)
    residual = batch.residual.copy()
    residual[:, 1::3] *= np.array(scale, residual.dtype)
    residual[1, 2::3, 3, 4] = scale
    residual[3, 2::6, 8, 6] = -scale
    return batch._replace(residual=residual)


@sampled(dtype=DTYPES, layout=LAYOUTS, activation=INVERTIBLE, strategy=INPLACE)
def test_a_residual_far_larger_than_y(dtype, layout, activation, strategy):
    """Compared by channel: gradients are about as accurate as those of the standard strategy."""
    keeps = {"standard": "x", strategy: "z"}
    batch = residual_far_larger(dtype, {"float16": 1e4, "float64": 1e9}.get(dtype, 1e6))
    for kept in keeps.values():
        batch = without_kinks(batch, dtype, kept, activation)
    want = gradients(batch, dtype, activation)[1]
    got, standard = (run(batch, layout, strategy=s, **options_of(activation)) for s in (strategy, "standard"))
    loss = 2 * MOST_BESIDE[dtype]  # elements that are recovered from z have as many rounding errors
    for name in ("dx", "dresidual"):
        for c in range(batch.x.shape[1]):
            one, other, right = (getattr(a, name)[:, c].astype(float) for a in (got, standard, want))
            scale = np.sqrt((np.asarray(getattr(want, name), float) ** 2).mean())
            off = [np.sqrt(((a - right) ** 2).mean()) for a in (one, other)]
            assert off[0] <= 4 * off[1] + loss * EPS[dtype] / 2 * scale, (name, c)


@pytest.mark.parametrize("activation", ["identity", "leaky_relu", "silu"])
@pytest.mark.parametrize("dtype", ["float32", "float64", DTYPES[3]])
@each(scale=[1e8, 1e10, 1e20, 1e30], layout=LAYOUTS)
def test_huge_elements_do_not_affect_other_elements(dtype, activation, layout, scale):
    """Their own xhat is kept as escaped elements; that of their neighbours is recovered from z."""
    batch = without_kinks(residual_far_larger(dtype, scale), dtype, "z", activation)
    _, ctx = forward(batch, layout, **options_of(activation))
    kept = saved(ctx)
    assert kept["guarded_xhat"].size == batch.x[:, 1::3].size
    assert 6 <= len(kept["escape_index"]) <= 20
    got, other = (
        run(b, layout, **options_of(activation)) for b in (batch, ordinary(dtype)._replace(dz=batch.dz))
    )
    untouched = [c for c in range(12) if c % 3 == 0]
    assert np.array_equal(got.dx[:, untouched], other.dx[:, untouched])
    want = gradients(batch, dtype, activation)[1]
    for c in range(12):
        most = {"float32": 1e-5, "float64": 1e-10}.get(dtype, 8 * EPS[dtype])
        assert relative_l2(got.dx[:, c], want.dx[:, c]) <= most, c


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["identity", "leaky_relu", "elu", "mish"])
@each(strategy=STRATEGIES)
def test_weights_of_zero(activation, dtype, strategy):
    """Residual branches start so: z is the activated residual, dx is 0, the gradient of the weight is not."""
    keeps = reference.KEEPS[strategy]
    batch = with_residual(random_batch((4, 6, 5, 7), dtype))
    weight = batch.weight.copy()
    weight[::2] = 0
    batch = without_kinks(batch._replace(weight=weight), dtype, keeps, activation)
    want = expected(batch, dtype, keeps, activation)
    got = run(batch, strategy=strategy, **options_of(activation))
    assert_forward(got, want)
    assert_backward(got, want)
    assert not got.dx[:, ::2].any()
    assert (np.abs(got.dweight[::2]) > 0.1).any()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ["identity", "leaky_relu", "prelu"])
def test_a_residual_that_overflows_float16(layout, activation):
    """z is infinite where the sum overflows; gradients, from the escaped elements, are finite."""
    batch = with_residual(random_batch((4, 6, 5, 7), "float16", mean=0.0))
    weight, residual = np.full_like(batch.weight, 20_000), batch.residual.copy()
    residual[1, 3, 2, 2:5] = 65504
    batch = batch._replace(weight=weight, bias=np.full_like(weight, 30_000), residual=residual)
    batch = without_kinks(batch, "float16", "z", activation)
    want_z, want = gradients(batch, "float16", activation)
    got = run(batch, layout, **options_of(activation))
    above = np.abs(want_z) > 65536
    assert above.any()
    assert np.isinf(got.z[above]).all()
    assert np.isfinite(got.dx.astype(float)).all()
    for c in range(6):
        assert relative_l2(got.dx[:, c].astype(float), want.dx[:, c]) <= 8 * EPS["float16"], c


# ---- the gradient of the residual --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["identity", "leaky_relu", "tanh", "silu"])
@each(overwrite=[False, True], layout=LAYOUTS)
def test_the_gradient_is_added_to_residual_grad(activation, layout, dtype, overwrite):
    batch = with_residual(random_batch((3, 17, 5, 7), dtype))
    fresh = run(batch, layout, **options_of(activation))
    elsewhere = lay_out(np.flip(batch.dz).copy(), layout)
    before = elsewhere.astype(float)
    _, ctx = forward(batch, layout, **options_of(activation))
    dz = lay_out(batch.dz, layout)
    got = functional.backward(ctx, dz, overwrite=overwrite, residual_grad=elsewhere)
    assert got.dresidual is elsewhere
    assert (got.dx is dz) == overwrite
    assert np.array_equal(np.moveaxis(got.dx, LAYOUTS[layout](batch.x)[1], 1), fresh.dx)
    # One of the results rounds dy to the storage type before the addition, the other does not.
    axis = LAYOUTS[layout](batch.x)[1]
    want = np.moveaxis(before, axis, 1) + fresh.dresidual.astype(float)
    error = EPS[dtype] * (np.abs(want) + np.abs(fresh.dresidual.astype(float))) + 1e-30
    assert_within(np.moveaxis(elsewhere, axis, 1).astype(float), want, error, "residual_grad")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ["leaky_relu", "prelu", "silu"])
def test_reduce_and_apply_equal_backward(activation, layout):
    batch = without_kinks(with_residual(random_batch((3, 17, 5, 7), "float64")), "float64", "z", activation)
    want = expected(batch, "float64", "z", activation)
    _, ctx = forward(batch, layout, **options_of(activation))
    dz = lay_out(batch.dz, layout)
    sums = functional.backward_reduce(ctx, dz)
    residual_grad = np.zeros_like(dz)
    dx = functional.backward_apply(ctx, dz, **as_sums(sums), count=105, residual_grad=residual_grad)
    axis = LAYOUTS[layout](batch.x)[1]
    assert_within(np.moveaxis(dx, axis, 1), want.dx, want.dx_error, "dx")
    assert_within(np.moveaxis(residual_grad, axis, 1), want.dresidual, want.dresidual_error, "dresidual")


@pytest.mark.parametrize("layout", ["first", "last", "first_sliced"])
@pytest.mark.parametrize(
    ("activation", "strategy"),
    [scheme for scheme in SCHEMES if scheme[0] in (*THOROUGH, "prelu", "gelu_tanh")],
)
def test_results_are_bitwise_equal_for_every_number_of_threads(activation, strategy, layout):
    batch = with_residual(random_batch((3, 67, 17, 19), "float32"), 8.0)
    results = []
    for threads in (1, 2, 7):
        options = options_of(activation, strategy=strategy, threads=threads)
        _, ctx = forward(batch, layout, **options)
        results.append([array.tobytes() for name, array in saved(ctx).items() if name != "residual"])
        results[-1] += [a.tobytes() for a in run(batch, layout, **options) if a is not None]
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_residual_of_zeros_changes_nothing(strategy, layout):
    batch = random_batch((3, 17, 5, 7), "float32")
    for activation in ("leaky_relu", "silu"):
        options = options_of(activation, strategy=strategy)
        plain = run(batch, layout, **options)
        zeros = run(batch._replace(residual=np.zeros_like(batch.x)), layout, **options)
        for name in ("z", "dx", "dweight", "dbias"):
            one, other = getattr(plain, name), getattr(zeros, name)
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5, err_msg=name)


@sampled(activation=ACTIVATIONS, dtype=DTYPES, layout=LAYOUTS)
@each(strategy=["checkpoint", "checkpoint_xhat", "pre_activation"])
def test_recompute_returns_z(activation, dtype, layout, strategy):
    batch = with_residual(random_batch((4, 17, 5), dtype), 3.0)
    z, ctx = forward(batch, layout, strategy=strategy, **options_of(activation))
    assert ctx.recompute().tobytes() == z.tobytes()
