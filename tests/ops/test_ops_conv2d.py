"""Convolution: against a definition with loops, finite differences and PyTorch; scratch memory; refusals."""

import itertools
import tracemalloc

import numpy as np
import pytest
from convolutions import CASES, arrays_of, by_definition
from operations import EPS, Context, assert_gradients, laid_out, normal, run, strided

from inplace_abn.ops import _convolve, _depthwise, conv2d
from inplace_abn.ops._windows import blocks


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_equals_the_definition(case, channel_axis):
    x, weight, bias, settings = arrays_of(case)
    z, _, _ = run(conv2d, laid_out(x, channel_axis), weight, bias, channel_axis=channel_axis, **settings)
    assert z.flags.c_contiguous
    want = by_definition(x, weight, bias, **settings)
    np.testing.assert_allclose(np.moveaxis(z, channel_axis, 1), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 5), (4, 3)])
@pytest.mark.parametrize("groups", [1, 4])
def test_padding_same_keeps_the_size_and_has_the_odd_zero_at_the_end(groups, kernel, channel_axis):
    x, weight, bias, settings = arrays_of((kernel, 1, 0, (1, 2), groups, 4, 4))
    zeros = [step * (length - 1) for step, length in zip((1, 2), kernel, strict=True)]
    padded = np.pad(x, ((0, 0), (0, 0), *((n // 2, n - n // 2) for n in zeros)))
    ctx = Context()
    same = settings | {"padding": "same", "channel_axis": channel_axis}
    z = conv2d.forward(ctx, laid_out(x, channel_axis), weight, bias, **same)
    want, (dx, *wanted), dz = run(conv2d, padded, weight, bias, dz=normal(x.shape, seed=6), **settings)
    np.testing.assert_allclose(np.moveaxis(z, channel_axis, 1), want, rtol=0, atol=1e-12)
    gradients = conv2d.backward(ctx, laid_out(dz, channel_axis))
    inside = tuple(slice(n // 2, n // 2 + size) for n, size in zip(zeros, x.shape[2:], strict=True))
    dx = dx[(..., *inside)]
    np.testing.assert_allclose(np.moveaxis(gradients[0], channel_axis, 1), dx, rtol=0, atol=1e-12)
    for one, other in zip(gradients[1:], wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-11)


def test_padding_valid_is_0():
    x, weight, bias, settings = arrays_of(CASES[1])
    want = conv2d.forward(Context(), x, weight, bias, **settings | {"padding": 0})
    z = conv2d.forward(Context(), x, weight, bias, **settings | {"padding": "valid"})
    assert (z == want).all()


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("case", CASES[:6] + CASES[9:10] + CASES[13:], ids=str)
def test_gradients_equal_finite_differences(case, channel_axis):
    x, weight, bias, settings = arrays_of(case, shape=(2, 6, 5))
    arrays = [laid_out(x, channel_axis), weight, bias]
    assert_gradients(conv2d, arrays, channel_axis=channel_axis, **settings)


@pytest.mark.torch
@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_torch(case, channel_axis, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x, weight, bias, settings = arrays_of(case, dtype)
    tensors = [torch.tensor(a.astype(np.float64), requires_grad=True) for a in (x, weight, bias)]
    sizes = [torch.tensor(np.abs(a).astype(np.float64), requires_grad=True) for a in (x, weight, bias)]
    result, size = (torch.nn.functional.conv2d(*t, *settings.values()) for t in (tensors, sizes))
    dz = normal(tuple(result.shape), dtype, 4)
    result.backward(torch.tensor(dz.astype(np.float64)))
    size.backward(torch.tensor(np.abs(dz).astype(np.float64)))
    z, (dx, dweight, dbias), _ = run(
        conv2d, laid_out(x, channel_axis), weight, bias, dz=laid_out(dz, channel_axis),
        channel_axis=channel_axis, **settings,
    )  # fmt: skip
    got = np.moveaxis(z, channel_axis, 1), np.moveaxis(dx, channel_axis, 1), dweight, dbias
    # A sum of n products in any order is off by n * eps / 2 times the sum of their sizes, at most.
    window, pixels = weight[0].size, dz.size // dz.shape[1]
    terms = window + 1, window * len(weight), pixels, pixels
    for ours, theirs, bound, n in zip(
        got, (result, *(t.grad for t in tensors)), (size, *(t.grad for t in sizes)), terms, strict=True
    ):
        error = np.abs(ours - theirs.detach().numpy())
        assert ours.dtype == dtype
        assert (error <= (n + 2) * EPS[dtype] * bound.detach().numpy()).all()


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("case", CASES[:9] + CASES[13:], ids=str)
def test_memory_of_any_strides(case, channel_axis):
    x, weight, bias, settings = arrays_of(case)
    settings["channel_axis"] = channel_axis
    x = laid_out(x, channel_axis)
    dz = normal(conv2d.forward(Context(), x, weight, bias, **settings).shape, seed=5)
    z, gradients, _ = run(conv2d, x, weight, bias, dz=dz, **settings)
    others = strided(x), np.asfortranarray(weight), bias[::-1].copy()[::-1]
    z2, gradients2, _ = run(conv2d, *others, dz=strided(dz), **settings)
    # The memory order of the operands' copies determines the order of BLAS's additions.
    np.testing.assert_allclose(z2, z, rtol=0, atol=1e-13)
    for one, other in zip(gradients, gradients2, strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-12)


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("budget", [1, 5000, 20000, 1 << 30])
@pytest.mark.parametrize("case", [*CASES[:4], CASES[10], *CASES[12:]], ids=str)
def test_results_do_not_depend_on_the_blocks(case, budget, channel_axis, monkeypatch):
    x, weight, bias, settings = arrays_of(case, shape=(5, 11, 9))
    arrays = laid_out(x, channel_axis), weight, bias
    want, wanted, dz = run(conv2d, *arrays, channel_axis=channel_axis, **settings)
    monkeypatch.setattr(_convolve, "SCRATCH", budget // 8)
    monkeypatch.setattr(_convolve, "BLOCK", budget // 8)
    monkeypatch.setattr(_convolve, "SAMPLES", 0)
    monkeypatch.setattr(_depthwise, "BLOCK", budget // 8)
    z, gradients, _ = run(conv2d, *arrays, dz=dz, channel_axis=channel_axis, **settings)
    np.testing.assert_allclose(z, want, rtol=0, atol=1e-12)
    for one, other in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("samples", "rows", "budget"), [*itertools.product((0, 1, 3, 8), (1, 5), (1, 20, 100))]
)
def test_blocks_cover_every_row_once_within_the_budget(samples, rows, budget):
    seen = np.zeros((samples, rows), int)
    for block in blocks(samples, rows, 10, budget):
        seen[block.samples, block.begin : block.end] += 1
        count = (block.samples.stop - block.samples.start) * (block.end - block.begin)
        assert count * 10 <= max(budget, 10)
    assert (seen == 1).all()


@pytest.mark.parametrize("overwrite", [True, False])
def test_arguments_are_not_changed(overwrite):
    x, weight, bias, settings = arrays_of(CASES[0])
    before = x.copy(), weight.copy(), bias.copy()
    _, _, dz = run(conv2d, x, weight, bias, overwrite=overwrite, **settings)
    for array, copy in zip((x, weight, bias), before, strict=True):
        assert (array == copy).all()
    assert (dz == 1).all()


def test_gradient_of_a_missing_bias_is_none():
    x, weight, bias, settings = arrays_of(CASES[1])
    with_bias, _, _ = run(conv2d, x, weight, 0 * bias, **settings)
    z, (_, _, dbias), _ = run(conv2d, x, weight, **settings)
    assert dbias is None
    assert (z == with_bias).all()


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("groups", [1, 4])
def test_many_outputs_of_a_1x1_window_take_no_scratch(groups, channel_axis):
    x = laid_out(normal((16, 16, 16, 16), "float32"), channel_axis)
    weight, ctx = normal((64, 16 // groups, 1, 1), "float32"), Context()
    scratch_of(ctx, x, weight, groups=groups, channel_axis=channel_axis)
    _, backward = scratch_of(ctx, x, weight, groups=groups, channel_axis=channel_axis)
    assert backward <= ctx.scratch + 50_000
    assert ctx.scratch <= 4 * weight.nbytes


@pytest.mark.parametrize("channel_axis", [1, -1])
def test_an_empty_batch(channel_axis):
    x = laid_out(np.zeros((0, 4, 5, 5)), channel_axis)
    z, (dx, dweight, dbias), _ = run(
        conv2d, x, np.ones((6, 4, 3, 3)), np.ones(6), padding=1, channel_axis=channel_axis
    )
    assert z.shape == laid_out(np.zeros((0, 6, 5, 5)), channel_axis).shape
    assert dx.shape == x.shape
    assert not dweight.any()
    assert not dbias.any()


def scratch_of(ctx, x, weight, **keywords):
    """Return the most bytes allocated beyond the results: in the forward, and in the backward."""
    tracemalloc.start()
    try:
        z = conv2d.forward(ctx, x, weight, **keywords)
        forward = tracemalloc.get_traced_memory()[1] - z.nbytes
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        dx, dweight, _ = conv2d.backward(ctx, z)
        return forward, tracemalloc.get_traced_memory()[1] - held - dx.nbytes - dweight.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("kernel", [1, 3])
def test_scratch_is_below_a_tenth_of_the_input(kernel, channel_axis):
    """Scratch is what NumPy allocates: float32, 64 to 64 channels, (8, 64, 56, 56).

    tracemalloc counts all threads of the process. Allocations of other threads do not occur in every
    repetition, so the minimum over several is the convolution's.
    """
    x = laid_out(normal((8, 64, 56, 56), "float32"), channel_axis)
    weight, ctx = normal((64, 64, kernel, kernel), "float32"), Context()
    found = [scratch_of(ctx, x, weight, padding=kernel // 2, channel_axis=channel_axis) for _ in range(4)]
    forward, backward = map(min, zip(*found, strict=True))
    assert forward < x.nbytes / 10
    assert backward < x.nbytes / 10
    # Reported temporaries, small objects, and NumPy's buffers for the addition of strided arrays.
    assert max(forward, backward) <= ctx.scratch + 50_000 + (1 << 16)
    assert kernel > 1 or forward < 50_000


def test_scratch_does_not_grow_with_the_batch():
    weight, found = normal((8, 8, 3, 3)), []
    for samples in (64, 256):
        ctx = Context()
        x = normal((samples, 8, 32, 32))
        conv2d.backward(ctx, conv2d.forward(ctx, x, weight, padding=1))
        found.append(ctx.scratch)
    assert found[0] == found[1] <= 8 * _convolve.SCRATCH


X, W = (2, 4, 5, 5), (6, 4, 3, 3)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"x": [1.0]}, TypeError, ["x must be a numpy.ndarray", "list"]),
        ({"x": np.zeros(X, int)}, TypeError, ["x must be float32, float64", "pass x.astype(numpy.float32)"]),
        ({"x": np.zeros(X, ">f8")}, TypeError, ["ml_dtypes.bfloat16 in native byte order"]),
        ({"x": np.zeros((2, 4, 5))}, ValueError, ["x must be of shape (N, C, H, W)", "(2, 4, 5)"]),
        ({"x": np.zeros((2, 3, 5, 5))}, ValueError, ["(6, 4, 3, 3) requires C = 4; x of shape (2, 3, 5"]),
        ({"channel_axis": -1}, ValueError, ["weight of shape (6, 4, 3, 3)", "x of shape (2, 4, 5, 5)"]),
        ({"channel_axis": 2}, ValueError, ["channel_axis must be 1", "2"]),
        ({"weight": np.zeros(W, "f4")}, TypeError, ["x is float64", "pass weight.astype(numpy.float64)"]),
        ({"weight": np.zeros((6, 4, 3))}, ValueError, ["weight must be of shape (O,", "(6, 4, 3)"]),
        ({"groups": 2}, ValueError, ["groups=2 requires C = 8", "multiple of 2", "x of shape (2, 4, 5, 5)"]),
        ({"groups": 0}, ValueError, ["groups must be at least 1, got 0"]),
        ({"bias": np.zeros(5)}, ValueError, ["bias must be of shape (6,)", "(6, 4, 3, 3)", "(5,)"]),
        ({"stride": 0}, ValueError, ["stride must be at least 1, got 0"]),
        ({"stride": (1, 2, 3)}, ValueError, ["stride must be one integer or two", "(1, 2, 3)"]),
        ({"padding": -1}, ValueError, ["padding must be at least 0, got -1"]),
        ({"padding": "full"}, ValueError, ['padding must be "valid", "same" or', "got 'full'"]),
        ({"padding": "same", "stride": 2}, ValueError, ['"same" requires a stride of 1', "(2, 2)"]),
        ({"dilation": 1.5}, TypeError, ["dilation must be an integer, got 1.5"]),
        ({"dilation": 3}, ValueError, ["window of 7 x 7 pixels", "5 x 5"]),
    ],
)  # fmt: skip
def test_refusals(changes, kind, words):
    arguments = {"x": np.zeros(X), "weight": np.zeros(W), "bias": np.zeros(6)} | changes
    with pytest.raises(kind) as caught:
        conv2d.forward(Context(), **arguments)
    assert not [word for word in words if word not in str(caught.value)], str(caught.value)


@pytest.mark.parametrize(
    ("dz", "kind", "words"),
    [
        (None, TypeError, "dz must be a numpy.ndarray, got NoneType"),
        (np.zeros((2, 6, 3, 3), "f4"), TypeError, "dz must be float64, .*, got float32"),
        (np.zeros((2, 6, 5, 5)), ValueError, "dz must be of shape (2, 6, 3, 3), .* got (2, 6, 5, 5)"),
    ],
)
def test_dz_of_another_shape_or_dtype_is_refused(dz, kind, words):
    ctx = Context()
    conv2d.forward(ctx, np.zeros(X), np.zeros(W))
    with pytest.raises(kind, match=words.replace("(", r"\(").replace(")", r"\)")):
        conv2d.backward(ctx, dz)
