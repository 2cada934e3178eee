"""Convolution and transposed convolution in every memory layout and dtype."""

import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from cases import each
from convolutions import CASES, arrays_of
from operations import Context, normal

from inplace_abn import gradcheck, layers, memory
from inplace_abn.ops import _convolve, _depthwise, conv2d, conv_transpose2d

OPERATIONS = {"conv2d": conv2d, "conv_transpose2d": conv_transpose2d}
HALF = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
#: Largest relative error of one rounding.
UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24}


def nchw(array):
    """Return (N, C, H, W) in C order, and its channel_axis; the other layouts likewise."""
    return np.ascontiguousarray(array), 1


def nhwc(array):
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)), -1


def nhwc_seen_as_nchw(array):
    return nhwc(array)[0].transpose(0, 3, 1, 2), 1


def nchw_seen_as_nhwc(array):
    return nchw(array)[0].transpose(0, 2, 3, 1), -1


LAYOUTS = {layout.__name__: layout for layout in (nchw, nhwc, nhwc_seen_as_nchw, nchw_seen_as_nhwc)}
MIRRORS = [("nchw", "nchw_seen_as_nhwc"), ("nhwc", "nhwc_seen_as_nchw")]


def run(operation, case, layout, dz_layout=None, dtype="float64", weight_dtype=None, **options):
    """Return z, dx, dweight and dbias for a random dz; z and dx are seen as (N, C, H, W)."""
    x, weight, bias, settings = arrays_of(case, transposed=operation is conv_transpose2d)
    x = x.astype(HALF.get(dtype, dtype))
    weight, bias = (array.astype(HALF.get(weight_dtype, weight_dtype) or x.dtype) for array in (weight, bias))
    x, axis = LAYOUTS[layout](x)
    ctx = Context()
    z = operation.forward(ctx, x, weight, bias, channel_axis=axis, **settings, **options)
    dz = normal(np.moveaxis(z, axis, 1).shape, seed=5).astype(z.dtype)
    dz, seen = LAYOUTS[dz_layout or layout](dz)
    dx, dweight, dbias = operation.backward(ctx, np.moveaxis(dz, seen, axis))
    assert z.dtype == dx.dtype == x.dtype
    assert dweight.dtype == weight.dtype
    assert dbias.dtype == bias.dtype
    return np.moveaxis(z, axis, 1), np.moveaxis(dx, axis, 1), dweight, dbias


def is_in_order_of(layout, images):
    """Return True if the memory of (N, C, H, W) is contiguous in the order of `layout`."""
    order = (0, 2, 3, 1) if layout.startswith("nhwc") else (0, 1, 2, 3)
    return images.transpose(order).flags.c_contiguous


@pytest.mark.parametrize("case", [case for case in CASES if case[-2] > 1], ids=str)
@pytest.mark.parametrize(("layout", "mirror"), MIRRORS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_a_view_gives_bitwise_the_result_of_the_contiguous_array(operation, dtype, layout, mirror, case):
    want = run(operation, case, layout, dtype=dtype)
    got = run(operation, case, mirror, dtype=dtype)
    for one, other in zip(got, want, strict=True):
        assert np.array_equal(one, other)
    assert all(is_in_order_of(layout, images) for images in (*want[:2], *got[:2]))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
@each(dz_layout=["nchw", "nhwc"], layout=LAYOUTS)
def test_dx_has_the_layout_of_x_for_any_layout_of_dz(operation, layout, dz_layout, case):
    want = run(operation, case, "nchw")
    got = run(operation, case, layout, dz_layout)
    assert is_in_order_of(layout, got[1])
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-11)


def error_bounds(operation, case):
    """Return the sums of absolute products for z and the gradients, and how many products each adds."""
    x, weight, bias, settings = arrays_of(case, transposed=operation is conv_transpose2d)
    ctx = Context()
    z = operation.forward(ctx, abs(x), abs(weight), abs(bias), **settings)
    sizes = z, *operation.backward(ctx, abs(normal(z.shape, seed=5)))
    pixels = max(x.size // x.shape[1], z.size // z.shape[1])
    return sizes, [weight.size + 1, weight.size, pixels, pixels]


@pytest.mark.parametrize(("budget", "weight_dtype"), [(200, "float32"), (1 << 17, None)])
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
@each(layout=["nchw", "nhwc_seen_as_nchw"])
def test_half_types_are_rounded_once(operation, case, dtype, layout, weight_dtype, budget, monkeypatch):
    """Against float64 arithmetic on the same numbers, with blocks of a row and of several samples."""
    for module, names in ((_convolve, ("SCRATCH", "BLOCK")), (_depthwise, ("BLOCK",))):
        for name in names:
            monkeypatch.setattr(module, name, budget)
    got = run(operation, case, layout, dtype=dtype, weight_dtype=weight_dtype)
    x, weight, bias, settings = arrays_of(case, transposed=operation is conv_transpose2d)
    parameter_type = HALF.get(weight_dtype or dtype, weight_dtype)
    x = x.astype(HALF[dtype]).astype(float)
    weight, bias = (array.astype(parameter_type).astype(float) for array in (weight, bias))
    ctx = Context()
    z = operation.forward(ctx, x, weight, bias, **settings)
    dz = normal(z.shape, seed=5).astype(HALF[dtype]).astype(float)
    want = z, *operation.backward(ctx, dz)
    types = [dtype, dtype, weight_dtype or dtype, weight_dtype or dtype]
    for one, other, size, terms, kind in zip(got, want, *error_bounds(operation, case), types, strict=True):
        # All factors are rounded to a half type first, which makes them larger by that at most.
        bound = (terms + 2) * UNIT["float32"] * size * (1 + 3 * UNIT[dtype]) + UNIT[kind] * abs(other)
        assert (abs(one.astype(float) - other) <= 1.01 * bound + 2.0**-24).all()


@pytest.mark.parametrize("layout", ["nchw", "nhwc_seen_as_nchw"])
@pytest.mark.parametrize("dtype", HALF)
def test_scratch_of_half_types_is_smaller_than_the_batch(dtype, layout):
    """Also for a batch of one large image."""
    x, axis = LAYOUTS[layout](normal((1, 16, 512, 128)).astype(HALF[dtype]))
    weight = normal((16, 16, 3, 3), "float32")
    for operation, stride in ((conv2d, 1), (conv2d, 2), (conv_transpose2d, 2)):
        ctx = Context()
        z = operation.forward(ctx, x, weight, stride=stride, padding=1, channel_axis=axis)
        tracemalloc.start()
        results = operation.backward(ctx, z)
        peak = tracemalloc.get_traced_memory()[1] - results[0].nbytes - results[1].nbytes
        tracemalloc.stop()
        # Besides reported temporaries: small objects, and NumPy's buffers for casts and strided additions.
        assert peak <= ctx.scratch + 50_000 + (1 << 17)
        assert ctx.scratch <= 2 * 4 * _convolve.SCRATCH + 2**17


# ---- out= --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [CASES[i] for i in (0, 1, 2, 3, 5)], ids=str)
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("order", ["nchw", "nhwc"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc_seen_as_nchw"])
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_nothing_but_out_is_written(operation, layout, order, dtype, case):
    """A slice of the channels of a joined array, in both memory orders."""
    x, weight, bias, settings = arrays_of(case, transposed=operation is conv_transpose2d)
    x, weight, bias = (array.astype(HALF.get(dtype, dtype)) for array in (x, weight, bias))
    x, _ = LAYOUTS[layout](x)
    want = operation.forward(Context(), x, weight, bias, **settings)
    shape = len(want), want.shape[1] + 5, *want.shape[2:]
    joined, axis = LAYOUTS[order](np.full(shape, 77, x.dtype))
    joined = np.moveaxis(joined, axis, 1)
    out = joined[:, 2:-3]
    assert operation.forward(Context(), x, weight, bias, out=out, **settings) is out
    np.testing.assert_allclose(out.astype(float), want.astype(float), rtol=0, atol=1e-12)
    assert (joined[:, :2] == 77).all()
    assert (joined[:, -3:] == 77).all()


SHAPE = (2, 6, 3, 3)


@pytest.mark.parametrize(
    ("out", "kind", "words"),
    [
        ([], TypeError, "out must be a numpy.ndarray, got list"),
        (np.ones(SHAPE, "f4"), TypeError, "out must be float64, the dtype of x, got float32"),
        (np.ones((2, 6, 3, 4)), ValueError, "out must be of shape (2, 6, 3, 3), .* got (2, 6, 3, 4)"),
        (np.broadcast_to(1.0, SHAPE), ValueError, "out must be writeable"),
        (np.lib.stride_tricks.as_strided(np.ones(99), SHAPE, (80, 8, 8, 8)), ValueError, "overlaps itself"),
        ("x", ValueError, "out overlaps x"),
        ("weight", ValueError, "out overlaps weight"),
        ("bias", ValueError, "out overlaps bias"),
    ],
)
def test_an_out_that_cannot_be_written_is_refused(out, kind, words):
    """Before the first write."""
    memory = np.ones(1000)
    arrays = {"x": np.ones((2, 4, 5, 5)), "weight": np.ones((6, 4, 3, 3)), "bias": np.ones(6)}
    if isinstance(out, str):
        size = arrays[out].size
        arrays[out] = memory[:size].reshape(arrays[out].shape)
        out = memory[size - 1 : size - 1 + 108].reshape(SHAPE)
    with pytest.raises(kind, match=words.replace("(", r"\(").replace(")", r"\)")):
        conv2d.forward(Context(), **arrays, out=out)
    assert np.all(np.asarray(out) == 1)


# ---- frozen parameters -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [CASES[i] for i in (0, 1, 3)], ids=str)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_gradients_of_frozen_parameters_are_not_computed(operation, layout, case):
    x, weight, bias, settings = arrays_of(case, transposed=operation is conv_transpose2d)
    x, axis = LAYOUTS[layout](x)
    found = {}
    for weight_gradient, bias_gradient in ((True, True), (False, True), (True, False)):
        ctx = Context()
        options = {"weight_gradient": weight_gradient, "bias_gradient": bias_gradient}
        z = operation.forward(ctx, x, weight, bias, channel_axis=axis, **settings, **options)
        dx, dweight, dbias = found[weight_gradient, bias_gradient] = operation.backward(ctx, z)
        assert (ctx.saved["input"] is None, dweight is None) == (not weight_gradient,) * 2
        assert (dbias is None) == (not bias_gradient)
        np.testing.assert_allclose(dx, found[True, True][0], rtol=0, atol=1e-12)


# ---- layers next to a normalization ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (4, 5), (4, 1), (1, 5)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("make", [layers.Conv2d, layers.ConvTranspose2d])
def test_layers_accept_the_layouts_that_layers_return(make, layout, channels, size):
    """One channel and one pixel have both memory orders at once."""
    x, axis = LAYOUTS[layout](normal((5, channels, *size), "float32"))
    options = {"channel_axis": axis}
    net = layers.Sequential(
        layers.InPlaceABN(channels, **options), make(channels, 1, 1, rng=0, **options),
        layers.InPlaceABN(1, **options), make(1, 4, 1, rng=1, **options), layers.InPlaceABN(4, **options),
    )  # fmt: skip
    z = net(x)
    dx = net.backward(normal(z.shape, "float32", 2))
    assert dx.shape == x.shape
    assert is_in_order_of(layout, np.moveaxis(dx, axis, 1))


@pytest.mark.parametrize("make", [layers.Conv2d, layers.ConvTranspose2d])
def test_a_frozen_layer_keeps_no_input_and_gets_no_gradient(make):
    layer, x = make(2, 3, 3, rng=0), np.ones((1, 2, 5, 5), np.float32)
    want = layer.backward(np.ones_like(layer(x)))
    layer.zero_grad()
    layer.requires_grad_(False)
    with memory.ledger() as book:
        z = layer(x)
        assert book.kept == 0
    assert x.flags.writeable
    assert (layer.backward(np.ones_like(z)) == want).all()
    assert [parameter.grad for parameter in layer.parameters()] == [None, None]


@pytest.mark.parametrize("make", [layers.Conv2d, layers.ConvTranspose2d])
def test_gradients_of_layers_equal_finite_differences(make):
    x = normal((2, 4, 4, 3)).transpose(0, 3, 1, 2)
    assert gradcheck(make(3, 3, (2, 3), dtype=np.float64, groups=3, rng=0), (x,))


def test_a_layer_with_half_parameters_accepts_only_that_dtype():
    layer = layers.ConvTranspose2d(4, 2, 2, stride=2, dtype="float16")
    z = layer(np.ones((1, 4, 3, 3), np.float16))
    layer.backward(z)
    assert layer.weight.grad.dtype == z.dtype == np.float16
    with pytest.raises(TypeError, match=r"^ConvTranspose2d: x is float32"):
        layer(np.ones((1, 4, 3, 3), np.float32))


def test_an_out_that_a_live_context_keeps_is_refused():
    x = np.ones((2, 3, 4, 4), np.float32)
    view = x[:, 1:]  # still writeable when x is locked
    keeper = layers.Conv2d(3, 3, 1)
    keeper(x)
    writer = layers.Conv2d(3, 2, 1)
    with pytest.raises(ValueError, match=r"out: .* but Conv2d keeps that memory as 'input'"):
        writer(np.ones_like(x), out=view)
    assert (x == 1).all()
    keeper.release()
    assert writer(np.ones_like(x), out=view) is view
