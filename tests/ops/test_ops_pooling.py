"""Pooling: small examples, finite differences, PyTorch; kept arrays; refusals."""

import numpy as np
import pytest
from operations import EPS, Context, assert_gradients, laid_out, normal, run, strided

from inplace_abn.ops import avg_pool2d, global_avg_pool2d, max_pool2d

# kernel, stride, padding
WINDOWS = [(2, 2, 0), (3, 2, 1), (3, 1, 1), ((2, 3), (3, 1), (1, 0)), (2, 3, 0), ((1, 4), 2, (0, 2))]
SHAPE = (3, 4, 9, 11)


def distinct(shape, dtype="float64"):
    """Values with differences large enough for finite differences of a maximum."""
    return np.random.default_rng(1).permutation(np.prod(shape)).reshape(shape).astype(dtype) / 7


def loose(name):
    """The arguments of a pooling, from those of `WINDOWS`."""
    return dict(zip(("stride", "padding"), name[1:], strict=True))


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("operation", [max_pool2d, avg_pool2d], ids=lambda module: module.__name__[16:])
def test_gradients_equal_finite_differences(operation, window, channel_axis):
    x = laid_out(distinct((2, 3, 5, 6)), channel_axis)
    assert_gradients(operation, [x], window[0], channel_axis=channel_axis, **loose(window))


@pytest.mark.torch
@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_max_pooling_is_bitwise_equal_to_torch(window, dilation, channel_axis, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x = np.round(normal(SHAPE, dtype), 1)  # with values that are equal: the first one counts
    tensor = torch.tensor(x, requires_grad=True)
    result = torch.nn.functional.max_pool2d(tensor, *window, dilation)
    dz = np.round(8 * normal(tuple(result.shape), dtype, 2))  # sums of these are exact
    result.backward(torch.tensor(dz))
    z, (dx,), _ = run(
        max_pool2d, laid_out(x, channel_axis), window[0], dz=laid_out(dz, channel_axis), dilation=dilation,
        channel_axis=channel_axis, **loose(window),
    )  # fmt: skip
    assert (np.moveaxis(z, channel_axis, 1) == result.detach().numpy()).all()
    assert (np.moveaxis(dx, channel_axis, 1) == tensor.grad.numpy()).all()


@pytest.mark.torch
@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_average_pooling_against_torch(window, count_include_pad, channel_axis, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x = np.abs(normal(SHAPE, dtype))
    tensor = torch.tensor(x.astype(np.float64), requires_grad=True)
    result = torch.nn.functional.avg_pool2d(tensor, *window, count_include_pad=count_include_pad)
    dz = np.abs(normal(tuple(result.shape), dtype, 2))
    result.backward(torch.tensor(dz.astype(np.float64)))
    z, (dx,), _ = run(
        avg_pool2d, laid_out(x, channel_axis), window[0], dz=laid_out(dz, channel_axis),
        count_include_pad=count_include_pad, channel_axis=channel_axis, **loose(window),
    )  # fmt: skip
    # Nothing cancels here: at most 9 sums and a division, each off by half a unit.
    np.testing.assert_allclose(np.moveaxis(z, channel_axis, 1), result.detach().numpy(), rtol=6 * EPS[dtype])
    np.testing.assert_allclose(np.moveaxis(dx, channel_axis, 1), tensor.grad.numpy(), rtol=6 * EPS[dtype])
    assert z.dtype == dx.dtype == dtype


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("operation", [max_pool2d, avg_pool2d], ids=lambda module: module.__name__[16:])
def test_memory_of_any_strides_and_more_samples_than_one_block(operation, window, channel_axis):
    x = laid_out(normal((40, 12, 16, 18)), channel_axis)
    keywords = loose(window) | {"channel_axis": channel_axis}
    dz = normal(operation.forward(Context(), x, window[0], **keywords).shape, seed=3)
    z, (dx,), _ = run(operation, x, window[0], dz=dz, **keywords)
    z2, (dx2,), _ = run(operation, strided(x), window[0], dz=strided(dz), **keywords)
    assert (z == z2).all()
    assert (dx == dx2).all()
    last, (dx_last,), _ = run(operation, x[-1:], window[0], dz=dz[-1:], **keywords)
    assert (z[-1] == last).all()
    assert (dx[-1] == dx_last).all()


def test_max_pooling_keeps_one_byte_per_value_of_the_result():
    ctx, x = Context(), normal((2, 3, 8, 8))
    z = max_pool2d.forward(ctx, x, 2)
    assert {role: array.nbytes for role, array in ctx.saved.items()} == {"indices": z.size}


def test_average_pooling_keeps_no_array():
    ctx = Context()
    avg_pool2d.forward(ctx, normal((2, 3, 8, 8)), 2)
    global_avg_pool2d.forward(ctx, normal((2, 3, 8, 8)))
    assert not ctx.saved


@pytest.mark.parametrize("place", [(0, 0), (1, 1), (3, 2)])
def test_nan_propagates_only_to_its_windows(place):
    x = np.ones((1, 1, 4, 4))
    x[0, 0][place] = np.nan
    z, _, _ = run(max_pool2d, x, 2)
    assert np.isnan(z[0, 0, place[0] // 2, place[1] // 2])
    assert np.isnan(z).sum() == 1


def test_the_gradient_of_minus_infinity_does_not_go_to_the_padding():
    z, (dx,), _ = run(max_pool2d, np.full((1, 1, 3, 3), -np.inf), 3, stride=2, padding=1)
    assert (z == -np.inf).all()
    assert dx.sum() == z.size


@pytest.mark.parametrize("infinite", [np.inf, np.nan])
def test_an_infinite_gradient_goes_to_one_pixel_only(infinite):
    dz = np.array([[[[1.0, infinite]]]])
    _, (dx,), _ = run(max_pool2d, np.array([[[[1.0, 2.0, 3.0, 4.0]]]]), (1, 2), dz=dz)
    np.testing.assert_array_equal(dx, [[[[0, 1, 0, infinite]]]])


@pytest.mark.parametrize("overwrite", [True, False])
def test_dz_is_written_only_with_overwrite(overwrite):
    for operation in (max_pool2d, avg_pool2d):
        x = normal((2, 3, 6, 6))
        _, (dx,), _ = run(operation, x, 2)
        z, (other,), dz = run(operation, x, 2, overwrite=overwrite)
        assert (dx == other).all()
        assert overwrite or (dz == np.ones_like(z)).all()


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("keepdims", [True, False])
@pytest.mark.parametrize("dtype", EPS)
def test_global_average(dtype, keepdims, channel_axis):
    x = np.abs(normal((3, 5, 7, 6), dtype))
    z, (dx,), _ = run(
        global_avg_pool2d, laid_out(x, channel_axis), keepdims=keepdims, channel_axis=channel_axis
    )
    want = laid_out(x.astype(np.float64).mean(axis=(2, 3), keepdims=True), channel_axis)
    np.testing.assert_allclose(z, want if keepdims else want.reshape(3, 5), rtol=42 * EPS[dtype])
    np.testing.assert_array_equal(dx, np.full(dx.shape, 1 / np.array(42, dtype)))
    assert z.dtype == dx.dtype == dtype
    assert dx.shape == laid_out(x, channel_axis).shape
    if dtype == "float64":
        x = laid_out(normal((2, 2, 3, 3)), channel_axis)
        assert_gradients(global_avg_pool2d, [x], keepdims=keepdims, channel_axis=channel_axis)


@pytest.mark.parametrize("operation", [max_pool2d, avg_pool2d], ids=lambda module: module.__name__[16:])
def test_an_empty_batch(operation):
    z, (dx,), _ = run(operation, np.zeros((0, 3, 4, 4)), 2)
    assert z.shape == (0, 3, 2, 2)
    assert dx.shape == (0, 3, 4, 4)


X = np.zeros((1, 2, 6, 6))


@pytest.mark.parametrize(
    ("operation", "arguments", "kind", "words"),
    [
        (
            max_pool2d,
            (X.astype(int), 2),
            TypeError,
            "x must be float32, float64, float16 or ml",
        ),
        (max_pool2d, (X[0], 2), ValueError, r"x must be of shape \(N, C, H, W\), got \(2, 6, 6\)"),
        (max_pool2d, (X, 0), ValueError, "kernel_size must be at least 1, got 0"),
        (max_pool2d, (X, (2, 7)), ValueError, "window of 2 x 7 pixels does not fit .* 6 x 6"),
        (max_pool2d, (np.zeros((1, 1, 20, 20)), 17), ValueError, "at most 256 values, got 17 x 17"),
        (avg_pool2d, (X.astype(">f4"), 2), TypeError, "x must be .* in native byte order"),
        (avg_pool2d, (X, "two"), TypeError, "kernel_size must be an integer, got 'two'"),
        (global_avg_pool2d, (X[0],), ValueError, r"x must be of shape \(N, C, H, W\)"),
        (global_avg_pool2d, (X[:, :, :0],), ValueError, r"at least one pixel, got shape \(1, 2, 0, 6\)"),
    ],
)
def test_refusals(operation, arguments, kind, words):
    with pytest.raises(kind, match=words):
        operation.forward(Context(), *arguments)


@pytest.mark.parametrize("operation", [max_pool2d, avg_pool2d], ids=lambda module: module.__name__[16:])
def test_padding_of_more_than_half_of_the_kernel_is_refused(operation):
    with pytest.raises(ValueError, match=r"padding must be at most half of kernel_size, got \(2, 2\)"):
        operation.forward(Context(), X, 3, padding=2)


@pytest.mark.parametrize(
    ("operation", "arguments"), [(max_pool2d, (2,)), (avg_pool2d, (2,)), (global_avg_pool2d, ())]
)
def test_dz_of_another_shape_or_dtype_is_refused(operation, arguments):
    ctx = Context()
    operation.forward(ctx, X, *arguments)
    with pytest.raises(ValueError, match=r"dz must be of shape .* got \(1, 2, 6, 6\)"):
        operation.backward(ctx, X)
