"""Attempts to change kept arrays: through flags, dtypes, shapes, views, bases, and from other threads."""

import contextlib
import gc
import threading

import numpy as np
import pytest

from inplace_abn import _core, functional
from inplace_abn._activations import KEEPS

SHAPE = (4, 6, 5)

# NumPy deprecates these ways to change an array; as long as they exist, they must be harmless.
pytestmark = pytest.mark.filterwarnings("ignore:Setting the .* on a NumPy array:DeprecationWarning")


def batch(shape=SHAPE):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def calls(ctx, dz):
    sums = np.zeros(SHAPE[1])
    return {
        "backward": lambda: functional.backward(ctx, dz),
        "backward_reduce": lambda: functional.backward_reduce(ctx, dz),
        "backward_apply": lambda: functional.backward_apply(ctx, dz, sum_dy=sums, sum_dy_xhat=sums, count=20),
        "recompute": ctx.recompute,
    }


# ---- the kept array ----------------------------------------------------------------------------------------

CHANGES = {
    "smaller": (lambda z: z.resize((2, 6, 5), refcheck=False), "resized or given other memory: it had 480 b"),
    "larger": (lambda z: z.resize(1 << 22, refcheck=False), "and now has 16777216 bytes"),
    "state": (
        lambda z: z.__setstate__((1, SHAPE, np.dtype(np.float64), False, bytes(960))),
        "resized or given other memory",
    ),
    "dtype": (lambda z: setattr(z, "dtype", np.int32), "was float32, and now is dtype.'int32'"),
    "order": (lambda z: setattr(z, "dtype", z.dtype.newbyteorder()), "was float32, and now is dtype.'.f4'"),
    "items": (lambda z: setattr(z, "dtype", np.uint8), "it was float32, and now is dtype.'uint8'"),
    "unlocked": (lambda z: z.setflags(write=True), "was unlocked: flags.writeable is True, and was False"),
}  # fmt: skip


@pytest.mark.parametrize("name", ["backward", "backward_reduce", "backward_apply", "recompute"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_kept_array_that_was_changed(change, name):
    x = batch()
    z, ctx = functional.forward(x, strategy="checkpoint")
    act, message = CHANGES[change]
    act(x)
    with pytest.raises(RuntimeError, match=message):
        calls(ctx, np.ones_like(z))[name]()
    assert not ctx.freed
    assert ctx.nbytes == 480
    ctx.release()


def test_a_restored_array_can_be_used():
    x, dz = batch(), np.ones(SHAPE, np.float32)
    want = functional.backward(functional.forward(x.copy())[1], dz).dx
    _, ctx = functional.forward(x)
    x.dtype = np.int32
    x.dtype = np.float32
    x.setflags(write=True)
    x.setflags(write=False)
    x.shape = -1  # the same memory, whatever its shape
    assert np.array_equal(functional.backward(ctx, dz).dx, want)


def test_unlocking_does_not_make_other_memory_writeable():
    x = batch()
    _, ctx = functional.forward(x)
    x.__setstate__((1, (1 << 18,), np.dtype(np.float32), False, bytes(1 << 20)))
    x.setflags(write=False)
    ctx.release()
    assert not x.flags.writeable


# ---- side arrays -------------------------------------------------------------------------------------------


def with_side_arrays():
    x = np.linspace(-1, 1, 2 * 3 * 50).reshape(2, 3, 50).astype(np.float32)
    x[0, 1, 7] = x[1, 2, 11] = -50
    weight = np.array([0, 4, 4], np.float32)
    _, ctx = functional.forward(x, weight=weight, activation="elu", activation_param=1.0)
    return ctx, dict(ctx.saved)


SIDE = ["guarded_xhat", "escape_index", "escape_xhat"]


@pytest.mark.parametrize("name", SIDE)
def test_side_arrays_cannot_be_changed(name):
    dz = np.random.default_rng(1).normal(size=(2, 3, 50)).astype(np.float32)
    want = functional.backward(with_side_arrays()[0], dz)
    ctx, saved = with_side_arrays()
    assert set(saved) == {"z", *SIDE}
    array = saved[name]
    nbytes = ctx.nbytes
    assert not isinstance(array.base, np.ndarray)
    assert not array.flags.owndata
    with pytest.raises(ValueError, match="does not own its data"):
        array.resize(1 << 20, refcheck=False)
    with pytest.raises(ValueError, match="cannot set WRITEABLE flag"):
        array.setflags(write=True)
    with pytest.raises(ValueError, match="read-only"):
        array[...] = 7
    with pytest.raises(TypeError):
        memoryview(array.base)
    array.dtype = np.uint8
    array.__setstate__((1, (3,), np.dtype(np.uint8), False, b"abc"))
    del array, saved
    gc.collect()
    assert ctx.nbytes == nbytes
    for got, expected in zip(functional.backward(ctx, dz), want, strict=True):
        assert (got is None and expected is None) or np.array_equal(got, expected)


def test_side_arrays_outlive_their_context():
    ctx, saved = with_side_arrays()
    copies = {name: array.copy() for name, array in saved.items()}
    ctx.release()
    del ctx
    gc.collect()
    for name, array in saved.items():
        assert np.array_equal(array, copies[name])


def test_the_garbage_collector_does_not_expose_side_arrays():
    ctx, _ = with_side_arrays()
    found = [o for o in gc.get_referents(ctx) if isinstance(o, np.ndarray)]
    assert [o.flags.owndata for o in found[1:]] == [False] * (len(found) - 1)


# ---- views and bases ---------------------------------------------------------------------------------------

KEPT = (
    r"{} is written in place by \w+, but functional.forward \(.*\) keeps that memory as '{}' for its backward"
)
VIEWS = {
    "whole": lambda base: base[...],
    "base": lambda base: base,
    "overlapping channels": lambda base: base[:, 2:5],
    "one sample": lambda base: base[1:2],
    "another shape": lambda base: base.reshape(2, 12, 5),
    "another dtype": lambda base: base.view(np.float16),
    "transposed": lambda base: np.moveaxis(base.reshape(4, 5, 6), -1, 1),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(
    "keeper", ["standard", "checkpoint", "checkpoint_xhat", "pre_activation", "inplace_1", "inplace"]
)
def test_forward_does_not_overwrite_kept_arrays(keeper, view):
    base = batch()
    kept = base[:, :3]
    writes = VIEWS[view](base)
    z, ctx = functional.forward(kept, strategy=keeper)
    before = base.copy()
    role = KEEPS[keeper]
    for strategy in ("inplace", "inplace_1", "checkpoint_xhat"):
        with pytest.raises(ValueError, match=KEPT.format("x", role)) as caught:
            functional.forward(writes, strategy=strategy)
        assert f"float32 (4, 3, 5), strategy='{keeper}'" in str(caught.value)
    assert np.array_equal(base, before)
    assert writes.flags.writeable
    functional.forward(writes, strategy="standard")  # reads it
    functional.backward(ctx, np.ones_like(z))
    functional.forward(writes)


def test_adjacent_memory_does_not_overlap():
    base = batch((4, 6, 5))
    _, first = functional.forward(base[:, :3])
    _, second = functional.forward(base[:, 3:])
    other = batch((3, 4, 4, 8))
    contexts = [functional.forward(other[..., i : i + 2], channel_axis=-1)[1] for i in (0, 2, 4, 6)]
    for ctx in contexts:
        assert not ctx.freed
    third = batch((6, 3, 5))
    even, odd = functional.forward(third[::2])[1], functional.forward(third[1::2])[1]
    with pytest.raises(ValueError, match="x is written in place"):
        functional.forward(third[1:2])
    assert not any(ctx.freed for ctx in (first, second, even, odd))


def test_gradients_statistics_and_outputs_do_not_overwrite_kept_arrays():
    base = batch()
    view, flat = base[...], base.reshape(-1)[:6]
    _, keeps = functional.forward(base)
    _, ctx = functional.forward(batch(), strategy="checkpoint")
    one = np.ones(6, np.float32)
    sums = np.zeros(6)
    before = base.copy()
    for call, name in [
        (lambda: functional.backward(ctx, view, overwrite=True), "dz"),
        (
            lambda: functional.backward_apply(
                ctx, view, sum_dy=sums, sum_dy_xhat=sums, count=20, overwrite=True
            ),
            "dz",
        ),
        (lambda: ctx.recompute(out=view), "out"),
        (lambda: functional.forward(batch(), running_mean=flat, running_var=one), "running_mean"),
        (
            lambda: functional.forward(batch(), running_mean=one, running_var=flat, strategy="standard"),
            "running_var",
        ),
        (
            lambda: functional.normalize(
                batch(), mean=sums, var=sums + 1, count=20, running_mean=one, running_var=flat
            ),
            "running_var",
        ),
        (lambda: _core.stream(view.reshape(-1)), "a"),
        (lambda: _core.stream(np.ones(120, np.float32), b=view.reshape(-1)), "b"),
    ]:
        with pytest.raises(ValueError, match=KEPT.format(name, "z")):
            call()
        assert np.array_equal(base, before)
    functional.forward(
        batch(), weight=flat, bias=flat, running_mean=np.abs(flat), running_var=np.abs(flat), training=False
    )  # reads
    functional.backward(ctx, view)
    keeps.release()


def evaluate(x, channel_axis):
    ones = np.ones(x.shape[channel_axis], np.float32)
    return functional.forward(
        x, running_mean=ones, running_var=ones, training=False, channel_axis=channel_axis
    )


@pytest.mark.parametrize("seed", range(8))
def test_overlap_is_exact(seed):
    """Random slices of one buffer, of all layouts, against NumPy."""
    rng = np.random.default_rng(seed)
    seen = set()
    for _ in range(150):
        buffer = np.ones((6, 6, 6), np.float32)
        pair, axes = [], []
        for _ in range(2):
            cut = [slice(*sorted(rng.choice(7, 2, replace=False)), rng.integers(1, 4)) for _ in range(2)]
            last = bool(rng.integers(2))
            whole = buffer if rng.integers(3) else buffer.reshape(-1)[:180].reshape(6, 5, 6)
            inner = slice(*sorted(rng.choice(7, 2, replace=False))) if last else slice(None)
            pair.append(whole[cut[0], slice(None) if last else cut[1], inner])
            axes.append(-1 if last else 1)
        kept, writes = pair
        _, ctx = evaluate(kept, axes[0])
        shared = np.shares_memory(kept, writes, max_work=-1)
        if shared:
            with pytest.raises(ValueError, match="keeps that memory as 'z'"):
                evaluate(writes, axes[1])
        else:
            evaluate(writes, axes[1])
        seen.add(shared)
        ctx.release()
    assert seen == {True, False}


# ---- threads -----------------------------------------------------------------------------------------------


def together(*functions):
    """Run functions concurrently; return their results or errors."""
    start, outcomes = threading.Barrier(len(functions)), []

    def run(function):
        start.wait()
        try:
            outcomes.append(function())
        except (RuntimeError, ValueError) as error:
            outcomes.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_two_forwards_of_one_array_at_once():
    """The second finds the array locked, during the first call or after it: results are never mixed."""
    shape = (8, 8, 128, 128)
    x0 = batch(shape)
    want = functional.forward(x0.copy())[0].copy()
    for _ in range(5):
        x = x0.copy()
        views = [x, x[...], x.reshape(8, 8, -1)]
        outcomes = together(*(lambda view=view: functional.forward(view, threads=1) for view in views))
        done = [o for o in outcomes if isinstance(o, tuple)]
        assert len(done) == 1
        assert np.array_equal(done[0][0].reshape(shape), want)
        assert all("keeps that memory as" in str(o) for o in outcomes if o is not done[0])


def test_backward_release_and_recompute_at_once():
    shape = (8, 8, 128, 128)
    x0, dz = batch(shape), np.ones(shape, np.float32)
    want = functional.backward(functional.forward(x0.copy(), strategy="checkpoint")[1], dz).dx
    for _ in range(5):
        _, ctx = functional.forward(x0.copy(), strategy="checkpoint")
        outcomes = together(
            lambda ctx=ctx: functional.backward(ctx, dz, threads=1).dx,
            lambda ctx=ctx: functional.backward(ctx, dz, threads=2).dx,
            lambda ctx=ctx: functional.backward_reduce(ctx, dz),
            lambda ctx=ctx: ctx.recompute(),
            lambda ctx=ctx: ctx.release(),
        )
        gradients = [o for o in outcomes if isinstance(o, np.ndarray) and o.max() < 1]
        assert len(gradients) <= 1
        for gradient in gradients:
            assert np.array_equal(gradient, want)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                assert "in use by a call in another thread" in str(outcome) or "freed by" in str(outcome)


def test_a_context_in_use_is_not_released():
    """Released before the other thread starts, or refused while it works; refused at least once."""
    x, refused = batch((8, 8, 128, 128)), 0
    for _ in range(100):
        _, ctx = functional.forward(x.copy(), strategy="checkpoint")
        thread = threading.Thread(target=lambda ctx=ctx: together(ctx.recompute))
        thread.start()
        try:
            ctx.release()
        except RuntimeError as error:
            assert "in use by a call in another thread" in str(error)  # noqa: PT017
            refused += 1
        thread.join()
        if refused:
            return
    pytest.fail("no recompute was met at work")


def test_a_context_in_use_cannot_be_freed_through_the_garbage_collector():
    x, stop, seen = batch((8, 8, 128, 128)), threading.Event(), []

    def spy():
        while not stop.is_set():
            for found in [
                o for o in gc.get_objects() if type(o) is functional.Context and o.shape == x.shape
            ]:
                seen.append((repr(found), found.dtype, found.shape, found.nbytes))
                with contextlib.suppress(RuntimeError):
                    found.release()

    thread = threading.Thread(target=spy)
    thread.start()
    try:
        for strategy in ("inplace", "standard", "checkpoint_xhat") * 3:
            z, _ = functional.forward(x.copy(), weight=np.zeros(8, np.float32), strategy=strategy)
            assert not z.any()
    finally:
        stop.set()
        thread.join()
    assert all(dtype == np.float32 for _, dtype, *_ in seen)
