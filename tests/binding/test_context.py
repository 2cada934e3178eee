"""The context: arrays that it keeps, their lock, and everything that frees them."""

import itertools
import threading

import numpy as np
import pytest
from batches import DTYPES, LAYOUTS, dtype_of, parameter_dtype, random_batch
from keywords import as_sums

from inplace_abn import Context, functional

pytestmark = pytest.mark.essential

STRATEGIES = {
    "standard": "x",
    "checkpoint": "x",
    "checkpoint_xhat": "xhat",
    "pre_activation": "y",
    "inplace_1": "z",
    "inplace_2": "z",
    "inplace": "z",
}


def new_x(shape=(4, 3, 5), dtype="float32"):
    return random_batch(shape, dtype).x.copy()


def apply(ctx, dz):
    count = dz.size // dz.shape[1]
    return functional.backward_apply(ctx, dz, **as_sums(functional.backward_reduce(ctx, dz)), count=count)


def forget(ctx, dz):
    """Do nothing: the caller deletes the context."""


FREES = {
    "backward": functional.backward,
    "backward_apply": apply,
    "release": lambda ctx, dz: ctx.release(),
    "dropping": forget,
}

# ---- attributes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_attributes_are_the_arguments_of_forward(strategy, dtype):
    x = new_x((4, 5, 3), dtype)
    options = {"strategy": strategy, "activation": "elu", "activation_param": 0.5, "channel_axis": -1}
    z, ctx = functional.forward(x, **options)
    for name, value in options.items():
        assert getattr(ctx, name) == value
    assert type(ctx) is Context
    assert ctx.shape == (4, 5, 3)
    assert ctx.dtype is x.dtype
    assert ctx.training is True
    assert ctx.freed is False
    before = repr(ctx)
    functional.backward(ctx, np.ones_like(z))
    assert ctx.freed is True
    assert (ctx.shape, ctx.dtype, ctx.strategy) == ((4, 5, 3), dtype_of(dtype), strategy)
    assert repr(strategy) in before
    assert "freed by backward" in repr(ctx)


def test_attributes_are_read_only():
    _, ctx = functional.forward(new_x())
    for name in ("strategy", "shape", "saved", "freed", "training", "other"):
        with pytest.raises(AttributeError):
            setattr(ctx, name, None)
    with pytest.raises(TypeError):
        Context.strategy = None


def test_training_is_false_in_evaluation():
    one = np.ones(3, np.float32)
    _, ctx = functional.forward(new_x(), running_mean=one, running_var=one, training=False)
    assert ctx.training is False


# ---- the lock ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("free", FREES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_kept_array_is_locked_until_the_context_is_freed(strategy, free):
    x = new_x()
    z, ctx = functional.forward(x, strategy=strategy)
    assert not x.flags.writeable
    assert z is x or z.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        x += 1
    FREES[free](ctx, np.ones_like(z))
    del ctx
    assert x.flags.writeable
    x += 1


@pytest.mark.parametrize("free", FREES)
@pytest.mark.parametrize("strategy", ["standard", "checkpoint"])
def test_read_only_arrays_stay_read_only(strategy, free):
    x = new_x()
    x.flags.writeable = False
    z, ctx = functional.forward(x, strategy=strategy)
    FREES[free](ctx, np.ones_like(z))
    del ctx
    assert not x.flags.writeable


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_an_array_of_several_contexts_is_unlocked_with_the_last(order):
    """As for a batch that is the input of several layers."""
    x = new_x()
    contexts = [functional.forward(x, strategy="checkpoint")[1] for _ in range(3)]
    dz = np.ones_like(x)
    for i in order[:2]:
        functional.backward(contexts[i], dz)
        assert not x.flags.writeable
    functional.backward(contexts[order[2]], dz)
    assert x.flags.writeable
    assert functional.forward(x)[0] is x


def test_z_may_be_kept_by_the_next_layer_too():
    z, first = functional.forward(new_x())
    _, second = functional.forward(z, strategy="standard")
    first.release()
    assert not z.flags.writeable
    second.release()
    assert z.flags.writeable


def test_views_taken_before_and_after():
    x = new_x()
    before = x[...]
    _, ctx = functional.forward(x)
    after = x[...]
    assert before.flags.writeable  # NumPy has no way to lock these
    assert not after.flags.writeable
    assert functional.forward(before, strategy="standard")[1].saved["x"] is before
    ctx.release()


def test_a_slice_is_locked_and_its_neighbours_are_not():
    buffer = np.random.default_rng(0).normal(size=(4, 6, 5)).astype(np.float32)
    left, right = buffer[:, :3], buffer[:, 3:]
    _, ctx = functional.forward(left)
    functional.forward(right)
    assert not left.flags.writeable
    assert right.flags.writeable
    assert buffer.flags.writeable
    ctx.release()


# ---- what is kept ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_saved_is_the_array_itself(strategy):
    x = new_x()
    z, ctx = functional.forward(x, weight=np.ones(3, np.float32), strategy=strategy)
    assert [(role, array is x) for role, array in ctx.saved.items()] == [(STRATEGIES[strategy], True)]
    with pytest.raises(TypeError, match="does not support item assignment"):
        ctx.saved["z"] = x
    with pytest.raises(KeyError, match="nothing"):
        ctx.saved["nothing"]
    assert ctx.nbytes == x.nbytes
    functional.backward(ctx, np.ones_like(z))
    with pytest.raises(RuntimeError, match="this context was freed by backward, nothing is left"):
        ctx.saved[STRATEGIES[strategy]]
    assert ctx.nbytes == 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_xhat_of_guarded_channels_is_kept(dtype, layout):
    batch = random_batch((4, 5, 3, 2), dtype)
    weight = np.array([1, 0, 2, 0, -1], parameter_dtype(dtype))
    x, axis = LAYOUTS[layout](batch.x)
    _, ctx = functional.forward(x, weight=weight, channel_axis=axis)
    assert list(ctx.saved) == ["z", "guarded_xhat"]
    assert ctx.saved["z"] is x
    xhat = ctx.saved["guarded_xhat"]
    assert xhat.dtype == dtype_of(dtype)
    assert xhat.shape == ((4, 6, 2) if layout.startswith("last") else (2, 4, 6))
    assert not xhat.flags.writeable
    assert ctx.nbytes == x.nbytes + xhat.nbytes


def test_no_channel_is_guarded_if_x_or_xhat_is_kept():
    for strategy in ("standard", "checkpoint", "checkpoint_xhat"):
        _, ctx = functional.forward(new_x(), weight=np.zeros(3, np.float32), strategy=strategy)
        assert len(ctx.saved) == 1


def saturated(dtype="float32"):
    """Return x whose xhat is near -7 in two places, and a weight that sends elu there to its flat end."""
    x = np.linspace(-1, 1, 2 * 3 * 50).reshape(2, 3, 50).astype(dtype)
    x[0, 1, 7] = x[1, 2, 11] = -50
    return x, np.full(3, 4, dtype)


def test_xhat_of_escaped_elements_is_kept():
    x, weight = saturated()
    _, ctx = functional.forward(x, weight=weight, activation="elu", activation_param=1.0)
    saved = {name: (array, array.nbytes) for name, array in ctx.saved.items()}
    assert list(saved) == ["z", "escape_index", "escape_xhat"]
    index, xhat = saved["escape_index"][0], saved["escape_xhat"][0]
    assert index.dtype == np.int64
    assert xhat.dtype == np.float64
    assert index.shape == xhat.shape
    assert {57, 261} <= set(index.tolist())  # (n * C + c) * S + s
    assert not index.flags.writeable
    assert not xhat.flags.writeable
    assert ctx.nbytes == x.nbytes + 16 * index.size


def test_what_is_kept_is_a_snapshot():
    """The optimizer may change weights before the backward runs."""
    batch = random_batch((4, 3, 5), "float32")
    weight, bias = batch.weight.copy(), batch.bias.copy()
    _, ctx = functional.forward(batch.x.copy(), weight=weight, bias=bias)
    want = functional.backward(ctx, batch.dz)
    _, ctx = functional.forward(batch.x.copy(), weight=weight, bias=bias)
    weight[...], bias[...] = 77, -77
    for got, expected in zip(functional.backward(ctx, batch.dz), want, strict=True):
        assert np.array_equal(got, expected)


# ---- recompute ---------------------------------------------------------------------------------------------


def test_recompute_with_strategies_that_keep_z():
    for strategy in ("inplace", "inplace_1", "inplace_2"):
        _, ctx = functional.forward(new_x(), strategy=strategy)
        with pytest.raises(
            ValueError, match=f"strategy '{strategy}' keeps z itself, there is nothing to recompute"
        ):
            ctx.recompute()


@pytest.mark.parametrize("strategy", ["standard", "checkpoint", "checkpoint_xhat", "pre_activation"])
def test_recompute_checks_the_argument_out(strategy):
    x = new_x()
    view = x[...]
    z, ctx = functional.forward(x, strategy=strategy)
    for out, error, message in [
        ([1.0], TypeError, "out must be a numpy.ndarray"),
        (np.ones((4, 3, 5)), TypeError, "out must be float32 as x was, got float64"),
        (
            np.ones((4, 5, 3), np.float32),
            ValueError,
            r"out must have the shape of x, \(4, 3, 5\), got \(4, 5, 3\)",
        ),
        (x, ValueError, "out is written in place by recompute, but functional.forward"),
        (view, ValueError, "out is written and shares memory with what ctx keeps"),
        (np.moveaxis(np.ones((4, 5, 3), np.float32), -1, 1), ValueError, "out must be channels-first"),
    ]:
        before = np.array(out).copy()
        with pytest.raises(error, match=message):
            ctx.recompute(out=out)
        assert np.array_equal(out, before)
    with pytest.raises(
        TypeError, match=r"recompute\(\) got an unexpected keyword argument 'uot'; did you mean 'out'"
    ):
        ctx.recompute(uot=z)
    out = np.empty_like(z)
    assert ctx.recompute(out=out, threads=2) is out
    assert np.allclose(out, z, atol=1e-6)


# ---- freed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("free", ["backward", "backward_apply", "release"])
@pytest.mark.parametrize("strategy", ["checkpoint", "inplace"])
def test_a_freed_context_raises_an_error(strategy, free):
    z, ctx = functional.forward(new_x(), strategy=strategy)
    dz = np.ones_like(z)
    FREES[free](ctx, dz)
    message = f"ctx keeps nothing any more, it was freed by {free}.*; run forward again"
    for call in (
        lambda: functional.backward(ctx, dz),
        lambda: functional.backward_reduce(ctx, dz),
        lambda: functional.backward_apply(ctx, dz, sum_dy=np.zeros(3), sum_dy_xhat=np.zeros(3), count=20),
        lambda: ctx.recompute(),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()
    ctx.release()
    assert f"freed by {free}" in repr(ctx)


def test_reduce_and_refused_calls_do_not_free_the_context():
    z, ctx = functional.forward(new_x())
    functional.backward_reduce(ctx, np.ones_like(z))
    with pytest.raises(ValueError, match="dz must have the shape"):
        functional.backward(ctx, np.ones((4, 3, 6), np.float32))
    assert not ctx.freed
    assert not z.flags.writeable
    functional.backward(ctx, np.ones_like(z))


def test_a_kept_array_that_lost_its_memory():
    x = new_x()
    _, ctx = functional.forward(x)
    x.resize((2, 3, 5), refcheck=False)
    with pytest.raises(RuntimeError, match="the array that ctx keeps was resized or given other memory"):
        functional.backward(ctx, np.ones((4, 3, 5), np.float32))
    ctx.release()


def test_a_kept_array_may_be_reshaped():
    batch = random_batch((4, 3, 5), "float32")
    want = functional.backward(functional.forward(batch.x.copy())[1], batch.dz)
    _, ctx = functional.forward(batch.x.copy())
    kept = ctx.saved["z"].reshape(-1)
    assert not kept.flags.writeable
    assert np.array_equal(functional.backward(ctx, batch.dz).dx, want.dx)


def test_one_of_many_threads_gets_the_gradient():
    """A context serves one call at a time: other calls raise an error that it is in use or freed."""
    x = np.random.default_rng(0).normal(size=(8, 8, 128, 128)).astype(np.float32)
    dz = np.ones_like(x)
    _, ctx = functional.forward(x)
    start, outcomes = threading.Barrier(4), []

    def run():
        start.wait()
        try:
            outcomes.append(functional.backward(ctx, dz, threads=1).dx.shape)
        except RuntimeError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(x.shape) == 1
    refused = [outcome for outcome in outcomes if outcome != x.shape]
    assert all(
        "in use by a call in another thread" in text or "freed by backward" in text for text in refused
    )


def test_a_call_while_another_one_works_on_the_context_is_refused():
    x = np.ones((16, 8, 256, 256), np.float32)
    dz, said = np.ones_like(x), []
    for _ in range(50):  # the first attempt may fail if the other thread does not run at once
        _, ctx = functional.forward(x, strategy="standard")
        worker = threading.Thread(target=functional.backward_reduce, args=(ctx, dz))
        worker.start()
        while worker.is_alive() and not said:
            try:
                functional.backward_reduce(ctx, dz[:0])
            except RuntimeError as error:
                said.append(str(error))
            except ValueError:
                pass  # dz has another shape; the other call has not begun or has ended
        worker.join()
        if said:
            break
    assert "ctx is in use by a call in another thread" in said[0]
