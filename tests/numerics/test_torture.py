"""Training whose weights cross zero, and one batch with every kind of ill-conditioned channel."""

import numpy as np
import pytest
from batches import ISAS, PARAM, STRATEGIES, Batch, dtype_of, parameter_dtype
from batches import run as run_step
from bounds import assert_backward, assert_forward, expected, without_kinks

from inplace_abn import layers, optim, reference

STEPS = 500


def train(strategy, learning_rate, dtype=np.float64):
    """Return losses, the weights after each step, and the state at the end, of a small network."""
    rng = np.random.default_rng(3)
    x, labels = rng.normal(size=(16, 3, 6, 6)).astype(dtype), rng.integers(4, size=16)
    net = layers.Sequential(
        layers.Conv2d(3, 24, 3, padding=1, bias=False, rng=0, dtype=dtype),
        layers.ABN(24, strategy=strategy, dtype=dtype),
        layers.Conv2d(24, 4, 1, rng=1, dtype=dtype),
        layers.GlobalAvgPool2d(),
    )
    net[1].weight.data[...] = rng.normal(size=24) * 0.05
    loss, optimizer = layers.CrossEntropy(), optim.SGD(net.parameters(), lr=learning_rate, momentum=0.9)
    losses, weights = [], []
    for step in range(STEPS):
        losses.append(float(loss(net(x + 0.5 * rng.normal(size=x.shape).astype(dtype)), labels)))
        net.backward(loss.backward())
        if step % 50 == 49:  # across zero, and once to exactly zero
            net[1].weight.data *= -1
            net[1].weight.data[step // 50] = 0
        optimizer.step()
        optimizer.zero_grad()
        weights.append(net[1].weight.data.copy())
    return np.array(losses), np.array(weights), net.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["inplace_1", "inplace_2", "checkpoint_xhat"])
def test_weights_that_cross_zero_in_training(strategy):
    """500 steps in place equal 500 standard steps to rounding while many weights change their sign."""
    losses, weights, state = train(strategy, 0.05)
    want_losses, want_weights, want_state = train("standard", 0.05)
    crossings = (np.diff(np.signbit(want_weights), axis=0)).any(axis=0).sum()
    assert crossings >= 12
    assert np.isfinite(losses).all()
    # Training magnifies rounding errors by a factor that grows with the number of steps.
    np.testing.assert_allclose(losses[:100], want_losses[:100], rtol=1e-9)
    np.testing.assert_allclose(losses, want_losses, rtol=1e-6)
    np.testing.assert_allclose(weights, want_weights, rtol=1e-6, atol=1e-6)
    for name in state:
        np.testing.assert_allclose(state[name], want_state[name], rtol=1e-5, atol=1e-6, err_msg=name)


# ---- one batch with every difficulty -----------------------------------------------------------------------

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


def torture(weight, bias, dtype="float32", shape=(6, None, 5, 7)):
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


@pytest.mark.parametrize("bias", [0.0, 1e-38, -1.0, 1e30])
@pytest.mark.parametrize("weight", SIZES)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_channels_of_every_difficulty(dtype, strategy, weight, bias):
    """Finite wherever the standard strategy in float64 is, and within the bound, for any weight and bias."""
    keeps = reference.KEEPS[strategy]
    for activation, isa in [("leaky_relu", None), ("elu", None), ("identity", ISAS[-1])]:
        batch = without_kinks(torture(weight, bias, dtype), dtype, keeps, activation)
        with np.errstate(all="ignore"):
            want = expected(batch, dtype, keeps, activation)
        got = run_step(
            batch, strategy=strategy, activation=activation, activation_param=PARAM[activation], isa=isa
        )
        for name in ("z", "dx", "dweight", "dbias"):
            finite = np.isfinite(np.asarray(getattr(want, name), parameter_dtype(dtype)))
            assert np.isfinite(getattr(got, name)[finite]).all(), name
        with np.errstate(all="ignore"):
            assert_forward(got, want)
            assert_backward(got, want)
