"""Memory layouts: views of all kinds give the same results as a contiguous array."""

import numpy as np
import pytest
from batches import DTYPES, ISAS, LAYOUTS, STRATEGIES, Run, lay_out, random_batch, run
from bounds import assert_backward, assert_forward, expected, expected_of_random, without_kinks
from cases import each
from hypothesis import given
from hypothesis import strategies as st

from inplace_abn import functional, reference
from inplace_abn.layers import InPlaceABN

SHAPES = [
    (6, 5),
    (6, 5, 7),
    (6, 5, 3, 4),
    (6, 5, 2, 3, 4),
    (6, 1, 4, 4),
    (1, 5, 4, 4),
    (6, 5, 1, 1),
    (6, 1),
    (6, 5, 1, 7),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("isa", ISAS)
@each(shape=SHAPES, strategy=STRATEGIES)
def test_two_to_five_dimensions(isa, layout, strategy, shape):
    want = expected_of_random(shape, "float32", "leaky_relu", reference.KEEPS[strategy])
    got = run(want.batch, layout, isa=isa, strategy=strategy)
    assert_forward(got, want)
    assert_backward(got, want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["first_sliced", "last_sliced"])
@each(strategy=STRATEGIES)
def test_memory_between_slices_is_not_written(layout, strategy, dtype):
    """lay_out fills it with 77, far from every value of the batch."""
    batch = random_batch((4, 17, 5, 3), dtype)
    x, axis = LAYOUTS[layout](batch.x)
    dz = lay_out(batch.dz, layout)
    around = [(view.base, view.base == 77) for view in (x, dz)]
    _, ctx = functional.forward(x, weight=batch.weight, bias=batch.bias, strategy=strategy, channel_axis=axis)
    functional.backward(ctx, dz, overwrite=True)
    for base, outside in around:
        assert outside.sum() == base.size - batch.x.size
        assert (base[outside] == 77).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_channels_first_view_of_channels_last_memory_runs_the_same_kernels(dtype):
    """As for PyTorch's channels_last tensors: bitwise equal, with gradients in the memory order of x."""
    batch = random_batch((4, 17, 5, 3), dtype)
    last, seen = run(batch, "last"), run(batch, "last_seen_as_first")
    for got, want in zip(seen, last, strict=True):
        assert np.array_equal(got, want)
    assert seen.dx.strides == last.dx.strides
    assert seen.dx.strides[1] == batch.x.itemsize


@pytest.mark.parametrize("strategy", ["standard", "checkpoint", "checkpoint_xhat", "pre_activation"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fresh_arrays_have_the_layout_of_x(layout, strategy):
    batch = random_batch((4, 17, 5, 3), "float32")
    x, axis = LAYOUTS[layout](batch.x)
    z, ctx = functional.forward(x, strategy=strategy, channel_axis=axis)
    dx = functional.backward(ctx, lay_out(batch.dz, layout)).dx
    contiguous = lay_out(batch.x, layout.removesuffix("_sliced"))
    assert z.strides == dx.strides == contiguous.strides


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1), (6, 5, 1, 1), (6, 2, 1)], ids=str)
@each(strategy=STRATEGIES, sliced=["x", "dz", "both"])
def test_single_positions_between_strides_of_both_kinds(shape, sliced, strategy):
    """With S = 1 a contiguous array is both channels-first and channels-last; a slice along C is not."""
    want = expected_of_random(shape, "float32", "leaky_relu", reference.KEEPS[strategy])
    batch = want.batch
    x = lay_out(batch.x, "first" if sliced == "dz" else "first_sliced")
    dz = lay_out(batch.dz, "first" if sliced == "x" else "first_sliced")
    z, ctx = functional.forward(x, weight=batch.weight, bias=batch.bias, strategy=strategy)
    got = Run(z.copy(), *functional.backward(ctx, dz))
    assert_forward(got, want)
    assert_backward(got, want)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_remedy_in_the_message_about_strides_works(layout):
    x, axis = LAYOUTS[layout](random_batch((4, 17, 5, 3), "float32").x)
    contiguous = np.ones(x.shape, np.float32)
    turned = np.moveaxis(np.ones_like(np.moveaxis(x, axis, -axis), order="C"), -axis, axis)
    other = contiguous if layout == "last_seen_as_first" else turned
    for unlike in (other, np.ones(x.shape, np.float32, order="F"), np.ones_like(x)[::-1]):
        layer = InPlaceABN(17, activation="identity", channel_axis=axis)
        like_x = np.empty_like(x)
        like_x[...] = unlike
        message = r"strides .* in bytes, channel_axis=-?1; copy it into numpy.empty_like\(x\)$"
        with pytest.raises(ValueError, match=f"residual .*{message}"):
            layer(x.copy(order="K"), residual=unlike)
        layer(x.copy(order="K"), residual=like_x)
        with pytest.raises(ValueError, match=f"dz .*{message}"):
            layer.backward(unlike)
        layer.backward(like_x)


def test_strides_of_dimensions_of_size_one_do_not_matter():
    batch = random_batch((4, 5, 1, 7), "float32")
    odd = np.lib.stride_tricks.as_strided(batch.x.copy(), (4, 5, 1, 7), (140, 28, 4000, 4))
    want, _ = functional.forward(batch.x.copy())
    assert np.array_equal(functional.forward(odd)[0], want)
    one = np.lib.stride_tricks.as_strided(batch.x[:1].copy(), (1, 5, 1, 7), (12, 28, 8, 4))
    want, _ = functional.forward(batch.x[:1].copy())
    assert np.array_equal(functional.forward(one)[0], want)


@given(
    shape=st.tuples(st.integers(2, 6), st.integers(1, 20), st.integers(1, 6), st.integers(1, 6)),
    steps=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    starts=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dtype=st.sampled_from(["float32", "float64", "float16"]),
    strategy=st.sampled_from(STRATEGIES),
)
def test_any_slice_along_samples_and_channels(shape, steps, starts, dtype, strategy):
    samples, channels, *spatial = shape
    batch = random_batch.__wrapped__(shape, dtype)
    larger_shape = (starts[0] + samples * steps[0], starts[1] + channels * steps[1], *spatial)

    def sliced(a):
        larger = np.zeros(larger_shape, a.dtype)
        view = larger[starts[0] :: steps[0], starts[1] :: steps[1]][:samples, :channels]
        view[...] = a
        return view

    keeps = reference.KEEPS[strategy]
    batch = without_kinks(batch, dtype, keeps)
    x, dz = sliced(batch.x), sliced(batch.dz)
    z, ctx = functional.forward(x, weight=batch.weight, bias=batch.bias, strategy=strategy)
    got = Run(z.copy(), *functional.backward(ctx, dz))
    want = expected(batch, dtype, keeps, "leaky_relu")
    assert_forward(got, want)
    assert_backward(got, want)
