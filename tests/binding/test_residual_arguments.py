"""Residual, slope and residual_grad: refused arguments, and gradients."""

import copy
import pickle
import typing

import numpy as np
import pytest
from batches import DTYPES, LAYOUTS, dtype_of, random_batch
from keywords import as_sums
from refusals import (
    SHAPE,
    Subclass,
    ctx_and_dz,
    field,
    forward_arguments,
    misaligned,
    read_only,
    refused,
    strided,
)

from inplace_abn import _core, _types, functional, reference

# NumPy deprecates these ways to change an array; as long as they exist, they must be harmless.
pytestmark = pytest.mark.filterwarnings("ignore:Setting the .* on a NumPy array:DeprecationWarning")

STRATEGIES = list(reference.KEEPS)
WRITES_X = [strategy for strategy in STRATEGIES if reference.KEEPS[strategy] != "x"]
READS_X = [strategy for strategy in STRATEGIES if reference.KEEPS[strategy] == "x"]
C = SHAPE[1]


def batch(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def with_residual(residual, **options):
    return functional.forward(batch(), residual=residual, **options)


def forwards(**changes):
    """Return forward and normalize, each with valid arguments except for the changes."""
    given = {"mean": np.zeros(C), "var": np.ones(C), "count": 80}
    yield _core.forward, forward_arguments(**changes)
    yield _core.normalize, {**forward_arguments(**changes), **given}


def backwards(ctx, dz, **options):
    """Return backward and backward_apply in the same way."""
    sums = {"sum_dy": np.zeros(C), "sum_dy_xhat": np.zeros(C), "count": 40}
    yield _core.backward, {"ctx": ctx, "dz": dz, **options}
    yield _core.backward_apply, {"ctx": ctx, "dz": dz, **sums, **options}


# ---- residual: refused -------------------------------------------------------------------------------------

# Values that do not match x, for residual and residual_grad.
UNLIKE = {
    "list": ([[1.0, 2.0]], TypeError, "must be a numpy.ndarray, got 'list'"),
    "number": (1.0, TypeError, "got 'float'"),
    "masked": (np.ma.ones(SHAPE, np.float32), TypeError, "got 'MaskedArray'"),
    "subclass": (np.ones(SHAPE, np.float32).view(Subclass), TypeError, "got 'Subclass'"),
    "float64": (np.ones(SHAPE), TypeError, "must be float32 as x was, got float64"),
    "float16": (np.ones(SHAPE, np.float16), TypeError, "float32 as x was, got float16; pass residual"),
    "int32": (np.ones(SHAPE, np.int32), TypeError, "got int32"),
    "swapped": (np.ones(SHAPE, np.dtype("f4").newbyteorder()), TypeError, "native byte order"),
    "other shape": (
        np.ones((4, 3, 2, 5), np.float32),
        ValueError,
        "must have the shape of x, (4, 3, 5, 2), got (4, 3, 2, 5)",
    ),
    "one sample": (np.ones((1, *SHAPE[1:]), np.float32), ValueError, "must have the shape of x"),
    "per channel": (np.ones(C, np.float32), ValueError, "must have the shape of x"),
    "other ndim": (np.ones((4, 3, 10), np.float32), ValueError, "got (4, 3, 10)"),
    "misaligned": (misaligned(SHAPE), ValueError, "must be aligned"),
    "field": (field(SHAPE), ValueError, "must be aligned"),
    "broadcast": (strided(SHAPE, (0, 0, 0, 0)), ValueError, "overlaps itself"),
    "windows": (strided(SHAPE, (10, 5, 2, 1)), ValueError, "overlaps itself"),
    "backwards": (np.ones(SHAPE, np.float32)[::-1], ValueError, "runs backwards in memory"),
    "gaps in rows": (
        np.ones((4, 3, 5, 4), np.float32)[..., :2],
        ValueError,
        "cannot be read as one with a single stride",
    ),
    "channels-last": (
        np.moveaxis(np.ones((4, 5, 2, 3), np.float32), -1, 1),
        ValueError,
        "must be channels-first in memory, as x was",
    ),
}


@pytest.mark.parametrize("kind", UNLIKE)
def test_a_residual_that_does_not_match_x(kind):
    residual, error, message = UNLIKE[kind]
    for strategy in ("inplace", "standard", "checkpoint_xhat"):
        for function, arguments in forwards(residual=residual, strategy=strategy):
            refused(function, arguments, error, "residual ", message)


def test_a_residual_must_be_channels_last_where_x_is():
    x, axis = LAYOUTS["last_seen_as_first"](random_batch(SHAPE, "float32").x)
    arguments = {"x": x, "channel_axis": axis, "residual": np.ones(x.shape, np.float32)}
    refused(_core.forward, arguments, ValueError, "residual must be channels-last in memory, as x was")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_residual_of_every_dtype_and_layout(dtype, layout):
    """Including slices of larger arrays, whose strides differ from those of x."""
    drawn = random_batch((4, 3, 5), dtype)
    x, axis = LAYOUTS[layout](drawn.x)
    residual = LAYOUTS[layout](drawn.dz)[0]
    z, ctx = functional.forward(x, residual=residual, channel_axis=axis)
    assert ctx.saved["residual"] is residual
    gradients = functional.backward(ctx, z)
    assert gradients.dresidual.shape == x.shape
    assert gradients.dresidual.dtype == dtype_of(dtype)


@pytest.mark.parametrize("strategy", WRITES_X)
def test_overwritten_x_must_not_share_memory_with_the_residual(strategy):
    message = "x is written and shares memory with residual"
    for view in (lambda good: good["x"], lambda good: good["x"][...]):
        for function, arguments in forwards(residual=view, strategy=strategy):
            refused(function, arguments, ValueError, message)
    both = batch(shape=(6, *SHAPE[1:]))
    refused(_core.forward, {"x": both[:4], "residual": both[2:], "strategy": strategy}, ValueError, message)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", ["running_mean", "running_var"])
def test_running_statistics_must_not_share_memory_with_the_residual(name, strategy):
    residual = batch(1)
    changes = {"residual": residual, name: residual[1, :, 2, 1], "strategy": strategy}
    message = f"{name} is written and shares memory with residual"
    for function, arguments in forwards(**changes):
        refused(function, arguments, ValueError, message)
    residual[...] = 1
    functional.forward(**forward_arguments(**changes, training=False))  # where they are read


@pytest.mark.parametrize("strategy", READS_X)
def test_x_may_be_the_residual_if_it_is_not_overwritten(strategy):
    x = batch()
    z, ctx = functional.forward(x, residual=x, strategy=strategy, activation="identity")
    assert [(role, array is x) for role, array in ctx.saved.items()] == [("x", True), ("residual", True)]
    assert ctx.nbytes == x.nbytes  # one array
    assert not x.flags.writeable
    dz = np.ones_like(z)
    assert np.array_equal(functional.backward(ctx, dz).dresidual, dz)
    assert x.flags.writeable


# ---- slope: refused ----------------------------------------------------------------------------------------


def test_slopes_of_another_dtype_or_shape():
    for value, error, message in [
        ([0.1, 0.1, 0.1], TypeError, "must be a numpy.ndarray, got 'list'"),
        (0.1, TypeError, "got 'float'"),
        (np.ma.ones(3, np.float32), TypeError, "got 'MaskedArray'"),
        (np.ones(3), TypeError, "must be float32, got float64; pass slope.astype(numpy.float32)"),
        (np.ones(3, np.dtype("f4").newbyteorder()), TypeError, "native byte order"),
        (np.ones(2, np.float32), ValueError, "have shape (3,), one element per channel, or (1,), got (2,)"),
        (np.ones(0, np.float32), ValueError, "or (1,), got (0,)"),
        (np.ones((3, 1), np.float32), ValueError, "must have one dimension, got 2"),
        (np.ones((), np.float32), ValueError, "must have one dimension, got 0"),
        (misaligned((3,)), ValueError, "must be aligned"),
        (misaligned((1,)), ValueError, "must be aligned"),
        (np.ones(3, np.float32)[::-1], ValueError, "must step forward in memory"),
        (strided((3,), (0,)), ValueError, "must step forward in memory"),
        (np.array([0, 1, np.nan], np.float32), ValueError, "must be finite in every channel, got nan"),
        (np.array([0, 1, -np.inf], np.float32), ValueError, "got -inf"),
        (np.array([np.inf], np.float32), ValueError, "got inf"),
    ]:  # fmt: skip
        for function, arguments in forwards(activation="prelu", slope=value):
            refused(function, arguments, error, "slope ", message)
    double = {"x": np.ones(SHAPE), "activation": "prelu", "slope": np.ones(3, np.float32)}
    refused(_core.forward, double, TypeError, "slope must be float64")


def test_slopes_need_prelu():
    message = (
        "slope is needed by activation 'prelu': an array of shape (3,), one element per channel, or (1,)"
    )
    for function, arguments in forwards(activation="prelu"):
        refused(function, arguments, ValueError, message)
        refused(function, {**arguments, "slope": None}, ValueError, message)
    for activation in set(typing.get_args(_types.Activation)) - {"prelu"}:
        for function, arguments in forwards(
            activation=activation, slope=np.ones(C, np.float32), strategy="standard"
        ):
            refused(function, arguments, ValueError, "slope goes with activation 'prelu'", f"'{activation}'")


@pytest.mark.parametrize("strategy", WRITES_X)
def test_overwritten_x_must_not_share_memory_with_the_slope(strategy):
    for part in (lambda good: good["x"][1, :, 2, 1], lambda good: good["x"][1, 1, 2, 1:]):
        arguments = forward_arguments(activation="prelu", slope=part, strategy=strategy)
        refused(_core.forward, arguments, ValueError, "x is written and shares memory with slope")


@pytest.mark.parametrize("written", ["running_mean", "running_var"])
def test_running_statistics_must_not_share_memory_with_the_slope(written):
    for part in (slice(None), slice(1, 2)):
        arguments = forward_arguments(activation="prelu", strategy="standard")
        arguments["slope"] = arguments[written][part]
        message = f"{written} is written and shares memory with slope"
        refused(_core.forward, arguments, ValueError, message)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, C])
def test_slopes_of_any_sign_and_their_gradients(dtype, count):
    drawn = random_batch(SHAPE, dtype)
    slope = np.linspace(-0.5, 0.5, C)[:count].astype(drawn.weight.dtype)
    _, ctx = functional.forward(drawn.x.copy(), activation="prelu", slope=slope)
    slope[...] = 77  # what is kept is a copy
    sums = functional.backward_reduce(ctx, drawn.dz)
    gradients = functional.backward(ctx, drawn.dz)
    assert gradients.dresidual is None
    assert gradients.dslope.dtype == slope.dtype
    assert sums.dslope.dtype == np.float64
    assert gradients.dslope.shape == sums.dslope.shape == (count,)
    assert np.allclose(gradients.dslope, sums.dslope, rtol=1e-6)


def test_the_gradient_of_a_shared_slope_is_the_sum_over_channels():
    dz = batch(1)
    each = np.full(C, 0.25, np.float32)
    per_channel = functional.backward(functional.forward(batch(), activation="prelu", slope=each)[1], dz)
    for_all = functional.backward(functional.forward(batch(), activation="prelu", slope=each[:1])[1], dz)
    assert np.array_equal(for_all.dx, per_channel.dx)
    assert np.allclose(for_all.dslope, per_channel.dslope.sum(), rtol=1e-6)


# ---- residual_grad: refused --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", UNLIKE)
def test_a_residual_grad_that_does_not_match_x(kind):
    value, error, message = UNLIKE[kind]
    ctx, dz = ctx_and_dz(residual=batch(2))
    for function, arguments in backwards(ctx, dz, residual_grad=value):
        refused(function, arguments, error, "residual_grad ", message)
    assert not ctx.freed


def test_a_read_only_residual_grad():
    ctx, dz = ctx_and_dz(residual=batch(2))
    message = "residual_grad is written in place, but it is read-only"
    for function, arguments in backwards(ctx, dz, residual_grad=read_only(SHAPE)):
        refused(function, arguments, ValueError, message)


@pytest.mark.parametrize("overwrite", [False, True])
def test_residual_grad_must_not_share_memory_with_dz(overwrite):
    ctx, dz = ctx_and_dz(residual=batch(2))
    both = batch(3, shape=(6, *SHAPE[1:]))
    message = "residual_grad is written and shares memory with dz"
    for gradient, other in [(dz, dz), (dz, dz[...]), (both[:4], both[2:])]:
        for function, arguments in backwards(ctx, gradient, residual_grad=other, overwrite=overwrite):
            refused(function, arguments, ValueError, message)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_residual_grad_must_not_share_memory_with_kept_arrays(strategy):
    x, residual, other, other_residual = (batch(seed) for seed in range(4))
    arrays = [x, residual, other, other_residual]
    views = [array[...] for array in arrays]
    _, ctx = functional.forward(x, residual=residual, strategy=strategy)
    _, another = functional.forward(other, residual=other_residual, strategy=strategy)
    dz = batch(5)
    for array in arrays:
        for function, arguments in backwards(ctx, dz, residual_grad=array):
            message = "residual_grad is written in place by backward"
            refused(function, arguments, ValueError, message, "keeps that memory as")
    for view in views[:2]:
        for function, arguments in backwards(ctx, dz, residual_grad=view):
            message = "residual_grad is written and shares memory with what ctx keeps"
            refused(function, arguments, ValueError, message)
    for view, role in zip(views[2:], [reference.KEEPS[strategy], "residual"], strict=True):
        message = f"keeps that memory as '{role}' for its backward"
        for function, arguments in backwards(ctx, dz, residual_grad=view):
            refused(function, arguments, ValueError, "residual_grad is written", message)
    another.release()
    assert functional.backward(ctx, dz, residual_grad=views[3]).dresidual is views[3]


def test_a_residual_grad_without_a_residual():
    ctx, dz = ctx_and_dz()
    message = "residual_grad goes with a ctx of a forward that was given residual, and this one was not"
    for function, arguments in backwards(ctx, dz, residual_grad=batch()):
        refused(function, arguments, ValueError, message)


def test_backward_apply_needs_a_residual_grad():
    ctx, dz = ctx_and_dz(residual=batch(2))
    message = "residual_grad is needed by a ctx of a forward that was given residual, got None; give an array"
    for options in ({}, {"residual_grad": None}):
        _, (function, arguments) = backwards(ctx, dz, **options)
        refused(function, arguments, ValueError, message)
    gradient = np.ones_like(dz)
    functional.backward_apply(
        ctx, dz, **as_sums(functional.backward_reduce(ctx, dz)), count=40, residual_grad=gradient
    )
    assert ctx.freed


def test_sums_inside_a_residual_grad():
    _, ctx = functional.forward(batch(shape=(4, C)).astype(np.float64), residual=np.ones((4, C)))
    gradient = np.ones((4, C))
    arguments = {"ctx": ctx, "dz": np.ones((4, C)), "sum_dy": gradient[0], "sum_dy_xhat": np.zeros(C)}
    arguments |= {"count": 4, "residual_grad": gradient}
    refused(_core.backward_apply, arguments, ValueError, "residual_grad is written", "sum_dy")


# ---- gradients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_gradient_of_a_residual_is_returned_or_accumulated(strategy, overwrite):
    options = {"strategy": strategy, "activation": "identity"}
    dz = batch(1)
    gradients = functional.backward(with_residual(batch(2), **options)[1], dz.copy(), overwrite=overwrite)
    assert np.array_equal(gradients.dresidual, dz)
    assert not np.shares_memory(gradients.dresidual, gradients.dx)
    added = np.ones_like(dz)
    own = dz.copy()
    got = functional.backward(
        with_residual(batch(2), **options)[1], own, overwrite=overwrite, residual_grad=added
    )
    assert got.dresidual is added
    assert (got.dx is own) is overwrite
    assert np.array_equal(added, dz + np.float32(1))
    assert np.array_equal(got.dx, gradients.dx)


def test_reduce_and_apply_accumulate_the_gradient_of_a_residual():
    dz, added = batch(1), np.ones(SHAPE, np.float32)
    want = functional.backward(with_residual(batch(2))[1], dz)
    _, ctx = with_residual(batch(2))
    dx = functional.backward_apply(
        ctx, dz, **as_sums(functional.backward_reduce(ctx, dz)), count=40, residual_grad=added
    )
    assert np.allclose(dx, want.dx, atol=1e-6)
    assert np.allclose(added, want.dresidual + 1, atol=1e-6)


def test_an_empty_batch():
    x = np.ones((0, C, 5), np.float32)
    slope = np.ones(1, np.float32)
    z, ctx = functional.forward(x, residual=np.ones_like(x), activation="prelu", slope=slope)
    gradients = functional.backward(ctx, z, residual_grad=np.ones_like(x))
    assert gradients.dresidual.shape == x.shape
    assert gradients.dslope.tolist() == [0]


def test_gradients_unpack_to_three_and_have_two_attributes():
    dz = batch(1)
    _, ctx = with_residual(batch(2), activation="prelu", slope=np.ones(C, np.float32))
    gradients = functional.backward(ctx, dz)
    assert len(gradients) == 3
    dx, dweight, dbias = gradients
    assert dx is gradients.dx
    assert dweight is dbias is None
    assert "dslope=array(" in repr(gradients)
    assert "dresidual=array(" in repr(gradients)
    for again in (copy.copy(gradients), copy.deepcopy(gradients), pickle.loads(pickle.dumps(gradients))):
        assert type(again) is functional.Gradients
        assert np.array_equal(again.dx, dx)
        assert np.array_equal(again.dslope, gradients.dslope)
        assert np.array_equal(again.dresidual, gradients.dresidual)
    assert gradients._replace(dx=None).dresidual is gradients.dresidual
    assert gradients._replace(dslope=None).dslope is None
    assert functional.Gradients._make([dx, dweight, dbias]).dslope is None


def test_plain_gradients_have_no_further_attributes():
    ctx, dz = ctx_and_dz()
    sums = functional.backward_reduce(ctx, dz)
    assert (len(sums), sums.dslope) == (2, None)
    gradients = functional.backward(ctx, dz)
    assert gradients.dslope is gradients.dresidual is None
    assert "dslope" not in repr(gradients)
    assert np.sum([sums, sums], axis=0).shape == (2, C)
