"""Errors that must not pass silently: writes to saved arrays, a second backward, different shapes."""

import gc
import itertools
import threading
from contextlib import nullcontext

import numpy as np
import pytest
from entries import added, no_offers_remain, nothing_stays  # noqa: F401
from networks import OVERWRITING, STRATEGIES, abn, assert_close, blocks, chain, conv, normal, run

from inplace_abn import memory
from inplace_abn.layers import (
    Activation,
    AvgPool2d,
    Dropout,
    InPlaceABN,
    Layer,
    Residual,
    Sequential,
    no_grad,
)

SHAPE = (2, 4, 3, 3)


# ---- the lock ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", OVERWRITING)
def test_z_is_locked_until_the_backward_has_run(strategy):
    net, x = chain(strategy), normal(SHAPE)
    net.may_overwrite_input = True
    net(x)
    with pytest.raises(ValueError, match="read-only"):
        x += 1
    net.backward(normal(SHAPE))
    x += 1


def test_writing_to_z_before_the_backward_raises_an_error():
    layer, shortcut = InPlaceABN(4, dtype=np.float64), normal(SHAPE)
    z = layer(normal(SHAPE))
    with pytest.raises(ValueError, match="read-only"):
        z += shortcut


def test_every_saved_array_is_locked():
    layer, x = conv(), normal(SHAPE)
    layer(x)
    with pytest.raises(ValueError, match="read-only"):
        x += 1
    layer.backward(normal(SHAPE))
    x += 1


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize("strategy", ["standard", "checkpoint"])
@pytest.mark.parametrize("first", ["conv", "abn"])
def test_an_array_that_several_layers_keep_is_unlocked_by_the_last(first, strategy, order):
    layers, x = [conv(), abn(4, strategy), conv()], normal(SHAPE)
    if first == "abn":
        layers[:2] = layers[1::-1]
    for layer in layers:
        layer(x)
    for i in order:
        assert not x.flags.writeable
        layers[i].backward(normal(SHAPE))
    assert x.flags.writeable


@pytest.mark.parametrize("make", [conv, abn], ids=["conv", "abn"])
def test_read_only_arrays_stay_read_only(make):
    layer, x = make(), normal(SHAPE)
    x.flags.writeable = False
    layer(x)
    layer.backward(normal(SHAPE))
    assert not x.flags.writeable


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", blocks("standard"))
def test_nothing_is_locked_after_the_backward(kind, strategy):
    block, x = blocks(strategy)[kind], normal(SHAPE)
    z = block(x)
    block.backward(normal(SHAPE))
    assert x.flags.writeable
    assert z.flags.writeable
    assert added() == 0


def test_deleting_a_layer_unlocks_its_arrays():
    x = normal(SHAPE)
    net = chain("inplace")
    net(x)
    del net
    gc.collect()
    assert x.flags.writeable


def test_threads_that_share_a_batch():
    """Each thread has its own layers; the batch is unlocked when the last one is done."""
    x, dz, failures = normal((2, 4, 8, 8)), normal((2, 4, 8, 8), 1), []
    want = run(chain("checkpoint"), x, dz)

    def work():
        net = chain("checkpoint")
        for _ in range(20):
            net.zero_grad()
            net(x)
            if not np.array_equal(net.backward(dz), want["dx"]):
                failures.append("another gradient")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert x.flags.writeable


# ---- overlap -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", OVERWRITING)
def test_overwriting_the_input_of_a_convolution_names_both_layers(strategy):
    x = normal(SHAPE)
    net = Sequential({"keeps": conv(), "writes": abn(4, strategy)})
    net.keeps(x)
    before = x.copy()
    message = r"^writes \(ABN\): strategy .* writes in place, but keeps \(Conv2d\) keeps that .* 'input'"
    with pytest.raises(ValueError, match=message):
        net.writes(x)
    assert np.array_equal(x, before)
    assert net.writes.num_batches_tracked == 0
    net.keeps.backward(normal(SHAPE))
    net.writes(x)


@pytest.mark.parametrize("keeper", STRATEGIES)
def test_overwriting_an_array_of_another_normalization_names_both_layers(keeper):
    net = Sequential({"keeps": abn(4, keeper), "writes": InPlaceABN(4, dtype=np.float64)})
    x = normal(SHAPE)
    net.keeps(x)
    with pytest.raises(
        ValueError, match=r"writes \(InPlaceABN\).* keeps \(ABN\) keeps that memory as '(x|xhat|y|z)'"
    ):
        net.writes(x)


def test_overlapping_views_are_refused_and_adjacent_ones_are_not():
    buffer = normal((2, 8, 3, 3))
    keeps, writes = conv(), abn(4, "inplace")
    keeps(buffer[:, :4])
    writes(buffer[:, 4:])
    with pytest.raises(ValueError, match=r"writes in place, but (Conv2d|ABN) keeps that memory"):
        writes(buffer[:, 2:6])


def test_an_activation_in_place_is_refused_too():
    net = Sequential({"keeps": conv(), "writes": Activation(inplace=True)})
    x = normal(SHAPE)
    net.keeps(x)
    with pytest.raises(ValueError, match=r"writes \(Activation\): inplace=True .* keeps \(Conv2d\)"):
        net.writes(x)


# ---- shortcuts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_identity_shortcut_adds_the_original_x(strategy):
    block, x = Residual(chain(strategy)), normal(SHAPE)
    branch = chain("standard")(x.copy())
    np.testing.assert_allclose(block(x.copy()), branch + x, atol=1e-13)


class Own(Layer):
    """A user-defined container that does not copy its input."""

    def __init__(self, strategy):
        self.body = chain(strategy)

    def forward(self, ctx, x):
        return self.body(x)

    def gradients(self, ctx, dz, *, overwrite=False):
        return self.body.backward(dz, overwrite=overwrite)


CONTAINERS = {
    "Sequential": chain,
    "nested": lambda strategy: Sequential(Dropout(), Sequential(chain(strategy))).eval(),
    "Residual": lambda strategy: Residual(chain(strategy)),
    "projected": lambda strategy: Residual(conv(), conv(seed=1), preactivation=abn(4, strategy)),
    "a layer of one's own": Own,
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("recording", [True, False], ids=["training", "prediction"])
@pytest.mark.parametrize("make", CONTAINERS)
def test_containers_copy_the_array_of_the_caller(make, recording, strategy):
    """Slices of a data set are not changed unless the network may overwrite them."""
    images = normal((4, *SHAPE[1:]))
    before, net = images.copy(), CONTAINERS[make](strategy)
    images.flags.writeable = False  # such as numpy.load(..., mmap_mode="r")
    with nullcontext() if recording else no_grad():
        z = net(images[1:3])
    if recording:
        net.backward(normal(z.shape))
    assert np.array_equal(images, before)
    if make == "a layer of one's own":
        return
    images.flags.writeable, net.may_overwrite_input = True, True
    assert net.overwrites_input == (strategy in OVERWRITING)
    with nullcontext() if recording else no_grad():
        net(images[1:3])
    assert np.array_equal(images, before) == (strategy not in OVERWRITING)


@pytest.mark.parametrize("strategy", OVERWRITING)
def test_a_container_copies_once(strategy, monkeypatch):
    """Nested containers do not copy again, and single layers do not copy."""
    x, copies = normal(SHAPE), []
    with memory.ledger() as ledger, no_grad():
        monkeypatch.setattr(ledger, "temporary", lambda layer, nbytes: copies.append(layer))
        net = Sequential(Sequential(abn(4, strategy)), Sequential(abn(4, strategy), abn(4, strategy)))
        net(x)
        assert copies == ["Sequential"]
        before = x.copy()
        net[0][0](x)
    assert not np.array_equal(x, before)
    assert copies == ["Sequential"]


@pytest.mark.parametrize("kind", blocks("standard"))
def test_the_sum_is_not_written_over_saved_arrays(kind):
    """With layers around: the one before keeps the input, the one after keeps the result."""
    x, dz = normal(SHAPE), normal(SHAPE, 1)
    want = run(Sequential(conv(), blocks("standard")[kind], conv()), x, dz)
    for strategy in STRATEGIES:
        assert_close(run(Sequential(conv(), blocks(strategy)[kind], conv()), x, dz), want)


def test_a_branch_that_is_the_identity():
    block = Residual(Dropout()).eval()
    x, dz = normal(SHAPE), normal(SHAPE, 1)
    before = x.copy()
    assert_close(run(block, x, dz), {"z": 2 * x, "dx": 2 * dz})
    block(x)
    assert np.array_equal(x, before)


def test_a_branch_whose_result_is_kept_through_another_view():
    """A view made before the lock is writeable, but its memory must not be overwritten."""

    class Doubles(Layer):
        def forward(self, ctx, x):
            z = 2 * x
            view = z[...]
            ctx.save_for_backward(result=z)
            return view

        def gradients(self, ctx, dz, *, overwrite=False):
            return 2 * dz + 0 * ctx.saved["result"]

    block, x = Residual(Doubles()), normal(SHAPE)
    assert np.array_equal(block(x), 3 * x)
    assert np.array_equal(block.branch.last_call.saved["result"], 2 * x)


class PassesOn(Layer):
    """Returns the arrays that it gets."""

    returns_input = True

    def forward(self, ctx, x):
        return x

    def gradients(self, ctx, dz, *, overwrite=False):
        return dz


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_returned_dz_is_not_overwritten(strategy):
    for net in (
        Sequential(abn(4, strategy), PassesOn()),
        Residual(PassesOn()),
        Residual(PassesOn(), PassesOn()),
        Residual(PassesOn(), preactivation=abn(4, strategy)),
        Residual(PassesOn(), abn(4, "standard")),
        Residual(PassesOn(), conv(), preactivation=abn(4, strategy)),
        Residual(Sequential(conv(), abn(4, strategy)), PassesOn(), activation=PassesOn()),
    ):
        x, dz = normal(SHAPE), normal(SHAPE, 1)
        net(x)
        before = dz.copy()
        first = net.backward(dz).copy()
        assert np.array_equal(dz, before)
        net(normal(SHAPE))
        assert np.array_equal(net.backward(dz, overwrite=True), first)


def test_a_layer_that_overwrites_without_declaring_it_is_refused():
    class Hides(Layer):
        def __init__(self):
            self.abn = abn(4, "inplace")

        def forward(self, ctx, x):
            return self.abn(x)

    with pytest.raises(ValueError, match=r"branch.abn \(ABN\).* Residual keeps that memory as 'shortcut'"):
        Residual(Hides())(normal(SHAPE))


def test_a_branch_that_overwrites_the_input_of_the_projection_names_both_layers():
    block = Residual(chain("inplace"), conv(4, 4, 1))
    x = normal(SHAPE)
    before = x.copy()
    with pytest.raises(
        ValueError, match=r"branch.0 \(ABN\).* shortcut \(Conv2d\) keeps that memory as 'input'"
    ):
        block(x)
    assert np.array_equal(x, before)
    assert x.flags.writeable


def test_a_shortcut_that_keeps_nothing_runs_first():
    x, dz = normal(SHAPE), normal(SHAPE, 1)
    want, got = (run(Residual(chain(name), AvgPool2d(1)), x, dz) for name in ("standard", "inplace"))
    assert_close(got, want)
