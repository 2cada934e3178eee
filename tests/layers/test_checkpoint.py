"""Checkpoint strategies do not keep z, and recompute it: checks by ledger, tracemalloc, weak references."""

import gc
import tracemalloc
import weakref

import numpy as np
import pytest
from networks import CHECKPOINTS, STRATEGIES, abn, assert_close, blocks, chain, conv, normal, run

from inplace_abn import _core, memory
from inplace_abn.layers import (
    ABN,
    Conv2d,
    Flatten,
    InPlaceABN,
    LayerContext,
    Linear,
    Residual,
    Sequential,
    no_grad,
    saved_arrays,
)

SHAPE = (16, 8, 64, 64)
BUFFER = 4 * int(np.prod(SHAPE))


def float32_chain(strategy, units=1):
    parts = [(ABN(8, strategy=strategy), Conv2d(8, 8, 1, rng=0)) for _ in range(units)]
    return Sequential(*(layer for part in parts for layer in part))


def traced(net):
    """Return the bytes kept by a forward: by the ledger; by tracemalloc, without x and z of the network."""
    x, net.may_overwrite_input = normal(SHAPE, dtype=np.float32), True
    net(x.copy())  # one-time allocations of Python and NumPy
    net.release()
    gc.collect()
    tracemalloc.start()
    try:
        with memory.ledger() as ledger:
            z = net(x)
        gc.collect()
        return ledger.live, tracemalloc.get_traced_memory()[0] - z.nbytes
    finally:
        tracemalloc.stop()
        net.release()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_abn_with_a_convolution_keeps_one_buffer_or_two_with_standard(strategy):
    live, in_all = traced(float32_chain(strategy))
    buffers = 2 if strategy == "standard" else 1
    assert live == buffers * BUFFER
    assert in_all == pytest.approx((buffers - 1) * BUFFER, abs=0.01 * live)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_residual_block_of_the_paper_keeps_three_buffers_or_six_with_standard(strategy):
    live, in_all = traced(Residual(float32_chain(strategy, 3)))
    buffers = 6 if strategy == "standard" else 3
    assert live == buffers * BUFFER
    assert in_all == pytest.approx((buffers - 1) * BUFFER, abs=0.01 * live)


def test_z_and_its_reshaped_view_are_one_buffer():
    net, x = Sequential(abn(4, "inplace"), Flatten(), Linear(36, 5, dtype=np.float64)), normal((2, 4, 3, 3))
    with memory.ledger() as ledger:
        net(x)
    assert ledger.live == x.nbytes


@pytest.mark.parametrize("strategy", CHECKPOINTS)
def test_the_convolution_does_not_keep_z(strategy):
    first, second, x = abn(4, strategy), conv(), normal((2, 4, 3, 3))
    z = first(x)
    second(z)
    z_was, gone = z.copy(), weakref.ref(z)
    del z
    assert gone() is None
    np.testing.assert_allclose(second.last_call.saved["input"], z_was, rtol=1e-12)


@pytest.mark.parametrize("strategy", CHECKPOINTS)
def test_the_convolution_frees_the_recomputed_z(strategy):
    net = chain(strategy)
    net(normal((2, 4, 3, 3)))
    ctx = net[1].last_call
    recomputed = weakref.ref(ctx.saved["input"])
    assert recomputed() is not None
    net[1].backward(normal((2, 4, 3, 3)))
    assert recomputed() is None


@pytest.mark.parametrize("strategy", CHECKPOINTS)
def test_the_ledger_lists_recomputed_arrays_as_temporaries(strategy, monkeypatch):
    net, dz = chain(strategy), normal((2, 4, 3, 3))
    net(normal((2, 4, 3, 3)))
    with memory.ledger() as ledger:
        reported = []
        monkeypatch.setattr(ledger, "temporary", lambda layer, nbytes: reported.append((layer, nbytes)))
        net.backward(dz)
    assert ("1 (Conv2d)", dz.nbytes) in reported


@pytest.mark.parametrize("strategy", CHECKPOINTS)
def test_two_convolutions_that_share_z(strategy):
    """As in a block with a projection: neither keeps z, and both gradients are correct."""
    want = run(blocks("standard")["preactivation, projected"], normal((2, 4, 3, 3)), normal((2, 4, 3, 3), 1))
    block = blocks(strategy)["preactivation, projected"]
    assert_close(run(block, normal((2, 4, 3, 3)), normal((2, 4, 3, 3), 1)), want)
    with memory.ledger() as ledger:
        block(normal((2, 4, 3, 3)))
    assert ledger.live == 2 * normal((2, 4, 3, 3)).nbytes  # x of both normalizations


@pytest.mark.parametrize("strategy", CHECKPOINTS)
def test_a_reshaped_z_is_recomputed_too(strategy):
    x, dz = normal((2, 4, 3, 3)), normal((2, 5), 1)
    linear = Linear(36, 5, dtype=np.float64, rng=0)
    want = run(Sequential(abn(), Flatten(), linear), x, dz)
    net = Sequential(abn(4, strategy), Flatten(), linear)
    assert_close(run(net, x, dz), want)
    with memory.ledger() as ledger:
        net(x.copy())
    assert ledger.live == x.nbytes


@pytest.mark.parametrize(
    "part", [np.s_[:, :2], np.s_[::-1], np.s_[:, :, 1:], np.s_[:, 1:, ::2], np.s_[0], None]
)
def test_views_of_z(part):
    """A view that starts at the address of z is recomputed; any other view is kept."""
    layer, ctx = abn(4, "checkpoint"), LayerContext()
    z = layer(normal((2, 4, 3)))
    ctx.save_for_backward(part=z[part], bits=z[part].view(np.int64))
    assert np.array_equal(ctx.saved["part"], z[part])
    assert np.array_equal(ctx.saved["bits"], z[part].view(np.int64))
    assert np.shares_memory(ctx.saved["part"], z) == (z[part].ctypes.data != z.ctypes.data)


@pytest.mark.parametrize("strategy", CHECKPOINTS)
def test_channels_last(strategy):
    x, dz = normal((2, 3, 3, 4)), normal((2, 3, 3, 4), 1)
    want, got = (
        run(Sequential(abn(4, name, channel_axis=-1), conv(channel_axis=-1)), x, dz)
        for name in ("standard", strategy)
    )
    assert_close(got, want)


# ---- z is not overwritten ----------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", CHECKPOINTS)
def test_z_is_locked_while_its_context_can_recompute_it(strategy):
    layer = abn(4, strategy)
    z = layer(normal((2, 4, 3)))
    with pytest.raises(ValueError, match="read-only"):
        z += 1
    layer.backward(normal((2, 4, 3)))
    z += 1


@pytest.mark.parametrize("strategy", CHECKPOINTS)
def test_z_is_unlocked_after_the_backward(strategy):
    layer, ctx = abn(4, strategy), LayerContext()
    z = layer(normal((2, 4, 3)))
    layer.backward(normal((2, 4, 3)))
    ctx.save_for_backward(input=z)
    assert ctx.saved["input"] is z


def test_an_in_place_layer_may_overwrite_z():
    """Another convolution of z recomputes the overwritten values."""
    x, dz = normal((2, 4, 3, 3)), normal((2, 4, 3, 3), 1)
    results = []
    for strategies in (("standard", "standard"), ("checkpoint", "inplace")):
        first, beside, second = abn(4, strategies[0]), conv(), abn(4, strategies[1])
        z = first(x.copy())
        a = beside(z)
        b = second(z)
        results.append([a, b.copy()])
        dz_first = second.backward(dz) + beside.backward(dz)
        results[-1].append(first.backward(dz_first))
    for got, want in zip(*results, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-13)


def test_a_convolution_after_the_in_place_layer_keeps_the_new_z():
    x, dz = normal((2, 4, 3, 3)), normal((2, 4, 3, 3), 1)
    want = run(Sequential(abn(), abn(), conv()), x, dz)
    assert_close(run(Sequential(abn(4, "checkpoint"), abn(4, "inplace"), conv()), x, dz), want)


def test_a_context_may_outlive_the_layer_that_recomputes_z():
    layer, ctx = abn(4, "checkpoint"), LayerContext()
    z = layer(normal((2, 4, 3)))
    ctx.save_for_backward(input=z)
    z_was = z.copy()
    del z, layer
    gc.collect()
    assert np.array_equal(ctx.saved["input"], z_was)


def test_a_backward_in_the_wrong_order_is_refused():
    net = chain("checkpoint")
    net(normal((2, 4, 3, 3)))
    net[0].backward(normal((2, 4, 3, 3)))
    with pytest.raises(
        RuntimeError, match=r"1 \(Conv2d\): ctx keeps nothing any more, it was freed by backward"
    ):
        net[1].backward(normal((2, 4, 3, 3)))
    net.release()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_grad_keeps_nothing(strategy):
    before = _core.saved_count()
    net = chain(strategy, 2)
    with no_grad(), memory.ledger() as ledger:
        z = net(normal((2, 4, 3, 3)))
    assert ledger.live == ledger.kept == 0
    assert z.flags.writeable
    assert _core.saved_count() == before
    assert not saved_arrays._offers


def test_in_place_halves_the_bytes_kept_by_a_chain_in_float32():
    standard, inplace = (
        traced(float32_chain("standard"))[0],
        traced(Sequential(InPlaceABN(8), Conv2d(8, 8, 1)))[0],
    )
    assert inplace == standard // 2
