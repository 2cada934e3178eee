"""Networks: shapes, kept memory, and equal training with every strategy."""

import numpy as np
import pytest
from networks import STRATEGIES, normal

from inplace_abn import memory, models
from inplace_abn.layers import CrossEntropy, no_grad

NETWORKS = {
    "preactivation": lambda **style: models.residual_network(2, 3, (4, 6), 2, **style),
    "postactivation": lambda **style: models.residual_network(
        2, 3, (4, 6), 2, block="postactivation", **style
    ),
    "encoder_decoder": lambda **style: models.encoder_decoder(2, 3, (4, 6), **style),
}


def batch(kind, dtype=np.float64, samples=4, size=8):
    shape = (samples, size, size) if kind == "encoder_decoder" else (samples,)
    return normal((samples, 2, size, size), 5, dtype), np.random.default_rng(6).integers(0, 3, shape)


def losses(kind, strategy, steps, dtype=np.float64, **style):
    """Train by SGD with momentum."""
    net, criterion = NETWORKS[kind](strategy=strategy, dtype=dtype, rng=0, **style), CrossEntropy()
    velocity = [np.zeros_like(parameter.data) for parameter in net.parameters()]
    x, target = batch(kind, dtype)
    found = []
    for _ in range(steps):
        found.append(float(criterion(net(x.copy()), target)))
        net.zero_grad()
        net.backward(criterion.backward(), overwrite=True)
        for parameter, change in zip(net.parameters(), velocity, strict=True):
            change *= 0.9
            change += parameter.grad
            parameter.data -= 0.05 * change
    return found


@pytest.mark.parametrize("kind", NETWORKS)
def test_losses_of_all_strategies_agree_over_20_steps_of_training(kind):
    want = losses(kind, "standard", 20)
    assert want[-1] < 0.7 * want[0]
    for strategy in STRATEGIES[1:]:
        np.testing.assert_allclose(losses(kind, strategy, 20), want, rtol=1e-9, err_msg=strategy)


@pytest.mark.parametrize("activation", ["elu", "identity"])
def test_losses_agree_with_other_activations(activation):
    want = losses("preactivation", "standard", 5, activation=activation)
    for strategy in STRATEGIES[1:]:
        got = losses("preactivation", strategy, 5, activation=activation)
        np.testing.assert_allclose(got, want, rtol=1e-9, err_msg=strategy)


def test_relu_works_with_strategies_that_keep_x_or_xhat():
    want = losses("postactivation", "standard", 3, activation="relu")
    for strategy in ("checkpoint", "checkpoint_xhat"):
        got = losses("postactivation", strategy, 3, activation="relu")
        np.testing.assert_allclose(got, want, rtol=1e-9, err_msg=strategy)
    with pytest.raises(ValueError, match="'relu' has no inverse"):
        losses("postactivation", "inplace", 1, activation="relu")


@pytest.mark.parametrize("kind", NETWORKS)
def test_float32_and_channels_last(kind):
    x, _ = batch(kind, np.float32)
    first = NETWORKS[kind](rng=0)
    last = NETWORKS[kind](rng=0, channel_axis=-1)
    z, z_last = first(x.copy()), last(np.moveaxis(x, 1, -1).copy())
    assert z.dtype == np.float32
    np.testing.assert_allclose(np.moveaxis(z_last, -1, 1), z, rtol=1e-3, atol=1e-4)
    last.backward(z_last), first.backward(z)
    for ours, theirs in zip(last.parameters(), first.parameters(), strict=True):
        np.testing.assert_allclose(ours.grad, theirs.grad, rtol=1e-2, atol=1e-3 * np.abs(theirs.grad).max())


@pytest.mark.parametrize("kind", ["preactivation", "encoder_decoder"])
def test_preactivation_networks_keep_about_half(kind):
    kept = {}
    for strategy in STRATEGIES:
        net = NETWORKS[kind](strategy=strategy, rng=0)
        with memory.ledger() as ledger:
            net(normal((2, 2, 16, 16), dtype=np.float32))
        kept[strategy] = ledger.live
    assert all(kept[strategy] == kept["inplace_2"] for strategy in STRATEGIES[1:])
    assert kept["inplace_2"] <= 0.58 * kept["standard"]


@pytest.mark.parametrize("kind", NETWORKS)
def test_evaluation(kind):
    """With running statistics, a prediction does not depend on other samples."""
    net, (x, _) = NETWORKS[kind](rng=0, dtype=np.float64), batch(kind)
    with no_grad():
        net(x.copy())
        net.eval()
        together = net(x.copy())
        np.testing.assert_allclose(net(x[:1].copy()), together[:1], rtol=1e-10)


def test_a_block_of_three_convolutions():
    block = models.preactivation_block(4, 4, kernel_sizes=(1, 3, 1), style=models.Style(dtype=np.float64))
    assert [layer.kernel_size for name, layer in block.branch.children() if name.startswith("conv")] == [
        (1, 1), (3, 3), (1, 1),
    ]  # fmt: skip
    x = normal((2, 4, 5, 5), dtype=np.float64)
    with memory.ledger() as ledger:
        block(x)
    assert ledger.live == 3 * x.nbytes


def test_the_weights_of_one_rng_do_not_depend_on_the_strategy():
    nets = [
        models.residual_network(1, 2, (4,), 1, strategy=strategy, rng=3)
        for strategy in ("standard", "inplace")
    ]
    for one, other in zip(*(net.parameters() for net in nets), strict=True):
        assert np.array_equal(one.data, other.data)
