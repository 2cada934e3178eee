"""The specification: definitions, finite differences, and the schemes of the paper against each other."""

import doctest
import importlib
import statistics as exact_statistics
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from batches import PARAM
from cases import each
from finite_differences import numerical_gradient

from inplace_abn import reference

ACTIVATIONS = list(reference.ACTIVATIONS)
INVERTIBLE = [name for name, activation in reference.ACTIVATIONS.items() if activation.inverse]
TWO_SIDED = [name for name, activation in reference.ACTIVATIONS.items() if activation.minimum is not None]
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


def options(activation, channels):
    """Activation and parameter; for prelu slopes of both signs."""
    chosen = {"activation": activation, "activation_param": PARAM[activation]}
    return chosen | ({"slope": np.linspace(-0.5, 1.5, channels)} if activation == "prelu" else {})


@pytest.mark.parametrize("module", ["activations", "moments", "normalization"])
def test_docstring_examples(module):
    result = doctest.testmod(importlib.import_module(f"inplace_abn.reference.{module}"))
    assert result.attempted >= 3
    assert result.failed == 0


@pytest.mark.parametrize(("shape", "channel_axis"), [((4, 3), 1), ((2, 3, 5), 1), ((2, 2, 3, 4), -1)])
def test_statistics_equal_exact_arithmetic(shape, channel_axis):
    x = 100 + np.random.default_rng(0).normal(size=shape)
    mean, var, count = reference.statistics(x, channel_axis=channel_axis)
    for c, channel in enumerate(np.moveaxis(x, channel_axis, 0)):
        values = [Fraction(float(v)) for v in channel.ravel()]
        assert count == len(values)
        assert abs(mean[c] - float(exact_statistics.mean(values))) <= 2 * np.finfo(float).eps * 100
        assert var[c] == pytest.approx(float(exact_statistics.pvariance(values)), rel=1e-12)


def test_forward_of_one_value():
    x = [[1.0, 0.0], [2.0, 4.0], [6.0, -4.0]]
    z, _ = reference.forward(x, weight=[2.0, 3.0], bias=[-5.0, 1.0], eps=0.5, activation_param=0.25)
    xhat = (2 - 3) / np.sqrt((4 + 1 + 9) / 3 + 0.5)
    assert z[1, 0] == pytest.approx(0.25 * (2 * xhat - 5))
    assert z[1, 1] == pytest.approx(3 * 4 / np.sqrt(32 / 3 + 0.5) + 1)


def problem(activation, with_residual, channel_axis, training):
    """Return the arrays to differentiate, dz, and a function of the strategy that runs the forward."""
    x, dz, weight, bias = batch((3, 2) if channel_axis == 1 else (2, 2, 3), 1, channel_axis)
    arrays = {"x": x, "weight": weight, "bias": bias}
    if with_residual:
        arrays["residual"] = x[::-1].copy()
    chosen = options(activation, len(weight))
    if "slope" in chosen:
        arrays["slope"] = chosen.pop("slope").astype(np.longdouble)
    chosen |= {"training": training, "channel_axis": channel_axis, "dtype": np.longdouble}
    running = {"running_mean": weight / 2 + 1, "running_var": weight**2}
    return arrays, dz, lambda strategy: reference.forward(**arrays, **running, **chosen, strategy=strategy)


@cache
def numerical_gradients(*case):
    arrays, dz, forward = problem(*case)
    loss = lambda: (forward("standard")[0] * dz).sum()  # noqa: E731
    return {name: numerical_gradient(loss, array) for name, array in arrays.items()}


@pytest.mark.parametrize(("activation", "strategy"), SCHEMES)
@each(training=[True, False], channel_axis=[1, -1], with_residual=[False, True])
def test_gradients_equal_finite_differences(activation, strategy, with_residual, channel_axis, training):
    case = activation, with_residual, channel_axis, training
    _, dz, forward = problem(*case)
    got = reference.backward(forward(strategy)[1], dz)
    assert (got.dresidual is None, got.dslope is None) == (not with_residual, activation != "prelu")
    for name, want in numerical_gradients(*case).items():
        np.testing.assert_allclose(getattr(got, f"d{name}"), want, rtol=1e-9, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("activation", INVERTIBLE)
@pytest.mark.parametrize(
    ("scheme", "formulas"),
    [("inplace_1", reference.backward_inplace_1), ("inplace_2", reference.backward_inplace_2)],
)
def test_the_schemes_of_the_paper_equal_standard_batch_norm(scheme, formulas, activation, affine):
    x, dz, weight, bias = batch((4, 5, 3, 2), 2)
    weight, bias = (weight, bias) if affine else (None, None)
    arguments = {**options(activation, 5), "residual": x[::-1]}
    if activation == "prelu":
        arguments["slope"] = [0.5]  # below 0, y cannot be recovered from z
    z, ctx = reference.forward(x, weight=weight, bias=bias, strategy=scheme, **arguments)
    want_z, standard = reference.forward(x, weight=weight, bias=bias, strategy="standard", **arguments)
    assert np.array_equal(z, want_z)
    assert ctx.x is None
    assert ctx.xhat is None
    got, want = formulas(ctx, dz), reference.backward(standard, dz)
    close(got.dx, want.dx, 1e-11)
    if affine:
        close(got.dweight, want.dweight, 1e-11)
        close(got.dbias, want.dbias, 1e-11)
    else:
        assert got[1:] == want[1:] == (None, None)


@pytest.mark.parametrize("strategy", ["inplace_1", "inplace_2", "inplace"])
def test_xhat_that_z_does_not_determine_is_kept(strategy):
    """From z alone, xhat would be 0 / 0 for gamma = 0, noise for gamma << beta, infinity for flat elu."""
    x, dz, weight, bias = batch((4, 5, 7), 3)
    weight[:3], bias[:3] = (0, 1e-17, 30), (0.5, 3, -20)
    for activation in INVERTIBLE:
        arguments = options(activation, 5)
        _, ctx = reference.forward(x, weight=weight, bias=bias, strategy=strategy, **arguments)
        _, standard = reference.forward(x, weight=weight, bias=bias, strategy="standard", **arguments)
        assert ctx.unrecoverable[..., :2].all()
        assert ctx.unrecoverable.any(axis=(0, 1))[3:].tolist() == [False, False]
        flat = ("elu", "celu", "selu", "sigmoid", "tanh", "gelu", "gelu_tanh")
        assert ctx.unrecoverable[..., 2].any() == (activation in flat)
        for got, want in zip(reference.backward(ctx, dz), reference.backward(standard, dz), strict=True):
            close(got, want, 1e-11)


@pytest.mark.parametrize("activation", INVERTIBLE)
def test_xhat_is_kept_if_a_large_residual_absorbs_it(activation):
    x, dz, weight, bias = (array.astype(float) for array in batch((4, 5, 7), 3))
    arguments = {**options(activation, 5), "residual": np.where(x > 2, 1e14, x / 10)}
    _, ctx = reference.forward(x, weight=weight, bias=bias, strategy="inplace", **arguments)
    _, standard = reference.forward(x, weight=weight, bias=bias, strategy="standard", **arguments)
    assert ctx.unrecoverable[np.moveaxis(x, 1, -1) > 2].all()
    got, want = reference.backward(ctx, dz), reference.backward(standard, dz)
    for one, other in zip((*got, got.dresidual), (*want, want.dresidual), strict=True):
        close(one, other, 1e-9)


@pytest.mark.parametrize("activation", TWO_SIDED)
def test_z_at_the_minimum_and_on_both_sides(activation):
    """Near the minimum z determines y to half of the digits, at the minimum to none."""
    minimum = float(reference.ACTIVATIONS[activation].minimum)
    y = minimum + np.array([[-1.0, -1e-3, -1e-9, 1e-9, 1e-3, 1, 30]]).T
    dz = np.arange(1.0, 8)[:, None]
    arguments = {"activation": activation, "training": False, "eps": 1e-300}
    _, ctx = reference.forward(y, running_mean=[0.0], running_var=[1.0], strategy="inplace", **arguments)
    _, standard = reference.forward(
        y, running_mean=[0.0], running_var=[1.0], strategy="standard", **arguments
    )
    assert ctx.branch_mask.dtype == bool
    assert ctx.branch_mask.ravel().tolist() == [True] * 3 + [False] * 4
    assert ctx.unrecoverable.ravel()[2:4].all()
    assert not ctx.unrecoverable.ravel()[[0, -2, -1]].any()
    close(reference.backward(ctx, dz).dx, reference.backward(standard, dz).dx, 1e-11)
    assert standard.branch_mask is None


def test_the_gradient_of_one_slope_is_the_sum_over_channels():
    x, dz, weight, bias = batch((4, 3, 5), 12)
    each = reference.forward(x, weight=weight, bias=bias, activation="prelu", slope=[0.3] * 3)
    one = reference.forward(x, weight=weight, bias=bias, activation="prelu", slope=[0.3])
    assert np.array_equal(each[0], one[0])
    got = reference.backward(one[1], dz).dslope
    assert got.shape == (1,)
    close(got, reference.backward(each[1], dz).dslope.sum())


@pytest.mark.parametrize("strategy", ["standard", "checkpoint", "checkpoint_xhat", "pre_activation"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_recompute_returns_z(strategy, activation):
    x, _, weight, bias = batch((4, 5, 7), 4)
    arguments = {**options(activation, 5), "residual": x / 2}
    z, ctx = reference.forward(x, weight=weight, bias=bias, strategy=strategy, **arguments)
    assert np.array_equal(reference.recompute(ctx), z)


def test_slices_of_a_batch_with_merged_statistics_equal_the_batch():
    x, dz, weight, bias = batch((9, 3, 4), 5)
    z, ctx = reference.forward(x, weight=weight, bias=bias)
    want = reference.backward(ctx, dz)
    cuts = [slice(0, 2), slice(2, 3), slice(3, 3), slice(3, 9)]
    mean, var, count = reference.merge_statistics(
        *zip(*(reference.statistics(x[cut]) for cut in cuts), strict=True)
    )
    parts = [
        reference.normalize(x[cut], mean=mean, var=var, count=count, weight=weight, bias=bias) for cut in cuts
    ]
    close(np.concatenate([z for z, _ in parts]), z)
    sums = [reference.backward_reduce(part, dz[cut]) for (_, part), cut in zip(parts, cuts, strict=True)]
    sum_dy, sum_dy_xhat = (sum(s) for s in zip(*sums, strict=True))
    close(sum_dy, want.dbias)
    close(sum_dy_xhat, want.dweight)
    for (_, part), cut in zip(parts, cuts, strict=True):
        close(
            reference.backward_apply(part, dz[cut], sum_dy=sum_dy, sum_dy_xhat=sum_dy_xhat, count=count),
            want.dx[cut],
        )


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0), (2, 0, 4)])
def test_gradients_of_an_empty_batch_are_zero(shape):
    weight = np.ones(shape[1])
    z, ctx = reference.forward(np.zeros(shape), weight=weight, bias=weight)
    dx, dweight, dbias = reference.backward(ctx, np.zeros(shape))
    assert z.shape == dx.shape == shape
    assert not dweight.any()
    assert not dbias.any()


def test_nan_and_infinity_stay_in_their_channel():
    x, dz, weight, bias = batch((4, 3, 5), 6)
    z, ctx = reference.forward(x, weight=weight, bias=bias)
    dx = reference.backward(ctx, dz).dx
    x[1, 0, 2], x[3, 2, 0] = np.nan, np.inf
    spoiled_z, ctx = reference.forward(x, weight=weight, bias=bias)
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
    z, ctx = reference.forward(
        x, weight=weight, bias=bias, running_mean=mean, running_var=var, training=False
    )
    close(z, reference.forward(x, weight=weight, bias=bias)[0])
    slope = np.where(z >= 0, 1, 0.01)
    close(reference.backward(ctx, dz).dx, dz * slope * (ctx.weight * ctx.inv_std)[:, None])


def test_arguments_are_not_changed_and_contexts_share_no_memory():
    x, dz, weight, bias = (a.astype(float) for a in batch((4, 3, 5), 8))
    for strategy in reference.KEEPS:
        before = [a.copy() for a in (x, dz, weight, bias)]
        residual, slope = x + 1, weight.copy()
        z, ctx = reference.forward(
            x, weight=weight, bias=bias, strategy=strategy, activation="prelu", slope=slope, residual=residual
        )
        want = reference.backward(ctx, dz)
        for now, then in zip((x, dz, weight, bias), before, strict=True):
            assert np.array_equal(now, then)
        z[...] = 7
        x += 1
        weight *= 2
        residual *= 3
        slope += 1
        for got, first in zip(reference.backward(ctx, dz), want, strict=True):
            assert np.array_equal(got, first)


@pytest.mark.parametrize("dtype", [np.float64, np.longdouble])
def test_results_have_the_compute_dtype(dtype):
    x, dz, weight, bias = (a.astype(np.float16) for a in batch((4, 3, 5), 9))
    z, ctx = reference.forward(x, weight=weight, bias=bias, dtype=dtype)
    assert {a.dtype for a in (z, *reference.backward(ctx, dz))} == {np.dtype(dtype)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": np.ones((1, 3))}, "more than 1 value per channel"),
        ({"training": False}, "running_mean"),
        ({"strategy": "inplace_3"}, "inplace_2"),
        ({"activation": "swish"}, "leaky_relu"),
        ({"activation": "prelu"}, r"slope, an array of shape \(C,\) or \(1,\)"),
        ({"activation": "relu"}, "leaky_relu"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        reference.forward(**{"x": np.ones((2, 3)), **arguments})


def test_statistics_of_one_value_are_refused():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        reference.normalize(np.ones((1, 3)), mean=np.ones(3), var=np.zeros(3), count=1)
