"""Training whose weights cross zero."""

import numpy as np
import pytest

from inplace_abn import layers, optim

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
