"""The U-Net: gradients in every layout, and kept memory in bytes, with and without copies."""

import gc
import tracemalloc

import numpy as np
import pytest
from networks import as_layout, normal

from inplace_abn import gradcheck, layers, memory, models
from inplace_abn.models import unet

WIDTHS = (8, 16, 32)


def kept(strategy, monkeypatch=None):
    if monkeypatch is not None:  # what a network without out= does
        monkeypatch.setattr(
            unet, "concat", lambda arrays, channel_axis, out: layers.concat(arrays, channel_axis=channel_axis)
        )
    net = models.UNet(1, 2, widths=WIDTHS, strategy=strategy, rng=0)
    x = np.ones((2, 1, 16, 16), np.float32)
    with memory.ledger() as book:
        z = net(x)
        count = book.kept
        net.backward(np.ones_like(z))
    assert book.live == 0
    return count


def expected(joined_once):
    """Return the bytes that the in-place network keeps: z of every normalization, and the joined arrays."""
    floats = 2 * 16 * 16  # the image
    indices = 0
    for level, width in enumerate(WIDTHS):
        pixels = 2 * (16 >> level) ** 2
        if level < len(WIDTHS) - 1:
            floats += 3 * width * pixels  # abn1 of the encoder, abn1 and abn2 of the decoder
            floats += (2 if joined_once else 3) * width * pixels  # joined; and abn2 of the encoder
            floats += width * pixels // 4  # pooled, the input of the next level
            indices += width * pixels // 4
        else:
            floats += 2 * width * pixels
    return 4 * floats + indices


def test_joined_features_are_kept_once(monkeypatch):
    standard, in_place, copied = kept("standard"), kept("inplace"), kept("inplace", monkeypatch)
    assert in_place == expected(joined_once=True)
    assert copied == expected(joined_once=False)
    assert in_place < 0.58 * standard
    assert 0.66 * standard < copied


def test_the_process_keeps_no_more_than_the_ledger_counts():
    net = models.UNet(1, 2, widths=WIDTHS, rng=0)
    x = np.ones((4, 1, 16, 16), np.float32)
    net.backward(net(x))
    net.zero_grad()
    gc.collect()
    tracemalloc.start()
    with memory.ledger() as book:
        z = net(x)
    current, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    net.release()
    assert book.kept < current < book.kept + z.nbytes + 150_000  # with z, and objects


@pytest.mark.parametrize("strategy", ["standard", "checkpoint_xhat", "pre_activation", "inplace"])
def test_gradients_against_finite_differences(strategy):
    net = models.UNet(2, 3, widths=(2, 3), strategy=strategy, dtype=np.float64, rng=0)
    report = gradcheck(net, normal((2, 2, 4, 4)), samples=1, modes="train")
    assert report.ok, report


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("memory_axis", [1, -1])
def test_every_layout_gives_the_same(channel_axis, memory_axis):
    nchw, dz = normal((2, 2, 8, 8)), normal((2, 3, 8, 8), 1)
    want = run(models.UNet(2, 3, widths=(2, 3), dtype=np.float64, rng=0), nchw, dz)
    net = models.UNet(2, 3, widths=(2, 3), dtype=np.float64, rng=0, channel_axis=channel_axis)
    x, dz = (as_layout(array, channel_axis, memory_axis) for array in (nchw, dz))
    z, dx, *gradients = run(net, x, dz)
    assert np.argsort(dx.strides).tolist() == np.argsort(x.strides).tolist()
    found = np.moveaxis(z, channel_axis, 1), np.moveaxis(dx, channel_axis, 1), *gradients
    for got, one in zip(found, want, strict=True):
        np.testing.assert_allclose(got, one, atol=1e-12)


def run(net, x, dz):
    z = net(x)
    dx = net.backward(dz)
    return [z, dx, *(parameter.grad for parameter in net.parameters())]


@pytest.mark.parametrize(("axis", "shape"), [(1, (1, 2, 8, 6)), (-1, (1, 6, 8, 2))])
def test_images_of_a_size_that_does_not_halve_are_refused(axis, shape):
    net = models.UNet(2, 3, widths=(4, 4, 4), channel_axis=axis)
    with pytest.raises(ValueError, match="height and width must be multiples of 4 for 3 levels, got shape"):
        net(np.ones(shape, np.float32))
