"""Convolutions, transposed ones too, in every memory layout and dtype."""

import ml_dtypes
import numpy as np
import pytest
from convolutions import CASES, arrays_of
from operations import Context, normal

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
    """Return whether the memory of (N, C, H, W) is contiguous in the order of `layout`."""
    order = (0, 2, 3, 1) if layout.startswith("nhwc") else (0, 1, 2, 3)
    return images.transpose(order).flags.c_contiguous


@pytest.mark.parametrize("case", [case for case in CASES if case[-2] > 1], ids=str)
@pytest.mark.parametrize(("layout", "mirror"), MIRRORS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_a_view_gives_the_bits_of_the_contiguous_array(operation, dtype, layout, mirror, case):
    want = run(operation, case, layout, dtype=dtype)
    got = run(operation, case, mirror, dtype=dtype)
    for one, other in zip(got, want, strict=True):
        assert np.array_equal(one, other)
    assert all(is_in_order_of(layout, images) for images in (*want[:2], *got[:2]))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dz_layout", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_dx_has_the_layout_of_x_whatever_that_of_dz(operation, layout, dz_layout, case):
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


@pytest.mark.parametrize("budget", [200, 1 << 17])
@pytest.mark.parametrize("weight_dtype", ["float32", None])
@pytest.mark.parametrize("layout", ["nchw", "nhwc_seen_as_nchw"])
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
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
