"""Bilinear and nearest upsampling: small examples, finite differences, PyTorch; refusals."""

import numpy as np
import pytest
from operations import EPS, Context, assert_gradients, laid_out, normal, run, strided

from inplace_abn.ops import upsample_bilinear2d, upsample_nearest2d

TARGETS = [
    {"scale_factor": 2},
    {"scale_factor": (1.7, 3)},
    {"scale_factor": 0.6},
    {"size": 7},
    {"size": (12, 5)},
    {"size": (2, 1)},
]


#: The operations with their options, and PyTorch's.
MODES = {
    "bilinear": (upsample_bilinear2d, {}, {"mode": "bilinear", "align_corners": False}),
    "corners": (upsample_bilinear2d, {"align_corners": True}, {"mode": "bilinear", "align_corners": True}),
    "nearest": (upsample_nearest2d, {}, {"mode": "nearest"}),
}


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_gradients_equal_finite_differences(mode, target, channel_axis):
    operation, options, _ = MODES[mode]
    x = laid_out(normal((2, 2, 4, 5)), channel_axis)
    assert_gradients(operation, [x], channel_axis=channel_axis, **options, **target)


@pytest.mark.torch
@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_against_torch(mode, target, channel_axis, dtype):
    operation, options, theirs = MODES[mode]
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x = np.abs(normal((3, 4, 6, 5), dtype))
    tensor = torch.tensor(x.astype(np.float64), requires_grad=True)
    result = torch.nn.functional.interpolate(tensor, **theirs, **target)
    dz = np.abs(normal(tuple(result.shape), dtype, 2))
    result.backward(torch.tensor(dz.astype(np.float64)))
    z, (dx,), _ = run(
        operation, laid_out(x, channel_axis), dz=laid_out(dz, channel_axis), channel_axis=channel_axis,
        **options, **target,
    )  # fmt: skip
    # All terms are positive, so no digits cancel. An output sums 2 x 2 products, a gradient up to 7 x 7. A
    # weight is a difference of positions: its error is some units in the last place of 1.
    assert np.abs(np.moveaxis(z, channel_axis, 1) - result.detach().numpy()).max() <= 8 * EPS[dtype] * x.max()
    most = tensor.grad.numpy().max()
    assert np.abs(np.moveaxis(dx, channel_axis, 1) - tensor.grad.numpy()).max() <= 20 * EPS[dtype] * most
    assert z.dtype == dx.dtype == dtype


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("operation", [upsample_bilinear2d, upsample_nearest2d], ids=["bilinear", "nearest"])
def test_memory_of_any_strides(operation, channel_axis):
    x = laid_out(normal((3, 4, 6, 5)), channel_axis)
    z, (dx,), dz = run(operation, x, scale_factor=2, channel_axis=channel_axis)
    z2, (dx2,), _ = run(operation, strided(x), dz=strided(dz), scale_factor=2, channel_axis=channel_axis)
    np.testing.assert_allclose(z2, z, rtol=0, atol=1e-14)
    np.testing.assert_allclose(dx2, dx, rtol=0, atol=1e-14)


def test_weights_of_each_pixel_sum_to_1():
    z, (dx,), _ = run(upsample_bilinear2d, np.full((1, 2, 3, 4), 2.5), size=(7, 11))
    np.testing.assert_allclose(z, 2.5, rtol=1e-15)
    np.testing.assert_allclose(dx.sum(axis=(2, 3)), 7 * 11, rtol=1e-14)


def test_it_keeps_no_array_and_needs_scratch_for_one_sample():
    ctx = Context()
    upsample_bilinear2d.forward(ctx, normal((50, 3, 4, 4)), scale_factor=2)
    assert not ctx.saved
    assert ctx.scratch == 3 * 8 * 4 * 8


@pytest.mark.parametrize("scale_factor", [2, 3, (1, 2)])
def test_nearest_copies_pixels_that_are_not_finite(scale_factor):
    x = normal((2, 3, 4, 5))
    x[0, 0, 1, 1], x[1, 1, 2, 2] = np.nan, np.inf
    z, (dx,), _ = run(upsample_nearest2d, x, scale_factor=scale_factor)
    down, across = scale_factor if isinstance(scale_factor, tuple) else (scale_factor, scale_factor)
    np.testing.assert_array_equal(z, x.repeat(down, axis=2).repeat(across, axis=3))
    assert (dx == down * across).all()


@pytest.mark.parametrize("before", range(1, 40))
def test_sources_of_nearest_are_inside_the_image(before):
    for after in range(1, 3 * before):
        z = upsample_nearest2d.forward(
            Context(), np.arange(float(before)).reshape(1, 1, 1, -1), size=(1, after)
        )
        want = np.minimum(np.floor(np.arange(after, dtype="f4") * np.float32(before / after)), before - 1)
        np.testing.assert_array_equal(z[0, 0, 0], want)


@pytest.mark.parametrize("operation", [upsample_bilinear2d, upsample_nearest2d], ids=["bilinear", "nearest"])
def test_an_empty_batch(operation):
    z, (dx,), _ = run(operation, np.zeros((0, 3, 4, 4)), scale_factor=2)
    assert z.shape == (0, 3, 8, 8)
    assert dx.shape == (0, 3, 4, 4)


@pytest.mark.parametrize(
    ("keywords", "kind", "words"),
    [
        ({}, ValueError, "either size or scale_factor"),
        ({"size": 2, "scale_factor": 2}, ValueError, "either size or scale_factor"),
        ({"size": 0}, ValueError, "size must be at least 1, got 0"),
        ({"size": 2.5}, TypeError, r"size must be an integer, got 2\.5"),
        ({"scale_factor": "two"}, TypeError, "scale_factor must be one number or two, got 'two'"),
        ({"scale_factor": -1}, ValueError, "scale_factor must be one positive number or two, got -1"),
        ({"scale_factor": (1, 2, 3)}, ValueError, "one positive number or two"),
        ({"scale_factor": 0.1}, ValueError, r"scale_factor 0\.1 gives a size of 0 for images of 4 x 4"),
        ({"x": np.zeros((1, 4, 4)), "size": 2}, ValueError, r"x must be of shape .* got \(1, 4, 4\)"),
        ({"x": np.zeros((1, 1, 4, 0)), "size": 2}, ValueError, "x must have at least one pixel"),
    ],
)
def test_refusals(keywords, kind, words):
    for operation in (upsample_bilinear2d, upsample_nearest2d):
        with pytest.raises(kind, match=words):
            operation.forward(Context(), **{"x": np.zeros((1, 1, 4, 4))} | keywords)


def test_dz_of_another_shape_or_dtype_is_refused():
    ctx = Context()
    upsample_bilinear2d.forward(ctx, np.zeros((1, 1, 4, 4)), size=6)
    with pytest.raises(ValueError, match=r"dz must be of shape \(1, 1, 6, 6\), .* got \(1, 1, 4, 4\)"):
        upsample_bilinear2d.backward(ctx, np.zeros((1, 1, 4, 4)))
