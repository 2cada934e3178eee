"""The specification itself: against definitions and finite differences, the paper's schemes side by side."""

import doctest
import statistics as exact_statistics
from fractions import Fraction

import numpy as np
import pytest
from batches import PARAM
from finite_differences import numerical_gradient

from inplace_abn import reference

ACTIVATIONS = list(reference.ACTIVATIONS)
INVERTIBLE = [name for name, activation in reference.ACTIVATIONS.items() if activation.inverse]
SCHEMES = [
    (activation, strategy)
    for activation in ACTIVATIONS
    for strategy in reference.KEEPS
    if activation in INVERTIBLE or reference.KEEPS[strategy] != "z"
]


def batch(shape, seed, channel_axis=1):
    """x, dz, weight (both signs) and bias, in longdouble."""
    rng = np.random.default_rng(seed)
    channels = shape[channel_axis]
    x, dz = rng.normal(1.5, 2.0, (2, *shape)).astype(np.longdouble)
    weight = rng.uniform(0.3, 2, channels) * rng.choice([-1, 1], channels)
    return x, dz, weight.astype(np.longdouble), rng.normal(0, 1, channels).astype(np.longdouble)


def close(got, want, rtol=1e-13):
    np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * max(1.0, float(np.abs(want).max(initial=0))))


def test_the_docstring_examples_run():
    result = doctest.testmod(reference)
    assert result.attempted > 10
    assert result.failed == 0


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_derivative_is_the_slope_of_phi(name):
    phi, derivative, *_ = reference.ACTIVATIONS[name]
    y = np.array([-5, -2, -0.3, 0.3, 2, 50], np.longdouble)
    slope = numerical_gradient(lambda: phi(y, PARAM[name]).sum(), y)
    np.testing.assert_allclose(derivative(y, PARAM[name]), slope, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", INVERTIBLE)
def test_z_gives_back_y_and_the_derivative(name):
    phi, derivative, inverse, derivative_from_z = reference.ACTIVATIONS[name]
    y = np.array([-5, -2, -0.3, -0.0, 0.0, 0.3, 2, 50], np.longdouble)
    z = phi(y, PARAM[name])
    close(inverse(z, PARAM[name]), y, 1e-15)
    close(derivative_from_z(z, PARAM[name]), derivative(y, PARAM[name]), 1e-15)


@pytest.mark.parametrize(("shape", "channel_axis"), [((4, 3), 1), ((2, 3, 5), 1), ((2, 2, 3, 4), -1)])
def test_statistics_are_those_of_exact_arithmetic(shape, channel_axis):
    x = 100 + np.random.default_rng(0).normal(size=shape)
    mean, var, count = reference.statistics(x, channel_axis=channel_axis)
    for c, channel in enumerate(np.moveaxis(x, channel_axis, 0)):
        values = [Fraction(float(v)) for v in channel.ravel()]
        assert count == len(values)
        assert abs(mean[c] - float(exact_statistics.mean(values))) <= 2 * np.finfo(float).eps * 100
        assert var[c] == pytest.approx(float(exact_statistics.pvariance(values)), rel=1e-12)


def test_forward_written_out_for_one_value():
    x = [[1.0, 0.0], [2.0, 4.0], [6.0, -4.0]]
    z, _ = reference.forward(x, [2.0, 3.0], [-5.0, 1.0], eps=0.5, activation_param=0.25)
    xhat = (2 - 3) / np.sqrt((4 + 1 + 9) / 3 + 0.5)
    assert z[1, 0] == pytest.approx(0.25 * (2 * xhat - 5))
    assert z[1, 1] == pytest.approx(3 * 4 / np.sqrt(32 / 3 + 0.5) + 1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("shape", "channel_axis"), [((3, 2), 1), ((2, 3, 2), 1), ((2, 2, 3), -1)])
@pytest.mark.parametrize(("activation", "strategy"), SCHEMES)
def test_gradients_are_those_of_finite_differences(activation, strategy, shape, channel_axis, training):
    x, dz, weight, bias = batch(shape, 1, channel_axis)
    running_mean, running_var = weight / 2 + 1, weight**2

    def forward():
        return reference.forward(
            x, weight, bias, running_mean, running_var, training=training, activation=activation,
            activation_param=PARAM[activation], strategy=strategy, channel_axis=channel_axis,
            dtype=np.longdouble,
        )  # fmt: skip

    got = reference.backward(forward()[1], dz)
    for gradient, by in zip(got, (x, weight, bias), strict=True):
        np.testing.assert_allclose(
            gradient, numerical_gradient(lambda: (forward()[0] * dz).sum(), by), rtol=1e-9, atol=1e-10
        )


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("activation", INVERTIBLE)
@pytest.mark.parametrize(
    ("scheme", "literally"),
    [("inplace_1", reference.backward_inplace_1), ("inplace_2", reference.backward_inplace_2)],
)
def test_the_schemes_of_the_paper_equal_standard_batch_norm(scheme, literally, activation, affine):
    x, dz, weight, bias = batch((4, 5, 3, 2), 2)
    weight, bias = (weight, bias) if affine else (None, None)
    options = {"activation": activation, "activation_param": PARAM[activation]}
    z, ctx = reference.forward(x, weight, bias, strategy=scheme, **options)
    want_z, standard = reference.forward(x, weight, bias, strategy="standard", **options)
    assert np.array_equal(z, want_z)
    assert ctx.x is None
    assert ctx.xhat is None
    got, want = literally(ctx, dz), reference.backward(standard, dz)
    close(got.dx, want.dx, 1e-11)
    if affine:
        close(got.dweight, want.dweight, 1e-11)
        close(got.dbias, want.dbias, 1e-11)
    else:
        assert got[1:] == want[1:] == (None, None)


@pytest.mark.parametrize("strategy", ["inplace_1", "inplace_2", "inplace"])
def test_what_z_forgets_is_kept_beside_it(strategy):
    """For gamma = 0, gamma far below beta and flat elu, z alone would give 0 / 0, noise and infinity."""
    x, dz, weight, bias = batch((4, 5, 7), 3)
    weight[:3], bias[:3] = (0, 1e-17, 30), (0.5, 3, -20)
    for activation in INVERTIBLE:
        options = {"activation": activation, "activation_param": PARAM[activation]}
        _, ctx = reference.forward(x, weight, bias, strategy=strategy, **options)
        _, standard = reference.forward(x, weight, bias, strategy="standard", **options)
        assert ctx.lost[..., :2].all()
        assert not ctx.lost[..., 3:].any()
        assert ctx.lost[..., 2].any() == (activation == "elu")
        for got, want in zip(reference.backward(ctx, dz), reference.backward(standard, dz), strict=True):
            close(got, want, 1e-11)


@pytest.mark.parametrize("strategy", ["standard", "checkpoint", "checkpoint_xhat"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_recompute_gives_z_back(strategy, activation):
    x, _, weight, bias = batch((4, 5, 7), 4)
    z, ctx = reference.forward(x, weight, bias, activation=activation, strategy=strategy)
    assert np.array_equal(reference.recompute(ctx), z)


def test_parts_of_a_batch_with_merged_statistics_are_the_batch():
    x, dz, weight, bias = batch((9, 3, 4), 5)
    z, ctx = reference.forward(x, weight, bias)
    want = reference.backward(ctx, dz)
    cuts = [slice(0, 2), slice(2, 3), slice(3, 3), slice(3, 9)]
    mean, var, count = reference.merge_statistics(
        *zip(*(reference.statistics(x[cut]) for cut in cuts), strict=True)
    )
    parts = [reference.normalize(x[cut], mean, var, count, weight, bias) for cut in cuts]
    close(np.concatenate([z for z, _ in parts]), z)
    sums = [reference.backward_reduce(part, dz[cut]) for (_, part), cut in zip(parts, cuts, strict=True)]
    sum_dy, sum_dy_xhat = (sum(s) for s in zip(*sums, strict=True))
    close(sum_dy, want.dbias)
    close(sum_dy_xhat, want.dweight)
    for (_, part), cut in zip(parts, cuts, strict=True):
        close(reference.backward_apply(part, dz[cut], sum_dy, sum_dy_xhat, count), want.dx[cut])


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0), (2, 0, 4)])
def test_an_empty_batch_has_an_empty_z_and_gradients_of_zero(shape):
    weight = np.ones(shape[1])
    z, ctx = reference.forward(np.zeros(shape), weight, weight)
    dx, dweight, dbias = reference.backward(ctx, np.zeros(shape))
    assert z.shape == dx.shape == shape
    assert not dweight.any()
    assert not dbias.any()


def test_nan_and_infinity_stay_in_their_channel():
    x, dz, weight, bias = batch((4, 3, 5), 6)
    z, ctx = reference.forward(x, weight, bias)
    dx = reference.backward(ctx, dz).dx
    x[1, 0, 2], x[3, 2, 0] = np.nan, np.inf
    spoiled_z, ctx = reference.forward(x, weight, bias)
    spoiled_dx = reference.backward(ctx, dz).dx
    assert np.isnan(spoiled_z[:, [0, 2]]).all()
    assert np.isnan(spoiled_dx[:, [0, 2]]).all()
    assert np.array_equal(spoiled_z[:, 1], z[:, 1])
    assert np.array_equal(spoiled_dx[:, 1], dx[:, 1])


def test_running_statistics_and_evaluation():
    x, dz, weight, bias = (a.astype(float) for a in batch((4, 3, 5), 7))
    mean, var, count = reference.statistics(x)
    close(var * count / (count - 1), x.var(axis=(0, 2), ddof=1))
    for momentum in (0, 0.3, 1):
        running = reference.update_running(weight, bias, mean, var, count, momentum)
        close(running[0], (1 - momentum) * weight + momentum * mean)
        close(running[1], (1 - momentum) * bias + momentum * x.var(axis=(0, 2), ddof=1))
    z, ctx = reference.forward(x, weight, bias, mean, var, training=False)
    close(z, reference.forward(x, weight, bias)[0])
    slope = np.where(z >= 0, 1, 0.01)
    close(reference.backward(ctx, dz).dx, dz * slope * (ctx.weight * ctx.inv_std)[:, None])


def test_arguments_are_left_alone_and_contexts_share_nothing():
    x, dz, weight, bias = (a.astype(float) for a in batch((4, 3, 5), 8))
    for strategy in reference.KEEPS:
        before = [a.copy() for a in (x, dz, weight, bias)]
        z, ctx = reference.forward(x, weight, bias, strategy=strategy, activation="identity")
        want = reference.backward(ctx, dz)
        for now, then in zip((x, dz, weight, bias), before, strict=True):
            assert np.array_equal(now, then)
        z[...] = 7
        x += 1
        weight *= 2
        for got, first in zip(reference.backward(ctx, dz), want, strict=True):
            assert np.array_equal(got, first)


@pytest.mark.parametrize("dtype", [np.float64, np.longdouble])
def test_results_have_the_type_that_was_computed_in(dtype):
    x, dz, weight, bias = (a.astype(np.float16) for a in batch((4, 3, 5), 9))
    z, ctx = reference.forward(x, weight, bias, dtype=dtype)
    assert {a.dtype for a in (z, *reference.backward(ctx, dz))} == {np.dtype(dtype)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": np.ones((1, 3))}, "more than 1 value per channel"),
        ({"training": False}, "running_mean"),
        ({"strategy": "inplace_3"}, "inplace_2"),
        ({"activation": "gelu"}, "leaky_relu"),
        ({"activation": "relu"}, "leaky_relu"),
    ],
)
def test_refusals_say_what_would_do(arguments, message):
    with pytest.raises(ValueError, match=message):
        reference.forward(**{"x": np.ones((2, 3)), **arguments})


def test_statistics_of_one_value_do_not_normalize():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        reference.normalize(np.ones((1, 3)), np.ones(3), np.zeros(3), 1)
