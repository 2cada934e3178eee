"""Arguments that normalize, backward, reduce, apply and smaller functions refuse; see test_arguments.py."""

import numpy as np
import pytest
from batches import LAYOUTS, random_batch
from keywords import as_sums
from refusals import (
    SHAPE,
    calls_with_dz,
    ctx_and_dz,
    forward_arguments,
    misaligned,
    read_only,
    refused,
    strided,
)  # fmt: skip

from inplace_abn import _core, functional

# ---- normalize ---------------------------------------------------------------------------------------------


def normalize_arguments(**changes):
    return {**forward_arguments(), "mean": np.zeros(3), "var": np.ones(3), "count": 80, **changes}


@pytest.mark.parametrize("name", ["mean", "var"])
def test_given_statistics(name):
    for value, error, message in [
        (None, TypeError, "must be a numpy.ndarray, got None"),
        ([0.0, 0.0, 0.0], TypeError, "got 'list'"),
        (np.zeros(3, np.float32), TypeError, "must be float64, got float32"),
        (np.zeros(2), ValueError, "must have shape (3,), one element per channel, got (2,)"),
    ]:
        refused(_core.normalize, normalize_arguments(**{name: value}), error, name, message)


def test_given_statistics_inside_x():
    x = np.ones((4, 3))
    arguments = {"x": x, "mean": x[0], "var": np.ones(3), "count": 4}
    refused(_core.normalize, arguments, ValueError, "x is written and shares memory with mean")


def test_the_count_of_given_statistics():
    for value, error, message in [
        (1, ValueError, "more than 1 element per channel"),
        (0, ValueError, "more than 1 element per channel"),
        (-5, ValueError, "at least 0"),
        (np.nan, ValueError, "got nan"),
        (np.inf, ValueError, "got inf"),
        ("80", TypeError, "must be a number, got '80'"),
        (None, TypeError, "must be a number"),
    ]:
        refused(_core.normalize, normalize_arguments(count=value), error, "count", message)


# ---- backward ----------------------------------------------------------------------------------------------


DZ = {
    "list": ([1.0], TypeError, "dz must be a numpy.ndarray, got 'list'"),
    "float64": (
        np.ones(SHAPE),
        TypeError,
        "dz must be float32 as x was, got float64; pass dz.astype(numpy.float32)",
    ),
    "int": (np.ones(SHAPE, int), TypeError, "dz must be"),
    "other shape": (np.ones((4, 3, 2, 5), np.float32), ValueError, "have the shape of x, (4, 3, 5, 2), got"),
    "other ndim": (np.ones((4, 3, 10), np.float32), ValueError, "got (4, 3, 10)"),
    "broadcast": (strided(SHAPE, (0, 0, 0, 0)), ValueError, "dz overlaps itself"),
    "channels-last": (
        np.moveaxis(np.ones((4, 5, 2, 3), np.float32), -1, 1),
        ValueError,
        "dz must be channels-first in memory, as x was",
    ),
    "misaligned": (misaligned(SHAPE), ValueError, "dz must be aligned"),
    "swapped": (np.ones(SHAPE, np.dtype("f4").newbyteorder()), TypeError, "dz must be in native byte order"),
}


@pytest.mark.parametrize("kind", DZ)
def test_dz(kind):
    value, error, message = DZ[kind]
    ctx, dz = ctx_and_dz()
    want = functional.backward(ctx_and_dz()[0], dz)
    for function, arguments in calls_with_dz(ctx, value):
        refused(function, arguments, error, message)
    assert np.array_equal(functional.backward(ctx, dz).dx, want.dx)  # what was refused did ctx no harm


def test_dz_must_be_channels_last_where_x_was():
    x, axis = LAYOUTS["last_seen_as_first"](random_batch((4, 3, 5), "float32").x)
    _, ctx = functional.forward(x, channel_axis=axis)
    for function, arguments in calls_with_dz(ctx, np.ones(x.shape, np.float32)):
        refused(function, arguments, ValueError, "dz must be channels-last in memory, as x was")


def test_dz_of_one_position_or_one_channel_has_every_layout():
    for shape in [(4, 1, 5), (4, 3, 1), (4, 3)]:
        batch = random_batch(shape, "float32")
        for lay_out in LAYOUTS.values():
            x, axis = lay_out(batch.x)
            _, ctx = functional.forward(x, channel_axis=axis)
            want = functional.backward(functional.forward(batch.x.copy())[1], batch.dz).dx
            dz = batch.dz if axis == 1 else np.moveaxis(batch.dz, 1, -1).copy()
            assert np.allclose(np.moveaxis(functional.backward(ctx, dz).dx, axis, 1), want, atol=1e-6)


def test_overwrite_needs_a_writeable_dz():
    ctx, dz = ctx_and_dz()
    frozen = read_only(SHAPE)
    for function, arguments in calls_with_dz(ctx, frozen, overwrite=True):
        refused(function, arguments, ValueError, "dz is written in place, but it is read-only")
    for value in (1, None, "yes"):
        for function, arguments in calls_with_dz(ctx, dz, overwrite=value):
            refused(function, arguments, TypeError, "overwrite must be True or False")
    functional.backward(ctx, frozen)


@pytest.mark.parametrize("strategy", ["standard", "checkpoint_xhat", "pre_activation", "inplace"])
def test_overwrite_refuses_dz_that_shares_memory_with_the_context(strategy):
    x = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    view = x[...]
    _, ctx = functional.forward(x, strategy=strategy)
    for function, arguments in calls_with_dz(ctx, view, overwrite=True):
        refused(function, arguments, ValueError, "dz is written and shares memory with what ctx keeps")
    for function, arguments in calls_with_dz(ctx, x, overwrite=True):
        refused(function, arguments, ValueError, "is written in place by", "keeps that memory as")
    assert functional.backward(ctx, view).dx.shape == x.shape  # which is only read here


def test_x_that_a_live_context_keeps_is_not_overwritten():
    x = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    _, ctx = functional.forward(x, strategy="standard")
    refused(
        _core.forward,
        {"x": x},
        ValueError,
        "x is written in place by forward, but functional.forward (",
        "keeps that memory as 'x'",
    )
    ctx.release()
    functional.forward(x)


@pytest.mark.parametrize("ctx", [None, 3, "ctx", np.ones(SHAPE, np.float32)], ids=repr)
def test_ctx_is_a_context(ctx):
    for function, arguments in calls_with_dz(ctx, np.ones(SHAPE, np.float32)):
        refused(function, arguments, TypeError, "ctx must be the Context that forward or normalize returned")


@pytest.mark.parametrize("name", ["sum_dy", "sum_dy_xhat"])
def test_sums(name):
    ctx, dz = ctx_and_dz()
    arguments = calls_with_dz(ctx, dz)[1][1]
    for value, error, message in [
        (None, TypeError, "must be a numpy.ndarray, got None"),
        ([0.0] * 3, TypeError, "got 'list'"),
        (np.zeros(3, np.float32), TypeError, "must be float64, got float32"),
        (np.zeros(5), ValueError, "must have shape (3,)"),
    ]:
        refused(_core.backward_apply, {**arguments, name: value}, error, name, message)


def test_sums_inside_dz():
    x = np.random.default_rng(1).normal(size=(4, 3))
    _, ctx = functional.forward(x)
    dz = np.ones((4, 3))
    arguments = {"ctx": ctx, "dz": dz, "sum_dy": dz[0], "sum_dy_xhat": np.zeros(3), "count": 4}
    refused(_core.backward_apply, {**arguments, "overwrite": True}, ValueError, "dz is written", "sum_dy")
    functional.backward_apply(**arguments)


def test_the_count_of_sums_is_that_of_the_statistics():
    ctx, dz = ctx_and_dz()
    arguments = calls_with_dz(ctx, dz)[1][1]
    for value in (39, 80, 0, -1, np.nan):
        arguments["count"] = value
        refused(_core.backward_apply, arguments, ValueError, "count must be 40, ", f"got {value}")
    refused(_core.backward_apply, {**arguments, "count": "40"}, TypeError, "count must be a number")


def test_backward_refuses_the_statistics_of_several_batches():
    _, ctx = functional.normalize(np.ones(SHAPE, np.float32), mean=np.zeros(3), var=np.ones(3), count=80)
    dz = np.ones(SHAPE, np.float32)
    refused(_core.backward, {"ctx": ctx, "dz": dz}, ValueError, "use backward_reduce", "backward_apply")
    functional.backward_apply(ctx, dz, **as_sums(functional.backward_reduce(ctx, dz)), count=80)


# ---- the others --------------------------------------------------------------------------------------------


def test_merge_statistics():
    one = [np.zeros(3)], [np.ones(3)]
    for means, variances, counts in [
        ([], [], []),
        (*one, [2, 3]),
        (*one, 2),
        (one[0], [np.ones(3)] * 2, [2]),
        (one[0], [np.ones(4)], [2]),
        ([0.0], [1.0], [2]),
    ]:
        with pytest.raises(ValueError, match="means, vars and counts must have the same length"):
            functional.merge_statistics(means, variances, counts)
    for counts in ([-1], [2.5], [np.nan]):
        with pytest.raises(ValueError, match="counts must be whole numbers of at least 0"):
            functional.merge_statistics(*one, counts)


def test_merge_statistics_of_no_batches():
    mean, var, count = functional.merge_statistics([[np.nan], [1.0]], [[np.nan], [1.0]], [0, 0])
    assert (mean.tolist(), var.tolist(), count) == ([0.0], [0.0], 0)


def test_set_num_threads():
    before = functional.get_num_threads()
    for value, error in zip([0, -3, 10**9, 2.0, None], [ValueError] * 3 + [TypeError] * 2, strict=True):
        with pytest.raises(error, match="n must be"):
            functional.set_num_threads(value)
    assert functional.get_num_threads() == before


def test_stream():
    a, b = np.ones(64, np.float32), np.ones(64, np.float32)
    both = np.ones(100, np.float32)
    for changes, error, message in [
        ({"a": [1.0]}, TypeError, "a must be a numpy.ndarray"),
        ({"a": np.ones(64)}, TypeError, "a must be float32, got float64"),
        ({"a": np.ones((8, 8), np.float32)}, ValueError, "a must have one dimension, got 2"),
        ({"a": np.ones(128, np.float32)[::2]}, ValueError, "a must be contiguous, got a stride of 8 bytes"),
        ({"b": np.ones(63, np.float32)}, ValueError, "b must have the 64 elements of a, got 63"),
        ({"b": read_only((64,))}, ValueError, "b is written in place, but it is read-only"),
        ({"a": read_only((64,)), "b": None}, ValueError, "a is written in place, but it is read-only"),
        ({"a": both[:64], "b": both[36:]}, ValueError, "b is written and shares memory with a"),
        ({"c": "1"}, TypeError, "c must be a number"),
        ({"prefetch": -1}, ValueError, "prefetch must be"),
        ({"prefetch": 1.5}, TypeError, "prefetch must be"),
    ]:
        refused(_core.stream, {"a": a, "b": b, "c": 1.0, "d": 2.0, **changes}, error, message)
    _core.stream(a, c=2.0, d=1.0)
    _core.stream(a, b=b, c=2.0, d=1.0, prefetch=16)
    assert (a == 3).all()
    assert (b == 5).all()
