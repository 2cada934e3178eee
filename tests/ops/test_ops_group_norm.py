"""Group normalization: against finite differences and PyTorch; precision; refusals."""

import numpy as np
import pytest
from operations import EPS, Context, assert_gradients, laid_out, normal, run, strided

from inplace_abn.ops import group_norm

SHAPES = [(3, 6), (2, 6, 5), (2, 6, 3, 4), (2, 6, 2, 3, 2)]


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_equal_finite_differences(shape, groups, channel_axis):
    x = laid_out(normal(shape), channel_axis)
    options = {"num_groups": groups, "channel_axis": channel_axis}
    assert_gradients(group_norm, [x, normal(6, seed=1), normal(6, seed=2)], most=1e-8, **options)
    assert run(group_norm, x, **options)[1][1:] == (None, None)


@pytest.mark.torch
@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("shape", [*SHAPES[1:], (5, 6, 60, 70)], ids=str)
def test_against_torch(shape, groups, channel_axis, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    arrays = normal(shape, dtype), normal(6, dtype, 1), normal(6, dtype, 2)
    dz = normal(shape, dtype, 3)
    tensors = [torch.tensor(array.astype(np.float64), requires_grad=True) for array in arrays]
    result = torch.nn.functional.group_norm(tensors[0], groups, *tensors[1:], eps=1e-5)
    result.backward(torch.tensor(dz.astype(np.float64)))
    z, gradients, _ = run(
        group_norm, laid_out(arrays[0], channel_axis), *arrays[1:], dz=laid_out(dz, channel_axis),
        num_groups=groups, channel_axis=channel_axis,
    )  # fmt: skip
    got = [np.moveaxis(array, channel_axis, 1) for array in (z, gradients[0])] + list(gradients[1:])
    want = [result.detach().numpy(), *(tensor.grad.numpy() for tensor in tensors)]
    for one, other in zip(got, want, strict=True):
        assert one.dtype == dtype
        # About 8 roundings of elements below 8, and twice as many for the sums of products. Sums of
        # m terms of about 1 are computed in float64, with an error of m * 2**-52.
        sums = 0 if one.ndim > 1 else dz.size / 6 * 2.0**-52
        assert np.abs(one - other).max() <= 16 * EPS[dtype] * max(1, np.abs(other).max()) + sums


@pytest.mark.parametrize("channel_axis", [1, -1])
def test_a_large_mean_does_not_cancel_digits_of_the_variance(channel_axis):
    """The variance is computed in two passes: E[x^2] - E[x]^2 would have no correct digit in float32."""
    x = laid_out(normal((2, 4, 50, 40), "float32") + np.float32(1e4), channel_axis)
    z, _, _ = run(group_norm, x, num_groups=2, channel_axis=channel_axis)
    exact, _, _ = run(group_norm, x.astype(np.float64), num_groups=2, channel_axis=channel_axis)
    assert np.abs(z - exact).max() <= 8 * EPS["float32"] * 5  # elements of z are below 5


@pytest.mark.parametrize("channel_axis", [1, -1])
def test_memory_of_any_strides_and_more_samples_than_one_block(channel_axis):
    x = laid_out(normal((30, 8, 20, 20)), channel_axis)
    weight, options = normal(8, seed=1), {"num_groups": 2, "channel_axis": channel_axis}
    dz = normal(x.shape, seed=2)
    z, (dx, dweight, _), _ = run(group_norm, x, weight, dz=dz, **options)
    z2, (dx2, dweight2, _), _ = run(group_norm, strided(x), weight, dz=strided(dz), **options)
    for one, other in ((z, z2), (dx, dx2), (dweight, dweight2)):
        assert np.array_equal(one, other)
    last, (dx_last, _, _), _ = run(group_norm, x[-1:], weight, dz=dz[-1:], **options)
    assert np.array_equal(z[-1:], last)
    assert np.array_equal(dx[-1:], dx_last)


def test_it_keeps_its_input_and_two_numbers_per_group():
    ctx, x = Context(), normal((3, 6, 5))
    group_norm.forward(ctx, x, num_groups=2)
    assert ctx.saved["input"] is x
    assert {role: array.shape for role, array in ctx.saved.items()} == {
        "input": x.shape,
        "mean": (3, 2),
        "inv_std": (3, 2),
    }


def test_an_empty_batch():
    z, (dx, dweight, dbias), _ = run(group_norm, np.zeros((0, 4, 3)), np.ones(4), np.ones(4), num_groups=2)
    assert z.shape == dx.shape == (0, 4, 3)
    assert not dweight.any()
    assert not dbias.any()


X = np.zeros((2, 6, 3))


@pytest.mark.parametrize(
    ("arrays", "options", "kind", "words"),
    [
        ((X.astype(int),), {}, TypeError, "x must be float32, float64, float16"),
        ((X[:, 0, 0],), {}, ValueError, r"x must be of shape|x must have at least the axes"),
        ((X,), {"num_groups": 4}, ValueError, "num_groups must divide the 6 channels of x .* got 4"),
        ((X,), {"num_groups": 0}, ValueError, "num_groups must be at least 1, got 0"),
        ((X,), {"eps": 0}, ValueError, "eps must be greater than 0, got 0"),
        ((X, np.ones(3)), {}, ValueError, r"weight must be of shape \(6,\), .* got \(3,\)"),
        ((X, np.ones(6), np.ones(6, "f4")), {}, TypeError, "bias is float32 and x is float64"),
        ((X.astype("f2"), np.ones(6)), {}, TypeError, "weight must be float32 or float16 .* got float64"),
        ((X[:, :, :0],), {}, ValueError, r"at least one value per group, got shape \(2, 6, 0\)"),
    ],
)
def test_refusals(arrays, options, kind, words):
    with pytest.raises(kind, match=words):
        group_norm.forward(Context(), *arrays, **{"num_groups": 2} | options)


def test_dz_of_another_shape_or_dtype_is_refused():
    ctx = Context()
    group_norm.forward(ctx, X, num_groups=2)
    with pytest.raises(ValueError, match=r"dz must be of shape \(2, 6, 3\), .* got \(2, 6, 4\)"):
        group_norm.backward(ctx, np.zeros((2, 6, 4)))
