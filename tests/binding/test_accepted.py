"""Unusual but valid arguments are accepted."""

import numpy as np
import pytest
from batches import LAYOUTS, random_batch
from keywords import as_parameters
from numpy.lib.stride_tricks import as_strided
from refusals import SHAPE

from inplace_abn import functional

pytestmark = pytest.mark.essential


def test_interleaved_slices_do_not_overlap():
    buffer = np.random.default_rng(0).normal(size=(4, 6, 5, 2)).astype(np.float32)
    parts = np.linspace(1, 2, 12).reshape(3, 4).astype(np.float32)
    whole_x = buffer[:, ::2].copy()
    want, want_ctx = functional.forward(whole_x, **as_parameters(c.copy() for c in parts.T))
    got, ctx = functional.forward(buffer[:, ::2], **as_parameters(parts.T))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    dz = buffer[:, 1::2]
    expected = functional.backward(want_ctx, dz.copy())
    dx, dweight, _ = functional.backward(ctx, dz, overwrite=True)
    assert dx is dz
    np.testing.assert_allclose(dx, expected.dx, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(dweight, expected.dweight, rtol=1e-5)


def test_a_weight_between_the_samples_of_x_does_not_overlap():
    buffer = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)
    z, _ = functional.forward(buffer[:, 0], weight=buffer[1, 1])
    again = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)
    want, _ = functional.forward(again[:, 0].copy(), weight=again[1, 1])
    np.testing.assert_allclose(z, want, rtol=1e-5)


def test_a_memmap_is_an_array(tmp_path):
    batch = random_batch(SHAPE, "float32")
    want, _ = functional.forward(batch.x.copy())
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=SHAPE)
    x[...] = batch.x
    z, ctx = functional.forward(x)
    assert z is x
    assert np.array_equal(z, want)
    assert type(functional.backward(ctx, batch.dz).dx) is np.ndarray
    x[...] = batch.x
    z, _ = functional.forward(x, strategy="standard")
    assert type(z) is np.ndarray


def test_strides_of_dimensions_of_size_one_do_not_matter():
    for shape, strides in [
        ((4, 3, 1, 10), (30, 10, 77, 1)),
        ((4, 3, 10, 1), (30, 10, 1, 0)),
        ((1, 3, 5, 2), (-5, 10, 2, 1)),
        ((4, 1, 5, 2), (10, 0, 2, 1)),
        ((4, 3, 1, 1), (3, 1, 0, -3)),
        ((1, 30), (0, 1)),
        ((30, 1), (1, 0)),
    ]:
        plain = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        odd = as_strided(np.zeros(200, np.float32), shape, [4 * s for s in strides])
        odd[...] = plain
        one, zero = np.ones(shape[1], np.float32), np.zeros(shape[1], np.float32)
        options = {"training": False, "running_mean": zero, "running_var": one}
        want, want_ctx = functional.forward(plain, **options)
        got, ctx = functional.forward(odd, **options)
        assert got is odd
        assert np.array_equal(got, want)
        dz = np.ones(shape, np.float32)
        assert np.array_equal(functional.backward(ctx, dz).dx, functional.backward(want_ctx, dz).dx)


@pytest.mark.parametrize("strategy", ["standard", "checkpoint_xhat", "pre_activation"])
@pytest.mark.parametrize("shape", [(4, 3, 5, 2), (4, 3, 5), (4, 3), (2, 3, 2, 3, 2)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_new_arrays_have_the_layout_of_x(layout, shape, strategy):
    batch = random_batch(shape, "float32")
    x, axis = LAYOUTS[layout](batch.x)
    z, ctx = functional.forward(x, strategy=strategy, channel_axis=axis)
    z_again = ctx.recompute()
    dx, _, _ = functional.backward(ctx, LAYOUTS[layout](batch.dz)[0])
    like = np.empty(shape, x.dtype)
    if layout.startswith("last"):
        like = np.moveaxis(np.empty(np.moveaxis(x, axis, -1).shape, x.dtype), -1, axis)
    for fresh in (z, z_again, dx):
        assert fresh.strides == like.strides
        assert fresh.base is None
        assert fresh.flags.writeable
