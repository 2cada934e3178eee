"""The context as a Python object: copies, cycles, references, and bytes kept and released."""

import copy
import gc
import pickle
import tracemalloc
import weakref

import numpy as np
import pytest
from batches import DTYPES, LAYOUTS, dtype_of, random_batch
from references import counts
from test_context import FREES, STRATEGIES, new_x

from inplace_abn import Context, _core, functional

# ---- as a Python object ------------------------------------------------------------------------------------


def test_contexts_cannot_be_constructed():
    with pytest.raises(TypeError, match=r"cannot create 'inplace_abn\._core\.Context' instances"):
        Context()
    with pytest.raises(TypeError, match="not an acceptable base type"):
        type("Mine", (Context,), {})


def test_a_context_is_not_copied():
    _, ctx = functional.forward(new_x())
    for refuse in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="a Context cannot be pickled or copied"):
            refuse(ctx)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="a Context cannot be pickled or copied"):
            pickle.dumps(ctx, protocol)


def test_a_context_has_weak_references():
    _, ctx = functional.forward(new_x())
    gone = []
    reference = weakref.ref(ctx, gone.append)
    assert reference() is ctx
    del ctx
    assert gone == [reference]
    assert reference() is None


def test_a_context_in_a_cycle_is_collected():
    x = new_x()
    holder = []
    _, ctx = functional.forward(x)
    holder.append((holder, ctx))
    reference = weakref.ref(ctx)
    del holder, ctx
    assert not x.flags.writeable
    gc.collect()
    assert reference() is None
    assert x.flags.writeable


def test_a_context_is_tracked_by_the_garbage_collector():
    x = new_x()
    _, ctx = functional.forward(x, weight=np.zeros(3, np.float32))
    assert gc.is_tracked(ctx)
    assert any(seen is x for seen in gc.get_referents(ctx))
    assert any(seen is ctx.saved["guarded_xhat"] for seen in gc.get_referents(ctx))


# ---- references and memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize("free", FREES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_reference_counts_are_restored(strategy, free):
    x, weight, bias = new_x(), np.zeros(3, np.float32), np.ones(3, np.float32)
    mean, var, dz = np.zeros(3, np.float32), np.ones(3, np.float32), np.ones((4, 3, 5), np.float32)
    objects = [x, weight, bias, mean, var, dz, Context, _core]
    before = counts(objects)
    for _ in range(10):
        z, ctx = functional.forward(
            x, weight=weight, bias=bias, running_mean=mean, running_var=var, strategy=strategy
        )
        FREES[free](ctx, dz)
        del z, ctx
    assert counts(objects) == before


def test_reference_counts_are_restored_after_refused_calls():
    x, weight = new_x(), np.ones(3, np.float32)
    _, ctx = functional.forward(new_x(), strategy="checkpoint")
    dz = np.ones((4, 3, 5), np.float32)
    bad = np.ones((4, 3, 6), np.float32)
    objects = [x, weight, dz, bad, ctx, Context, None.__class__, _core]
    before = counts(objects)
    for call in (
        lambda: functional.forward(x, weight=weight, bias=x[0, :, 0]),
        lambda: functional.forward(x, weight=weight, momentum=2),
        lambda: functional.forward(x, weight=weight, strategy="no"),
        lambda: functional.forward(x, weight=weight, bias=weight, running_mean=weight, running_var=weight),
        lambda: _core.forward(x, weight=weight, isa="no"),
        lambda: _core.forward(x, weight=weight, wieght=weight),
        lambda: functional.backward(ctx, bad),
        lambda: functional.backward(ctx, dz, overwrite=None),
        lambda: functional.backward_apply(ctx, dz, sum_dy=weight, sum_dy_xhat=weight, count=20),
        lambda: functional.normalize(x, mean=weight, var=weight, count=20),
        lambda: ctx.recompute(out=bad),
    ):
        for _ in range(10):
            with pytest.raises((TypeError, ValueError)):
                call()
    assert counts(objects) == before


def test_memory_is_released():
    x, weight, dz = new_x((4, 3, 64)), np.array([0, 40, 1], np.float32), np.ones((4, 3, 64), np.float32)

    def step():
        for strategy in STRATEGIES:
            _, ctx = functional.forward(x, weight=weight, activation="elu", strategy=strategy)
            functional.backward_reduce(ctx, dz)
            functional.backward(ctx, dz)
            _core.forward(x, weight=weight, strategy=strategy)
            with pytest.raises(ValueError, match="shape"):
                functional.forward(x, weight=dz[0, 0])
        functional.statistics(x)

    step()
    tracemalloc.start()
    try:
        step()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(20):
            step()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 2000


@pytest.mark.parametrize("case", ["guarded", "escaped"])
def test_tracemalloc_counts_every_kept_byte(case):
    shape = (16, 4, 1024)
    x = random_batch(shape, "float32").x.copy()
    weight = np.array([1, 0, 0, 1], np.float32) if case == "guarded" else np.full(4, 60, np.float32)
    options = {"activation": "elu", "activation_param": 1.0}
    functional.forward(x.copy(), weight=weight, **options)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        _, ctx = functional.forward(x, weight=weight, **options)
        after, _ = tracemalloc.get_traced_memory()
        in_context = ctx.nbytes - x.nbytes
        assert in_context > 8000
        assert 0 <= after - before - in_context < 3000  # the objects themselves
        ctx.release()
        assert tracemalloc.get_traced_memory()[0] - before < 3000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_temporary_of_full_size(dtype, layout):
    """The peak during forward, and backward with overwrite=True, is below 2 % of the batch."""
    shape = (16, 32, 128, 128) if dtype != "float64" else (8, 32, 128, 128)
    x, axis = LAYOUTS[layout](np.random.default_rng(0).normal(size=shape).astype(dtype_of(dtype)))
    dz, _ = LAYOUTS[layout](np.ones(shape, x.dtype))
    assert x.nbytes >= 8 << 20
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        _, ctx = functional.forward(x, channel_axis=axis)
        functional.backward(ctx, dz, overwrite=True)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < 0.02 * x.nbytes
