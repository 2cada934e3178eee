"""Threads: bitwise equal results for every number of threads; calls from several Python threads."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from batches import ISAS, LAYOUTS, PARAM, STRATEGIES, random_batch, run
from cases import each
from keywords import as_sums

from inplace_abn import functional

pytestmark = [pytest.mark.arithmetic, pytest.mark.essential]

# Few large channels (each split between threads), many small ones (distributed to threads), odd sizes.
SHAPES = [(2, 3, 300, 301), (3, 257, 17, 19), (1, 1, 70001), (70001, 2), (5, 1030, 9, 9)]


def several(threads, batch, layout, **options):
    results = run(batch, layout, threads=threads, **options)
    return [None if a is None else a.tobytes() for a in results]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("isa", ISAS)
def test_results_are_bitwise_equal(isa, layout, shape):
    batch = random_batch(shape, "float32")
    one = several(1, batch, layout, isa=isa)
    for threads in (2, 7):
        assert several(threads, batch, layout, isa=isa) == one, threads


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("strategy", STRATEGIES)
@each(layout=LAYOUTS)
def test_results_are_bitwise_equal_for_every_strategy(strategy, layout, dtype):
    """With guarded channels and escaped elements."""
    batch = random_batch((4, 33, 29, 31), dtype)
    weight, bias = batch.weight.copy(), batch.bias.copy()
    weight[::5], bias[::5], bias[3::5] = 0, 1, -8
    batch = batch._replace(weight=weight, bias=bias)
    options = {"strategy": strategy, "activation": "elu", "activation_param": PARAM["elu"]}
    one = several(1, batch, layout, **options)
    for threads in (2, 7):
        assert several(threads, batch, layout, **options) == one, threads


@pytest.mark.parametrize("layout", ["first", "last"])
def test_statistics_and_the_two_steps_of_backward_are_bitwise_equal(layout):
    batch = random_batch((3, 37, 61, 67), "float32")
    results = []
    for threads in (1, 2, 7):
        x, axis = LAYOUTS[layout](batch.x)
        mean, var, count = functional.statistics(x, channel_axis=axis, threads=threads)
        _, ctx = functional.normalize(x, mean=mean, var=var, count=count, channel_axis=axis, threads=threads)
        dz = LAYOUTS[layout](batch.dz)[0]
        sums = functional.backward_reduce(ctx, dz, threads=threads)
        dx = functional.backward_apply(ctx, dz, **as_sums(sums), count=count, threads=threads)
        results.append([a.tobytes() for a in (mean, var, *sums, dx)])
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("strategy", ["checkpoint", "checkpoint_xhat", "pre_activation"])
def test_recompute_is_bitwise_equal(strategy):
    batch = random_batch((3, 37, 61, 67), "float32")
    _, ctx = functional.forward(batch.x.copy(), weight=batch.weight, bias=batch.bias, strategy=strategy)
    one = ctx.recompute(threads=1)
    for threads in (2, 7):
        assert np.array_equal(ctx.recompute(threads=threads), one)


def test_the_number_of_threads_is_set_and_read():
    before = functional.get_num_threads()
    try:
        functional.set_num_threads(3)
        assert functional.get_num_threads() == 3
        assert functional.info()["threads"] == 3
        batch = random_batch((3, 37, 61, 67), "float32")
        by_default = several(None, batch, "first")
    finally:
        functional.set_num_threads(before)
    assert several(1, batch, "first") == by_default
    assert functional.get_num_threads() == before


def test_batches_of_several_python_threads_do_not_disturb_one_another():
    batches = [random_batch((3, 37, 31, 33), "float32", seed) for seed in range(8)]
    want = [several(1, batch, "first") for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            got = list(pool.map(lambda batch: several(2, batch, "first"), batches))
            assert got == want


def test_other_threads_run_during_a_call_on_a_large_batch():
    """Without forced thread switches, this thread runs only if the calls release the interpreter lock."""
    x = np.ones((16, 64, 64, 64), np.float32)
    started, finished = threading.Event(), threading.Event()

    def work():
        started.set()
        for _ in range(20):
            functional.statistics(x, threads=1)
        finished.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        started.wait()
        meanwhile = not finished.is_set()
    finally:
        sys.setswitchinterval(interval)
    thread.join()
    assert meanwhile
