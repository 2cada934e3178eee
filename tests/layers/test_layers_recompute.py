"""Recompute: bitwise equal to Sequential, and only the input is kept."""

import copy

import numpy as np
import pytest
from networks import STRATEGIES, abn, conv, normal

from inplace_abn import gradcheck, memory, models
from inplace_abn.layers import Dropout, Layer, MaxPool2d, Recompute, Residual, Sequential, no_grad

SHAPE = (3, 4, 6, 8)


def stem(strategy="inplace_2", **options):
    return {"conv": conv(), "abn": abn(strategy=strategy, **options), "pool": MaxPool2d(2)}


CHAINS = {
    "stem": stem,
    "normalization first": lambda strategy: {"abn": abn(strategy=strategy), "conv": conv()},
    "dropout": lambda strategy: {**stem(strategy), "dropout": Dropout(0.5, rng=3)},
    "average of all batches": lambda strategy: stem(strategy, momentum=None),
    "statistics of the batch alone": lambda strategy: stem(strategy, track_running_stats=False),
    "one in the other": lambda strategy: {"inner": Recompute(stem(strategy)), "dropout": Dropout(0.5, rng=3)},
}


def steps(net, times=3):
    """Train, and return results, gradients and running statistics."""
    found = []
    for seed in range(times):
        z = net(normal(SHAPE, seed))
        found += [z.copy(), net.backward(normal(z.shape, 9), overwrite=True)]
    found += [parameter.grad for parameter in net.parameters()]
    return found + list(net.state_dict().values())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", CHAINS)
def test_recompute_equals_sequential_bitwise(kind, strategy, training):
    once, again = (kind_of(CHAINS[kind](strategy)).train(training) for kind_of in (Sequential, Recompute))
    assert list(again.state_dict()) == list(once.state_dict())
    for got, want in zip(steps(again), steps(once), strict=True):
        assert np.array_equal(got, want)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", CHAINS)
def test_only_the_input_is_kept_and_nothing_after_the_backward(kind, strategy):
    net, x = Recompute(CHAINS[kind](strategy)), normal(SHAPE)
    before = x.copy()
    with memory.ledger() as book:
        z = net(x)
        assert [(row.role, row.nbytes) for row in book.table()] == [("input", x.nbytes)]
        assert not x.flags.writeable
        assert z.flags.writeable
        net.backward(np.ones_like(z))
        assert book.live == 0
    assert x.flags.writeable
    assert np.array_equal(x, before)


def test_backwards_of_several_calls_run_from_the_last():
    net, plain = Recompute(CHAINS["dropout"]("inplace")), Sequential(CHAINS["dropout"]("inplace"))
    results = []
    for each in (net, plain):
        z = [each(normal(SHAPE, seed)) for seed in range(2)]
        results.append([each.backward(normal(z[1].shape, seed)) for seed in range(2)])
    assert np.array_equal(results[0], results[1])


def test_inside_no_grad_nothing_is_kept():
    net, x = Recompute(stem()), normal(SHAPE)
    with no_grad():
        net(x)
    assert x.flags.writeable
    with pytest.raises(RuntimeError, match="no_grad"):
        net.backward(np.ones((3, 4, 3, 4)))


def test_a_residual_block_does_not_fuse_with_it():
    branch = {"conv": conv(), "abn": abn(strategy="inplace", activation="identity")}
    block, plain = Residual(Recompute(branch)), Residual(Sequential(dict(branch)))
    x, dz = normal(SHAPE), normal(SHAPE, 1)
    np.testing.assert_allclose(block(x.copy()), plain(x.copy()), rtol=1e-12)
    np.testing.assert_allclose(block.backward(dz), plain.backward(dz), rtol=1e-9)
    with pytest.raises(TypeError, match="residual"):
        block.branch(x, residual=x)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", CHAINS)
def test_the_mode_is_that_of_the_call(kind, training):
    found = []
    for net in (Recompute(CHAINS[kind]("inplace")), Sequential(CHAINS[kind]("inplace"))):
        z = net.train(training)(normal(SHAPE))
        net.train(not training)
        found.append(net.backward(np.ones_like(z)))
        assert not any(layer.training is training for _, layer in net.named_layers())
    assert np.array_equal(*found)


def test_a_backward_may_run_inside_no_grad():
    net, plain = Recompute(stem()), Sequential(stem())
    x = normal(SHAPE)
    z, want = net(x), plain(x.copy())
    with no_grad():
        assert np.array_equal(net.backward(np.ones_like(z)), plain.backward(np.ones_like(want)))


def test_input_that_is_no_array():
    for net in (Recompute(), Recompute(stem())):
        with pytest.raises(TypeError, match=r"x must be a numpy\.ndarray, got list"):
            net([[1.0]])


def test_recompute_does_not_overwrite_its_input():
    inner, x = abn(strategy="inplace"), normal(SHAPE)
    net, before = Recompute(inner), x.copy()
    assert inner.overwrites_input
    assert not net.overwrites_input
    np.testing.assert_allclose(Residual(net)(x), abn(strategy="standard")(x) + x, rtol=1e-12)
    assert np.array_equal(x, before)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layers", [(), (Dropout(0.5, rng=0),)], ids=["no layers", "dropout"])
def test_the_next_layer_may_overwrite_the_result(layers, training):
    found = []
    for kind in (Sequential, Recompute):
        net = Sequential(kind(*copy.deepcopy(layers)), abn(strategy="inplace")).train(training)
        z = net(normal(SHAPE))
        found.append([z.copy(), net.backward(np.ones_like(z))])
    assert np.array_equal(*found)


class Fails(Layer):
    def forward(self, ctx, x):
        return x + 1

    def gradients(self, ctx, dz, *, overwrite=False):
        raise ArithmeticError("on purpose")


def test_an_error_in_the_backward_releases_everything():
    dropout = Dropout(0.5, rng=0)
    net, x = Recompute(conv(), Fails(), abn(strategy="inplace"), dropout), normal(SHAPE)
    z = net(x)
    state = dropout.rng.bit_generator.state
    with pytest.raises(ArithmeticError):
        net.backward(np.ones_like(z))
    assert x.flags.writeable
    assert dropout.rng.bit_generator.state == state
    assert not any(layer.last_call for _, layer in net.named_layers())
    assert np.array_equal(net[2].num_batches_tracked, 1)


def test_a_resnet_with_a_recomputed_stem_is_the_same_network():
    x, found = normal((2, 3, 32, 32), dtype=np.float32), []
    for again in (False, True):
        net = models.resnet(3, 5, (1, 1), width=4, rng=0, recompute_stem=again)
        z = net(x.copy())
        found.append([z, net.backward(np.ones_like(z)), *(p.grad for p in net.parameters())])
        found[-1] += net.state_dict().values()
    assert all(map(np.array_equal, *found))


def test_several_inputs_and_results():
    class Product(Layer):
        def forward(self, ctx, x, y):
            ctx.save_for_backward(x=x, y=y)
            return x * y, y

        def gradients(self, ctx, dz, *, overwrite=False):
            return dz[0] * ctx.saved["y"], dz[0] * ctx.saved["x"] + dz[1]

    x, y = np.random.default_rng(0).normal(size=(2, 5, 3))
    layer = Recompute(Product())
    assert gradcheck(layer, [x, y]).ok
    assert not np.may_share_memory(layer(x, y)[1], y)
