"""Finite and correct wherever float64 is: weights and y of any size, ill-conditioned channels."""

import numpy as np
import pytest
from batches import (
    DTYPES,
    ISAS,
    PARAM,
    STRATEGIES,
    Batch,
    dtype_of,
    parameter_dtype,
    random_batch,
    run,
    with_residual,
)
from bounds import EPS, assert_backward, assert_forward, expected, without_kinks, working_type
from cases import each

from inplace_abn import reference

pytestmark = pytest.mark.arithmetic

CURVED = [name for name, activation in reference.ACTIVATIONS.items() if activation.minimum is not None]
CURVED += ["celu", "selu", "softplus", "sigmoid", "tanh"]


def of_float64(batch, dtype, **options):
    """Return z and the gradients of the strategy standard, in float64 or, for float64, more precisely."""
    z, ctx = reference.forward(
        batch.x, weight=batch.weight, bias=batch.bias, residual=batch.residual, strategy="standard",
        dtype=working_type(dtype), **options,
    )  # fmt: skip
    return z, reference.backward(ctx, batch.dz)


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("activation", ["leaky_relu", "elu"])
def test_weights_of_any_size(activation, strategy, layout):
    """gamma from 1e-44, where z has one digit, to 1e37 in float32, and small values of both signs."""
    sizes = 10.0 ** np.array([-44, -42, *range(-38, 31, 4), 37])
    weight = [*sizes, *-sizes, 0.0, *sizes[:-1:3], *np.linspace(-1e-3, 1e-3, 21)]
    bias = [0.0] * (2 * len(sizes)) + [1.0] * (len(weight) - 2 * len(sizes))
    batch = random_batch((8, len(weight), 9, 9), "float32", mean=0.0)
    batch = batch._replace(weight=np.array(weight, np.float32), bias=np.array(bias, np.float32))
    batch = without_kinks(batch, "float32", reference.KEEPS[strategy], activation, 0.5)
    want_z, want = of_float64(batch, "float32", activation=activation, activation_param=0.5)
    got = run(batch, layout, activation=activation, activation_param=0.5, strategy=strategy)
    assert np.isfinite(want_z).all()
    smallest = np.finfo(np.float32).smallest_subnormal
    for name in ("z", "dx"):
        one, other = getattr(got, name), {"z": want_z, "dx": want.dx}[name]
        assert np.isfinite(one).all()
        for c, g in enumerate(batch.weight):
            size = np.sqrt((other[:, c] ** 2).mean())
            off = np.sqrt(((one[:, c] - other[:, c]) ** 2).mean())
            assert off <= 1e-5 * size + smallest, (name, g, bias[c], off, size)
    np.testing.assert_allclose(got.dweight, want.dweight, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(got.dbias, want.dbias, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", CURVED)
@each(strategy=STRATEGIES)
def test_y_of_any_size(activation, dtype, strategy):
    """Biases and residuals make y of any size: all gradients are finite and equal those of float64."""
    sizes = np.array([0, 0.5, 3, 9, 14, 20, 40, 90, 110, 400, 760, 1e3, 3e4])
    batch = random_batch((4, 2 * len(sizes), 5, 3), dtype, mean=0.0)
    bias = np.concatenate([sizes, -sizes]).astype(parameter_dtype(dtype))
    batch = with_residual(batch._replace(weight=np.ones_like(bias), bias=bias), 0.5)
    options = {"activation": activation, "activation_param": PARAM[activation]}
    _, want = of_float64(batch, dtype, **options)
    got = run(batch, strategy=strategy, **options)
    for name in ("dx", "dresidual"):
        one, other = (getattr(result, name).astype(float) for result in (got, want))
        assert np.isfinite(one).all(), name
        off = np.abs(one - other).max(axis=(0, 2, 3))
        size = np.abs(other).max(axis=(0, 2, 3))
        # Relative to the channel's largest, unless all slopes are small: near a minimum, those of a half type
        # are off by 0.01, and dz is 3 and more.
        most, small = {"float32": (1e-4, 1e-3), "float64": (1e-8, 1e-3)}.get(dtype, (16 * EPS[dtype], 2))
        assert (off <= most * np.maximum(size, small)).all(), name


SIZES = [0.0, -0.0, 1e-45, 1e-38, -1e-20, 1e-6, -1.0, 1e6, -1e20, 1e30]


def _channels(rng, count):
    """Return channels with ill-conditioned sums, squares or differences, by name."""
    normal = rng.normal(size=count)
    outlier = normal.copy()
    outlier[count // 3] = 1e30
    two = np.where(np.arange(count) % 2, 1.0, 1.0 + 2.0**-20)
    return {
        "constant": np.full(count, 0.1),
        "zero": np.zeros(count),
        "outlier": outlier,
        "far": 1e6 + 1e-3 * normal,
        "denormal": np.arange(count) % 19 * 1e-45,
        "nearly constant": two,
        "alternating ends": np.where(np.arange(count) % 2, 3e38, -3e38),
        "ordinary": normal,
    }


def ill_conditioned(weight, bias, dtype="float32", shape=(6, None, 5, 7)):
    """Return a batch with all of these channels; each has the same weight and bias."""
    rng = np.random.default_rng(5)
    count = shape[0] * shape[2] * shape[3]
    x = np.stack([c.reshape(shape[0], *shape[2:]) for c in _channels(rng, count).values()], axis=1)
    channels, parameter = x.shape[1], parameter_dtype(dtype)
    limit = float(np.finfo(np.float32).max if dtype != "float16" else 6e4)
    full = dtype_of(dtype)
    return Batch(
        np.clip(x, -limit, limit).astype(full),
        (rng.normal(size=x.shape) / max(1.0, abs(weight))).astype(full),
        np.full(channels, weight, parameter),
        np.full(channels, bias, parameter),
    )


@pytest.mark.parametrize("keeps", ["x", "xhat", "y", "z"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@each(bias=[0.0, 1e-38, -1.0, 1e30], weight=SIZES)
def test_ill_conditioned_channels(dtype, keeps, weight, bias):
    """Within the bound as well, for any weight and bias."""
    for activation, isa in [("leaky_relu", None), ("elu", None), ("identity", ISAS[-1])]:
        batch = without_kinks(ill_conditioned(weight, bias, dtype), dtype, keeps, activation)
        with np.errstate(all="ignore"):
            want = expected(batch, dtype, keeps, activation)
        options = {"activation": activation, "activation_param": PARAM[activation], "isa": isa}
        for strategy in (strategy for strategy in STRATEGIES if reference.KEEPS[strategy] == keeps):
            got = run(batch, strategy=strategy, **options)
            for name in ("z", "dx", "dweight", "dbias"):
                finite = np.isfinite(np.asarray(getattr(want, name), parameter_dtype(dtype)))
                assert np.isfinite(getattr(got, name)[finite]).all(), (name, strategy)
            with np.errstate(all="ignore"):
                assert_forward(got, want)
                assert_backward(got, want)
