"""Linear, flatten, dropout and losses; the examples in the docstrings of operations."""

import doctest
import importlib
import math
import pkgutil

import numpy as np
import pytest
from operations import EPS, Context, assert_gradients, laid_out, normal, run, strided

from inplace_abn import ops
from inplace_abn.ops import cross_entropy, dropout, flatten, linear, mean_squared_error

MODULES = [f"{ops.__name__}.{module.name}" for module in pkgutil.iter_modules(ops.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_every_operation_is_a_pair_of_functions():
    for name in ops.__all__:
        operation = getattr(ops, name)
        assert callable(operation.forward)
        assert callable(operation.backward)
    assert {name.rpartition(".")[2] for name in MODULES if "._" not in name} == set(ops.__all__)


# ---- linear ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 5), (0, 5)], ids=str)
def test_linear(shape):
    x, weight, bias = normal(shape, seed=1), normal((3, 5), seed=2), normal(3, seed=3)
    z, gradients, _ = run(linear, x, weight, bias)
    np.testing.assert_allclose(z, np.einsum("...i,oi->...o", x, weight) + bias, atol=1e-14)
    assert [gradient.shape for gradient in gradients] == [x.shape, weight.shape, bias.shape]
    assert_gradients(linear, [x, weight, bias])
    assert run(linear, x, weight)[1][2] is None


def test_linear_accepts_any_strides():
    x, weight = normal((4, 5)), normal((3, 5))
    want, wanted, dz = run(linear, x, weight)
    z, gradients, _ = run(linear, strided(x), strided(weight), dz=strided(dz))
    np.testing.assert_allclose(z, want, rtol=0, atol=1e-14)
    for one, other in zip(gradients[:2], wanted[:2], strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("x", "weight", "bias", "kind", "words"),
    [
        (np.zeros(4), np.zeros((3, 4)), None, ValueError, r"x must be of shape \(N, ..., features\)"),
        (np.zeros((2, 4)), np.zeros((3, 5)), None, ValueError, r"shape \(3, 5\) .* x of shape \(2, 4\)"),
        (np.zeros((2, 4)), np.zeros((3, 4), "f4"), None, TypeError, "weight is float32 and x is float64"),
        (np.zeros((2, 4)), np.zeros((3, 4)), np.zeros(4), ValueError, r"bias must be of shape \(3,\)"),
    ],
)  # fmt: skip
def test_linear_refuses(x, weight, bias, kind, words):
    with pytest.raises(kind, match=words):
        linear.forward(Context(), x, weight, bias)


# ---- flatten -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3), (2,), (0, 3, 4)], ids=str)
def test_flatten_returns_a_view_and_reshapes_the_gradient(shape):
    x = normal(shape)
    z, (dx,), dz = run(flatten, x, overwrite=True)
    assert z.shape == (shape[0], math.prod(shape[1:]))
    assert dx.shape == shape
    assert x.size == 0 or (np.shares_memory(z, x) and np.shares_memory(dx, dz))
    _, (dx,), dz = run(flatten, x)
    assert not np.shares_memory(dx, dz)
    z, _, _ = run(flatten, strided(x))
    assert (z == x.reshape(z.shape)).all()


# ---- dropout -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("shape", [(3, 5, 7), (40, 70, 60), (2, 100_000)], ids=str)
def test_dropout_sets_elements_to_zero_and_scales_the_rest(shape, dtype, overwrite):
    x = np.ones(shape, dtype)
    ctx = Context()
    z = dropout.forward(ctx, x, 0.25, rng=np.random.default_rng(0))
    share = (z == 0).mean()
    assert abs(share - 0.25) < 5 * math.sqrt(0.25 * 0.75 / x.size)
    assert set(np.unique(z)) <= {0, np.divide(1, 0.75, dtype=dtype)}
    assert (x == 1).all()
    dz = np.ones_like(x)
    (dx,) = dropout.backward(ctx, dz, overwrite=overwrite)
    assert (dx == z).all()
    assert (dx is dz) == overwrite
    assert overwrite or (dz == 1).all()
    assert ctx.saved["mask"].nbytes == shape[0] * -(-math.prod(shape[1:]) // 8)


def test_dropout_depends_on_the_generator_alone():
    x = normal((4, 100))
    one, two, other = (
        dropout.forward(Context(), array, rng=np.random.default_rng(seed))
        for array, seed in ((x, 1), (strided(x), 1), (x, 2))
    )
    assert (one == two).all()
    assert (one != other).any()
    assert (dropout.forward(Context(), x) != one).any()


@pytest.mark.parametrize("keywords", [{"training": False}, {"p": 0}])
def test_dropout_without_effect_returns_x(keywords):
    x, ctx = normal((2, 3)), Context()
    assert dropout.forward(ctx, x, **keywords) is x
    assert not ctx.saved
    (dx,) = dropout.backward(ctx, x)
    assert (dx == x).all()
    assert dx is not x
    assert dropout.backward(ctx, x, overwrite=True)[0] is x


def test_dropout_with_p_of_1_and_of_infinities():
    x = np.array([[np.inf, np.nan, 1.0]])
    z, (dx,), _ = run(dropout, x, 1, dz=x.copy())
    assert not z.any()
    assert not dx.any()


@pytest.mark.parametrize(
    ("p", "kind"), [(1.5, ValueError), (-0.1, ValueError), (math.nan, ValueError), ("x", TypeError)]
)
def test_dropout_refuses_a_p_outside_of_0_to_1(p, kind):
    with pytest.raises(kind, match=r"p must be (a number|in \[0, 1\]), got"):
        dropout.forward(Context(), np.zeros((1, 1)), p)


# ---- cross-entropy -----------------------------------------------------------------------------------------

SHAPES = [(5, 3), (2, 4, 3), (2, 3, 4, 5), (40, 7, 30, 20)]


def labels(shape, seed=0, ignore_index=-100):
    """Labels for scores of `shape`; about a third of them equal ignore_index."""
    target = np.random.default_rng(seed).integers(0, shape[1], (shape[0], *shape[2:]))
    return np.where(np.random.default_rng(seed + 1).random(target.shape) < 0.3, ignore_index, target)


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_gradients_of_cross_entropy_equal_finite_differences(shape, channel_axis):
    x = laid_out(normal(shape), channel_axis)
    assert_gradients(cross_entropy, [x], labels(shape), channel_axis=channel_axis)


@pytest.mark.torch
@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("ignore_index", [-100, 1])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cross_entropy_against_torch(shape, ignore_index, channel_axis, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x, target = 5 * normal(shape, dtype), labels(shape, ignore_index=ignore_index)
    tensor = torch.tensor(x.astype(np.float64), requires_grad=True)
    result = torch.nn.functional.cross_entropy(tensor, torch.tensor(target), ignore_index=ignore_index)
    (3 * result).backward()
    loss, (dx,), _ = run(
        cross_entropy, laid_out(x, channel_axis), target, dz=3.0, ignore_index=ignore_index,
        channel_axis=channel_axis,
    )  # fmt: skip
    assert type(loss) is float
    # Scores are below 32: their exponents are off by 32 units at most, and so are the logarithms.
    assert abs(loss - result.item()) <= 80 * EPS[dtype]
    count = (target != ignore_index).sum()
    error = np.abs(np.moveaxis(dx, channel_axis, 1) - tensor.grad.numpy())
    assert error.max() <= 80 * EPS[dtype] * 3 / count
    assert dx.dtype == dtype


@pytest.mark.torch
@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize(("weighted", "smoothing"), [(True, 0.0), (False, 0.1), (True, 0.3), (False, 1.0)])
@pytest.mark.parametrize("shape", SHAPES[::2], ids=str)
def test_class_weights_and_smoothing_against_torch(shape, weighted, smoothing, channel_axis, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x, target = 5 * normal(shape, dtype), labels(shape)
    weight = np.linspace(0, 2, shape[1]).astype(dtype) if weighted else None
    tensor = torch.tensor(x.astype(np.float64), requires_grad=True)
    criterion = torch.nn.CrossEntropyLoss(
        torch.tensor(weight.astype(np.float64)) if weighted else None, label_smoothing=smoothing
    )
    result = criterion(tensor, torch.tensor(target))
    (3 * result).backward()
    loss, (dx,), _ = run(
        cross_entropy, laid_out(x, channel_axis), target, dz=3.0, weight=weight, label_smoothing=smoothing,
        channel_axis=channel_axis,
    )  # fmt: skip
    # Twice the bound without class weights, relative to a loss above 1: it sums all classes, with weights of
    # up to 2.
    assert abs(loss - result.item()) <= 160 * EPS[dtype] * max(1, result.item())
    total = float((np.ones(shape[1]) if weight is None else weight)[target[target != -100]].sum())
    error = np.abs(np.moveaxis(dx, channel_axis, 1) - tensor.grad.numpy())
    assert error.max() <= 160 * EPS[dtype] * 3 / total


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("weighted", [True, False])
def test_gradients_with_class_weights_and_smoothing(weighted, channel_axis):
    x = laid_out(normal((2, 4, 3)), channel_axis)
    weight = np.array([0.5, 2.0, 0.0, 1.0]) if weighted else None
    options = {"weight": weight, "label_smoothing": 0.3, "channel_axis": channel_axis}
    assert_gradients(cross_entropy, [x], labels((2, 4, 3)), **options)


def test_loss_is_zero_if_all_labels_have_weight_zero():
    x, target = normal((3, 2)), np.array([0, 0, 0])
    loss, (dx,), _ = run(cross_entropy, x, target, dz=1.0, weight=np.array([0.0, 1.0]))
    assert loss == 0
    assert not dx.any()


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.uint64])
def test_labels_of_any_integer_dtype(kind):
    x, target = normal((6, 4)), np.array([0, 1, 2, 3, 3, 3])
    want = run(cross_entropy, x, target, dz=1.0, ignore_index=3)
    got = run(cross_entropy, x, target.astype(kind), dz=1.0, ignore_index=3)
    assert got[0] == want[0]
    assert (got[1][0] == want[1][0]).all()


def test_cross_entropy_accepts_any_strides_and_does_not_write_to_x():
    x, target = normal((3, 4, 5)), labels((3, 4, 5))
    before = x.copy()
    loss, (dx,), _ = run(cross_entropy, x, target, dz=1.0)
    loss2, (dx2,), _ = run(cross_entropy, strided(x), strided(target), dz=1.0)
    assert (x == before).all()
    assert abs(loss - loss2) < 1e-15
    np.testing.assert_allclose(dx, dx2, rtol=0, atol=1e-16)


@pytest.mark.parametrize("size", [1e4, 1e300])
def test_large_scores_do_not_overflow(size):
    loss, (dx,), _ = run(cross_entropy, np.array([[size, 0.0], [-size, 0.0]]), np.array([1, 1]), dz=1.0)
    assert loss == size / 2
    np.testing.assert_array_equal(dx, [[0.5, -0.5], [0, 0]])


def test_a_score_of_minus_infinity():
    loss, (dx,), _ = run(cross_entropy, np.array([[-np.inf, 0.0, 0.0]]), np.array([1]), dz=1.0)
    assert abs(loss - math.log(2)) < 1e-15
    np.testing.assert_allclose(dx, [[0, -0.5, 0.5]], atol=1e-15)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_loss_of_scores_that_are_not_finite_is_not_finite(value):
    assert not math.isfinite(cross_entropy.forward(Context(), np.array([[value, 0.0]]), np.array([1])))


@pytest.mark.parametrize("shape", [(2, 3), (0, 3)], ids=str)
def test_loss_and_gradients_are_zero_if_all_labels_are_ignored(shape):
    loss, (dx,), _ = run(cross_entropy, np.zeros(shape), np.full(shape[:1], -100), dz=1.0)
    assert loss == 0
    assert not dx.any()


@pytest.mark.parametrize(
    ("target", "kind", "words"),
    [
        (np.array([0, 3]), ValueError, r"target\[1\] is 3: labels must be from 0 to 2, for 3 classes"),
        (np.array([-1, 0]), ValueError, r"target\[0\] is -1: .* or ignore_index \(-100\)"),
        (np.array([0, 1, 2]), ValueError, r"target must be of shape \(2,\), a label for x of shape \(2, 3\)"),
        (np.array([0.0, 1.0]), TypeError, "target must be a numpy.ndarray of integers, got float64"),
        ([0, 1], TypeError, "target must be a numpy.ndarray of integers, got list"),
    ],
)
def test_cross_entropy_refuses(target, kind, words):
    with pytest.raises(kind, match=words):
        cross_entropy.forward(Context(), np.zeros((2, 3)), target)


def test_the_error_names_the_position_of_a_wrong_label():
    target = np.zeros((2, 4, 4), int)
    target[1, 2, 3] = 7
    with pytest.raises(ValueError, match=r"target\[1, 2, 3\] is 7"):
        cross_entropy.forward(Context(), np.zeros((2, 3, 4, 4)), target)


@pytest.mark.parametrize("dz", [None, "1", np.ones(2)])
def test_a_dz_of_a_loss_that_is_not_a_number_is_refused(dz):
    ctx = Context()
    cross_entropy.forward(ctx, np.zeros((2, 3)), np.array([0, 1]))
    with pytest.raises(TypeError, match="dz must be a number"):
        cross_entropy.backward(ctx, dz)


def test_a_dz_of_a_loss_that_is_not_finite_propagates():
    """An overflow of the loss scale must be visible in the gradients that a trainer checks."""
    x, target = np.zeros((2, 3)), np.array([0, 1])
    _, (dx,), _ = run(cross_entropy, x, target, dz=np.nan)
    assert np.isnan(dx).all()


# ---- mean squared error ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 3, 200, 90)], ids=str)
def test_mean_squared_error(shape):
    x, target = normal(shape), normal(shape, seed=1)
    loss, (dx,), _ = run(mean_squared_error, x, target, dz=3.0)
    assert type(loss) is float
    assert abs(loss - np.square(x - target).mean()) <= 1e-15 * loss
    np.testing.assert_allclose(dx, 6 * (x - target) / x.size, rtol=1e-15)
    if x.size < 10:
        assert_gradients(mean_squared_error, [x], target)


@pytest.mark.torch
@pytest.mark.parametrize("dtype", EPS)
def test_mean_squared_error_against_torch(dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x, target = normal((3, 4, 5), dtype), normal((3, 4, 5), dtype, 1)
    tensor = torch.tensor(x, requires_grad=True)
    result = torch.nn.functional.mse_loss(tensor, torch.tensor(target))
    result.backward()
    loss, (dx,), _ = run(mean_squared_error, x, strided(target), dz=1.0)
    assert abs(loss - result.item()) <= 8 * EPS[dtype] * loss
    np.testing.assert_allclose(dx, tensor.grad.numpy(), rtol=4 * EPS[dtype])


def test_mean_squared_error_of_an_empty_x_is_zero():
    loss, (dx,), _ = run(mean_squared_error, np.zeros((0, 3)), np.zeros((0, 3)), dz=1.0)
    assert loss == 0
    assert dx.shape == (0, 3)


# ---- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [(linear, (np.zeros((3, 6)),)), (flatten, ()), (dropout, ())],
    ids=["linear", "flatten", "dropout"],
)
def test_dz_of_another_shape_or_dtype_is_refused(operation, arguments):
    ctx = Context()
    z = operation.forward(ctx, np.zeros((2, 6)), *arguments)
    with pytest.raises(ValueError, match=r"dz must be of shape \(2, \d\), .* got \(2, 5\)"):
        operation.backward(ctx, np.zeros((2, 5)))
    with pytest.raises(TypeError, match=r"dz must be float64, the .*; pass dz.astype\(numpy.float64\)"):
        operation.backward(ctx, z.astype("f4"))
