"""Transposed convolution: against a definition with loops, finite differences and PyTorch; scratch; refusals.

Layouts and half types: see test_ops_convolution_layouts.py.
"""

import tracemalloc

import numpy as np
import pytest
from convolutions import CASES, arrays_of, transposed_by_definition
from operations import EPS, Context, assert_gradients, laid_out, normal, run, strided

from inplace_abn.ops import _convolve, _depthwise, conv2d, conv_transpose2d

# A case as for conv2d, and output_padding.
MORE = [
    (((2, 2), 2, 0, 1, 1, 4, 3), 1),
    (((3, 3), (2, 3), (1, 0), 1, 2, 4, 6), (0, 2)),
    (((3, 3), 3, 1, 1, 4, 4, 4), 2),
    (((3, 3), 1, 1, 3, 1, 2, 3), (2, 1)),
    (((3, 2), (1, 2), 0, (1, 4), 1, 3, 2), (0, 3)),
    (((1, 1), 1, 0, 1, 1, 2, 6), 0),
]
TABLE = [(case, 0) for case in CASES] + MORE


def arguments_of(case, output_padding, dtype="float64", shape=(3, 7, 8)):
    x, weight, bias, settings = arrays_of(case, dtype, shape, transposed=True)
    return x, weight, bias, settings | {"output_padding": output_padding}


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize(("case", "output_padding"), TABLE, ids=str)
def test_forward_equals_the_definition(case, output_padding, channel_axis):
    x, weight, bias, settings = arguments_of(case, output_padding)
    arrays = laid_out(x, channel_axis), weight, bias
    z, _, _ = run(conv_transpose2d, *arrays, channel_axis=channel_axis, **settings)
    want = transposed_by_definition(x, weight, bias, **settings)
    np.testing.assert_allclose(np.moveaxis(z, channel_axis, 1), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize(("case", "output_padding"), MORE, ids=str)
def test_gradients_equal_finite_differences(case, output_padding, channel_axis):
    x, weight, bias, settings = arguments_of(case, output_padding, shape=(2, 4, 3))
    arrays = [laid_out(x, channel_axis), weight, bias]
    assert_gradients(conv_transpose2d, arrays, channel_axis=channel_axis, **settings)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_the_adjoint_of_the_convolution(case):
    """<conv2d(x), y> = <x, conv_transpose2d(y)> for the same weight, and so for all that is linear."""
    x, weight, _, settings = arrays_of(case)
    z = conv2d.forward(Context(), x, weight, **settings)
    y = normal(z.shape, seed=4)
    back, (dy, dweight, _), _ = run(conv_transpose2d, y, weight, dz=None, **settings)
    kept = x[:, :, : back.shape[2], : back.shape[3]]  # windows may leave out the last rows and columns
    padded = np.zeros_like(x)
    padded[:, :, : back.shape[2], : back.shape[3]] = kept
    assert (conv2d.forward(Context(), padded, weight, **settings) * y).sum() == pytest.approx(
        (kept * back).sum(), rel=1e-12, abs=1e-10
    )
    assert dy.shape == y.shape
    assert dweight.shape == weight.shape


@pytest.mark.torch
@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize(("case", "output_padding"), TABLE, ids=str)
def test_against_torch(case, output_padding, channel_axis, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x, weight, bias, settings = arguments_of(case, output_padding, dtype)
    tensors = [torch.tensor(a.astype(np.float64), requires_grad=True) for a in (x, weight, bias)]
    sizes = [torch.tensor(np.abs(a).astype(np.float64), requires_grad=True) for a in (x, weight, bias)]
    result, size = (torch.nn.functional.conv_transpose2d(*t, **settings) for t in (tensors, sizes))
    dz = normal(tuple(result.shape), dtype, 4)
    result.backward(torch.tensor(dz.astype(np.float64)))
    size.backward(torch.tensor(np.abs(dz).astype(np.float64)))
    z, (dx, dweight, dbias), _ = run(
        conv_transpose2d, laid_out(x, channel_axis), weight, bias, dz=laid_out(dz, channel_axis),
        channel_axis=channel_axis, **settings,
    )  # fmt: skip
    got = np.moveaxis(z, channel_axis, 1), np.moveaxis(dx, channel_axis, 1), dweight, dbias
    # A sum of n products in any order is off by n * eps / 2 times the sum of their sizes, at most.
    pixels = dz.size // dz.shape[1]
    terms = weight[:, 0].size + 1, weight[0].size, pixels, pixels
    for ours, theirs, bound, n in zip(
        got, (result, *(t.grad for t in tensors)), (size, *(t.grad for t in sizes)), terms, strict=True
    ):
        error = np.abs(ours - theirs.detach().numpy())
        assert ours.dtype == dtype
        assert (error <= (n + 2) * EPS[dtype] * bound.detach().numpy()).all()


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("budget", [1, 300])
@pytest.mark.parametrize(("case", "output_padding"), [*TABLE[:5], *MORE], ids=str)
def test_results_do_not_depend_on_blocks_and_strides(case, output_padding, budget, channel_axis, monkeypatch):
    x, weight, bias, settings = arguments_of(case, output_padding)
    x = laid_out(x, channel_axis)
    want, wanted, dz = run(conv_transpose2d, x, weight, bias, channel_axis=channel_axis, **settings)
    for module, names in ((_convolve, ("SCRATCH", "BLOCK")), (_depthwise, ("BLOCK",))):
        for name in names:
            monkeypatch.setattr(module, name, budget)
    monkeypatch.setattr(_convolve, "SAMPLES", 0)
    others = strided(x), np.asfortranarray(weight), bias[::-1].copy()[::-1]
    z, gradients, _ = run(conv_transpose2d, *others, dz=strided(dz), channel_axis=channel_axis, **settings)
    np.testing.assert_allclose(z, want, rtol=0, atol=1e-12)
    for one, other in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize(("groups", "stride"), [(1, 2), (16, 2), (1, 1)])
def test_scratch_does_not_grow_with_the_batch(groups, stride, channel_axis, dtype):
    weight, found = normal((16, 16 // groups, 2, 2), "float32"), []
    for samples in (16, 32):
        x = laid_out(normal((samples, 16, 32, 32)).astype(dtype), channel_axis)
        ctx = Context()
        tracemalloc.start()
        z = conv_transpose2d.forward(ctx, x, weight, stride=stride, groups=groups, channel_axis=channel_axis)
        peak = tracemalloc.get_traced_memory()[1] - z.nbytes
        tracemalloc.stop()
        # Besides reported temporaries: small objects, and NumPy's buffers for casts and strided additions.
        assert peak <= ctx.scratch + 50_000 + (1 << 17)
        conv_transpose2d.backward(ctx, z)
        found.append(ctx.scratch)
    assert found[0] == found[1] <= 4 * 4 * _convolve.SCRATCH


@pytest.mark.parametrize("channel_axis", [1, -1])
def test_an_empty_batch(channel_axis):
    x = laid_out(np.zeros((0, 4, 5, 5)), channel_axis)
    arrays = x, np.ones((4, 6, 3, 3)), np.ones(6)
    z, (dx, dweight, dbias), _ = run(conv_transpose2d, *arrays, stride=2, channel_axis=channel_axis)
    assert z.shape == laid_out(np.zeros((0, 6, 11, 11)), channel_axis).shape
    assert dx.shape == x.shape
    assert not dweight.any()
    assert not dbias.any()


X, W = (2, 4, 5, 5), (4, 6, 3, 3)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"x": [1.0]}, TypeError, ["x must be a numpy.ndarray", "list"]),
        ({"x": np.zeros((2, 4, 5))}, ValueError, ["x must be of shape (N, C, H, W)", "(2, 4, 5)"]),
        ({"x": np.zeros((2, 3, 5, 5))}, ValueError, ["shape (4, 6, 3, 3)", "x of shape (2, 3, 5, 5)"]),
        ({"x": np.zeros((2, 4, 0, 5))}, ValueError, ["x with images of 0 x 5", "without pixels"]),
        ({"channel_axis": -1}, ValueError, ["weight of shape (4, 6, 3, 3)", "channel_axis=1"]),
        ({"channel_axis": 2}, ValueError, ["channel_axis must be 1", "2"]),
        ({"weight": np.zeros(W, "f4")}, TypeError, ["x is float64", "pass weight.astype(numpy.float64)"]),
        ({"groups": 3}, ValueError, ["groups=3 requires C = 4", "multiple of 3"]),
        ({"bias": np.zeros(5)}, ValueError, ["bias must be of shape (6,)", "groups=1", "(5,)"]),
        ({"stride": 0}, ValueError, ["stride must be at least 1, got 0"]),
        ({"padding": "same"}, TypeError, ["padding must be an integer, got 'same'"]),
        ({"padding": 4}, ValueError, ["images of 5 x 5 and padding (4, 4) gives images without pixels"]),
        ({"output_padding": 1}, ValueError, ["output_padding must be less than stride", "(1, 1)"]),
        ({"output_padding": (1, 2), "stride": 2}, ValueError, ["(1, 2) for stride (2, 2)"]),
    ],
)
def test_refusals(changes, kind, words):
    arguments = {"x": np.zeros(X), "weight": np.zeros(W), "bias": np.zeros(6)} | changes
    with pytest.raises(kind) as caught:
        conv_transpose2d.forward(Context(), **arguments)
    assert not [word for word in words if word not in str(caught.value)], str(caught.value)


def test_dz_of_another_shape_or_dtype_is_refused():
    ctx = Context()
    conv_transpose2d.forward(ctx, np.zeros(X), np.zeros(W))
    with pytest.raises(ValueError, match=r"dz must be of shape \(2, 6, 7, 7\), .* got \(2, 6, 5, 5\)"):
        conv_transpose2d.backward(ctx, np.zeros((2, 6, 5, 5)))
