"""Each allocation by Python fails in turn: MemoryError, no leak, and no array changed or locked.

Failing allocations of the C core are tested by tests/core/c/allocations.c.
"""

import sys
from itertools import count

import numpy as np
import pytest
from keywords import as_running
from references import counts

from inplace_abn import _core

pytestmark = pytest.mark.essential

testcapi = pytest.importorskip("_testcapi", reason="this Python was installed without its test modules")
if not hasattr(testcapi, "set_nomemory"):
    pytest.skip("this Python's _testcapi cannot make allocations fail", allow_module_level=True)

SHAPE = (4, 3, 50)
WEIGHT = np.array([0, 40, 1], np.float32)  # guarded, escaping, and neither
BIAS = np.array([1, 0, 0], np.float32)
DZ = np.ones(SHAPE, np.float32)
OPTIONS = {"activation": "elu", "activation_param": 1.0}


def batch():
    return np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


def forward(x, **options):
    statistics = np.zeros(3, np.float32), np.ones(3, np.float32)
    return _core.forward(x, weight=WEIGHT, bias=BIAS, **as_running(statistics), **OPTIONS, **options)


def fails(function, nth):
    """Run with all allocations after the first `nth` failing; return (True if one failed, result)."""
    result = None
    testcapi.set_nomemory(nth, 0)
    try:
        result = function()
    except MemoryError:
        return True, None
    finally:
        testcapi.remove_mem_hooks()
    return False, result


def attempts(make):
    """Yield (subject, failed, result) for each allocation of `make`'s call failing in turn."""
    for nth in count(0):
        subject, call = make()
        failed, result = fails(call, nth)
        yield subject, failed, result
        if not failed:
            return


@pytest.mark.parametrize(
    "strategy", ["inplace", "inplace_1", "checkpoint_xhat", "pre_activation", "checkpoint", "standard"]
)
def test_forward(strategy):
    """x is unchanged, or the call is complete: x is never locked without a context."""
    want = forward(batch(), strategy=strategy)[0]

    def make():
        x = batch()
        return x, lambda: forward(x, strategy=strategy)

    for x, failed, result in attempts(make):
        if failed:
            assert x.flags.writeable
            assert np.array_equal(x, batch())
        else:
            assert np.array_equal(result[0], want)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("strategy", ["inplace", "checkpoint"])
def test_backward(strategy, overwrite):
    """The context is unchanged, and a second call returns the correct gradients."""
    want = _core.backward(forward(batch(), strategy=strategy)[1], DZ)

    def make():
        _, ctx = forward(batch(), strategy=strategy)
        dz = DZ.copy()
        return (ctx, dz), lambda: _core.backward(ctx, dz, overwrite=overwrite)

    for (ctx, dz), failed, result in attempts(make):
        if failed:
            assert not ctx.freed
            assert np.array_equal(dz, DZ)
            result = _core.backward(ctx, dz, overwrite=overwrite)
        assert all(np.array_equal(a, b) for a, b in zip(result, want, strict=True))


def test_other_functions():
    ones = np.ones(3)
    calls = {
        "statistics": lambda ctx: _core.statistics(DZ),
        "recompute": lambda ctx: ctx.recompute(),
        "backward_reduce": lambda ctx: _core.backward_reduce(ctx, DZ),
        "backward_apply": lambda ctx: _core.backward_apply(ctx, DZ, sum_dy=ones, sum_dy_xhat=ones, count=200),
        "attributes": lambda ctx: (repr(ctx), ctx.saved, ctx.shape, ctx.nbytes),
        "info": lambda ctx: _core.info(),
    }
    for call in calls.values():

        def make(call=call):
            _, ctx = forward(batch(), strategy="checkpoint")
            return ctx, lambda: call(ctx)

        for ctx, failed, _ in attempts(make):
            if failed:
                assert not ctx.freed
                call(ctx)


def test_nothing_leaks():
    x = batch()

    def forwards():
        return x, lambda: forward(x)

    def backwards():
        ctx = forward(x)[1]
        return ctx, lambda: _core.backward(ctx, DZ)

    def everything():
        for make in (forwards, backwards):
            assert any(failed for _, failed, _ in attempts(make))

    everything()
    objects = x, WEIGHT, BIAS, DZ, _core.Context, OPTIONS
    before, blocks = counts(objects), sys.getallocatedblocks()
    for _ in range(20):
        everything()
    assert counts(objects) == before
    assert sys.getallocatedblocks() - blocks < 100
