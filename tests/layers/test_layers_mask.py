"""Layers with a mask: equal to layers over the valid positions, in networks, ledger and gradient checks."""

import numpy as np
import pytest
from batches import PARAM, SCHEMES, SLOPES, each_scheme
from cases import each

from inplace_abn import functional, gradcheck, memory
from inplace_abn.layers import (
    ABN,
    Activation,
    Concat,
    Flatten,
    Graph,
    Identity,
    InPlaceABN,
    Linear,
    Recompute,
    Residual,
    Sequential,
)

LENGTHS = np.array([7, 0, 3, 9, 1])
MASK = np.arange(9) < LENGTHS[:, None]


def sequences(channels=4, seed=0):
    """A batch (N, L, C) with NaN after the end of each sequence."""
    x = np.random.default_rng(seed).normal(size=(*MASK.shape, channels))
    x[~MASK] = np.nan
    return x


def layer_of(strategy, activation, **options):
    options |= {"num_slopes": 4, "activation_param": 0.25} if activation == "prelu" else {}
    layer = ABN(4, strategy=strategy, activation=activation, channel_axis=-1, dtype=np.float64, **options)
    layer.weight.data[:] = [1, -2, 0.5, 0]
    return layer


@each_scheme
@each(residual=[False, True])
def test_a_layer_depends_on_the_valid_positions_alone(activation, strategy, residual):
    masked, alone = layer_of(strategy, activation), layer_of(strategy, activation)
    x, r, dz = sequences(), sequences(seed=1), sequences(seed=2)
    z = masked(x.copy(), mask=MASK, **({"residual": r.copy()} if residual else {}))
    want = alone(x[MASK], **({"residual": r[MASK]} if residual else {}))
    np.testing.assert_allclose(z[MASK], want, atol=1e-12)
    assert not z[~MASK].any()
    got, want = masked.backward(dz), alone.backward(dz[MASK])
    for one, other in zip(got, want, strict=True) if residual else [(got, want)]:
        np.testing.assert_allclose(one[MASK], other, atol=1e-11)
        assert not one[~MASK].any()
    for (name, one), (_, other) in zip(masked.named_parameters(), alone.named_parameters(), strict=True):
        np.testing.assert_allclose(one.grad, other.grad, atol=1e-11, err_msg=name)
    for name in masked.buffers:
        np.testing.assert_allclose(getattr(masked, name), getattr(alone, name), atol=1e-13)


def test_evaluation_uses_the_mask():
    layer = layer_of("inplace", "sigmoid").eval()
    z = layer(sequences(), mask=MASK)
    assert not z[~MASK].any()
    assert z[MASK].all()
    assert not layer.backward(sequences(seed=1))[~MASK].any()


def test_a_container_passes_the_mask_to_all_layers_that_take_one():
    def network():
        inner = Sequential(Linear(4, 5, rng=1), InPlaceABN(5))
        return Sequential(Linear(3, 4, rng=0), InPlaceABN(4), inner, Linear(5, 2, rng=2))

    points = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    mask = np.arange(20) % 3 > 0
    net, alone = network(), network()
    z, want = net(points, mask=mask), alone(points[mask])
    np.testing.assert_allclose(z[mask], want, atol=1e-5)
    dz = np.random.default_rng(1).normal(size=z.shape).astype(np.float32)
    dz[~mask] = 0
    dx = net.backward(dz)
    np.testing.assert_allclose(dx[mask], alone.backward(dz[mask]), atol=1e-5)
    assert not dx[~mask].any()


def linear(outputs=4, inputs=4):
    return Linear(inputs, outputs, rng=0, dtype=np.float64)


def norm(strategy="inplace", activation="leaky_relu"):
    return ABN(4, strategy=strategy, activation=activation, channel_axis=-1, dtype=np.float64)


@pytest.mark.parametrize(
    "strategy", ["standard", "checkpoint", "checkpoint_xhat", "pre_activation", "inplace"]
)
@pytest.mark.parametrize(
    "make",
    [
        lambda norm: Recompute(linear(), norm()),
        lambda norm: Residual(Sequential(norm(), linear())),
        lambda norm: Residual(linear(), linear(), preactivation=norm()),
        lambda norm: Residual(linear(), Sequential(linear(), norm())),
        lambda norm: Residual(Sequential(linear(), norm()), activation=norm()),
        lambda norm: Residual(
            Sequential(linear(), norm(activation="identity")), activation=Activation(inplace=True)
        ),
        lambda norm: Sequential(
            Concat(Sequential(linear(), norm()), Identity(), channel_axis=-1), linear(inputs=8)
        ),
        lambda norm: Residual(Sequential(Recompute(norm(), linear()), norm())),
    ],
)
def test_containers_pass_the_mask_to_all_layers_inside(make, strategy):
    def network():
        layers = make(lambda **options: norm(strategy, **options))
        return Sequential(norm(strategy), linear(), layers, linear(), norm(strategy))

    masked, alone = network(), network()
    mask, x, dz = MASK.copy(), sequences(), sequences(seed=1)
    z, want = masked(x, mask=mask), alone(x[MASK])
    np.testing.assert_allclose(z[MASK], want, atol=1e-12)
    mask[...] = True
    dx, want = masked.backward(dz), alone.backward(dz[MASK])
    np.testing.assert_allclose(dx[MASK], want, atol=1e-11)
    assert not dx[~MASK].any()
    for (name, one), (_, other) in zip(masked.named_parameters(), alone.named_parameters(), strict=True):
        np.testing.assert_allclose(one.grad, other.grad, atol=1e-11, err_msg=name)
    for name, array in alone.state_dict().items():
        np.testing.assert_allclose(masked.state_dict()[name], array, atol=1e-12, err_msg=name)


def test_a_layer_that_does_not_pass_the_mask_on_is_refused():
    class Block(Graph):
        def __init__(self):
            self.norm = norm("standard")

        def compute(self, x):
            return self.norm(x)

    net = Sequential(norm("standard"), Block())
    with pytest.raises(TypeError, match=r"1 \(Block\) takes no mask, but 1.norm \(ABN\) inside needs it"):
        net(sequences(), mask=MASK)
    assert net(sequences()[MASK]).shape == (MASK.sum(), 4)


def test_a_mask_is_refused_if_no_layer_takes_one():
    with pytest.raises(TypeError, match="mask"):
        Sequential(Flatten())(np.ones((2, 3), np.float32), mask=np.ones(2, bool))


def test_the_ledger_counts_the_mask():
    layer = layer_of("inplace", "leaky_relu")
    layer.weight.data[:] = 1
    with memory.ledger() as ledger:
        z = layer(sequences(), mask=MASK)
    assert ledger.kept == z.nbytes + 8
    assert "the valid positions" in str(ledger.explain())


def test_one_valid_position_is_refused_and_eval_suggested():
    mask = np.zeros_like(MASK)
    mask[0, 0] = True
    with pytest.raises(ValueError, match=r"1 position where mask is True; .* eval\(\)"):
        layer_of("inplace", "leaky_relu")(sequences(), mask=mask)
    with pytest.raises(TypeError, match="mask must be bool"):
        layer_of("inplace", "leaky_relu")(sequences(), mask=mask.astype(int))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("activation", "strategy"), SCHEMES[::3])
def test_against_finite_differences(activation, strategy, training):
    if activation == "prelu":
        options = {"slope": np.resize(SLOPES, 4)}
    else:
        options = {"activation_param": PARAM[activation]}
    options |= {"activation": activation, "strategy": strategy, "mask": MASK, "training": training}
    if not training:
        options |= {"running_mean": np.full(4, 0.1), "running_var": np.full(4, 1.5)}

    def forward(x, weight, bias, residual):
        return functional.forward(x, weight=weight, bias=bias, residual=residual, channel_axis=-1, **options)

    def backward(ctx, dz):
        found = functional.backward(ctx, dz)
        return found.dx, found.dweight, found.dbias, found.dresidual

    weight, bias = np.array([1.0, -2.0, 0.5, 0.0]), np.array([0.1, 0.0, -0.3, 0.7])
    x, residual = (
        np.where(np.isnan(sequences()), 3, sequences()),
        np.random.default_rng(1).normal(size=(5, 9, 4)),
    )
    report = gradcheck((forward, backward), [x, weight, bias, residual], samples=60)
    assert report.ok, report
