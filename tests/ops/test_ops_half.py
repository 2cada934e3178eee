"""Half precision: every operation computes in float32 and rounds once, block by block."""

import math

import numpy as np
import pytest
from batches import DTYPES, dtype_of
from operations import Context, generator, normal

from inplace_abn.ops import (
    avg_pool2d,
    cross_entropy,
    dropout,
    flatten,
    global_avg_pool2d,
    group_norm,
    linear,
    max_pool2d,
    mean_squared_error,
    upsample_bilinear2d,
    upsample_nearest2d,
)

HALF = DTYPES[2:]
SHAPE = (5, 6, 8, 10)
LABELS = generator(7).integers(0, 6, (5, 8, 10))

#: By operation: the shape of x, the parameters' shapes, and the options.
CASES = {
    "max_pool2d": (max_pool2d, SHAPE, [], {"kernel_size": 3, "padding": 1}),
    "max_pool2d, overlapping": (max_pool2d, SHAPE, [], {"kernel_size": 3, "stride": 1}),
    "avg_pool2d": (avg_pool2d, SHAPE, [], {"kernel_size": 3, "stride": 2, "padding": 1}),
    "global_avg_pool2d": (global_avg_pool2d, SHAPE, [], {}),
    "upsample_bilinear2d": (upsample_bilinear2d, SHAPE, [], {"size": (13, 9)}),
    "upsample_nearest2d": (upsample_nearest2d, SHAPE, [], {"size": (17, 9)}),
    "dropout": (dropout, SHAPE, [], {"p": 0.3}),
    "flatten": (flatten, SHAPE, [], {}),
    "linear": (linear, (400, 30), [(7, 30), (7,)], {}),
    "group_norm": (group_norm, SHAPE, [(6,), (6,)], {"num_groups": 3}),
}


def run_case(name, dtype, parameter_dtype):
    operation, shape, parameters, options = CASES[name]
    options = options | ({"rng": np.random.default_rng(0)} if operation is dropout else {})
    x = normal(shape).astype(dtype_of(dtype))
    arrays = [normal(shape, seed=i).astype(x.dtype) for i, shape in enumerate(parameters, 1)]
    dz = None
    results = []
    for kind, weights in ((x.dtype, parameter_dtype), (np.dtype(np.float32), np.float32)):
        ctx = Context()
        z = operation.forward(ctx, x.astype(kind), *(array.astype(weights) for array in arrays), **options)
        dz = normal(z.shape, seed=9).astype(x.dtype) if dz is None else dz
        results.append((z, *operation.backward(ctx, dz.astype(kind))))
        if operation is dropout:
            options["rng"] = np.random.default_rng(0)
    return results


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", CASES)
def test_results_equal_float32_results_rounded_once(name, dtype):
    for parameter_dtype in (np.float32, dtype_of(dtype)):
        got, want = run_case(name, dtype, parameter_dtype)
        for number, (one, other) in enumerate(zip(got, want, strict=True)):
            assert one.dtype == (dtype_of(dtype) if number < 2 else parameter_dtype)
            if name == "linear":  # BLAS adds up in another order for other sizes
                eps = 2.0**-7 if one.dtype.name == "bfloat16" else 2.0**-10
                eps = eps if one.dtype.itemsize == 2 else 1e-5
                np.testing.assert_allclose(one.astype("f4"), other, rtol=eps, atol=eps)
            else:
                np.testing.assert_array_equal(one, other.astype(one.dtype))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2}, {"weight": True}], ids=str)
def test_cross_entropy_is_computed_in_float32(options, dtype):
    x = normal(SHAPE).astype(dtype_of(dtype))
    options = options | ({"weight": np.arange(6, dtype=np.float32)} if "weight" in options else {})
    assert_loss(cross_entropy, x, LABELS, **options)


@pytest.mark.parametrize("dtype", HALF)
def test_mean_squared_error_is_computed_in_float32(dtype):
    x, target = (normal(SHAPE, seed=seed).astype(dtype_of(dtype)) for seed in (0, 1))
    assert_loss(mean_squared_error, x, target)
    assert_loss(mean_squared_error, x, target.astype(np.float32))


def assert_loss(operation, x, target, **options):
    ctx, single = Context(), Context()
    loss = operation.forward(ctx, x, target, **options)
    if target.dtype == x.dtype:
        target = target.astype(np.float32)
    want = operation.forward(single, x.astype(np.float32), target, **options)
    assert type(loss) is float
    assert loss == want
    (dx,), (want,) = operation.backward(ctx, 3.0), operation.backward(single, 3.0)
    assert dx.dtype == x.dtype
    np.testing.assert_array_equal(dx, want.astype(x.dtype))


@pytest.mark.parametrize("dtype", HALF)
def test_sums_of_many_elements_are_accumulated_in_float32(dtype):
    """A sum of ones stops growing at 256 in bfloat16, and at 2048 in float16."""
    ones = np.ones((1, 1, 64, 128), dtype_of(dtype))
    assert global_avg_pool2d.forward(Context(), ones) == 1
    assert avg_pool2d.forward(Context(), ones, (64, 128)) == 1
    ctx = Context()
    features, weight = np.ones((1, 8192), ones.dtype), np.ones((1, 8192), np.float32)
    assert linear.forward(ctx, features, weight) == 8192
    ctx = Context()
    linear.forward(ctx, features.T.copy(), np.ones((1, 1), np.float32), np.ones(1, np.float32))
    _, dweight, dbias = linear.backward(ctx, np.ones((8192, 1), ones.dtype))
    assert dweight == dbias == 8192
    assert math.isclose(mean_squared_error.forward(Context(), ones, np.zeros_like(ones)), 1)


@pytest.mark.parametrize("dtype", HALF)
def test_scratch_does_not_grow_with_the_batch(dtype):
    for operation, options in ((max_pool2d, {"kernel_size": 2}), (upsample_nearest2d, {"scale_factor": 2})):
        scratch = []
        for samples in (300, 600):
            ctx = Context()
            x = np.zeros((samples, 8, 16, 16), dtype_of(dtype))
            z = operation.forward(ctx, x, **options)
            operation.backward(ctx, np.zeros_like(z))
            scratch.append(ctx.scratch)
        assert scratch[0] == scratch[1] > 0
