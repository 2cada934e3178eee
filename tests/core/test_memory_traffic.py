"""No operation allocates a temporary of the size of the batch, neither by NumPy nor by malloc."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from batches import LAYOUTS, STRATEGIES, lay_out, random_batch
from keywords import as_sums

from inplace_abn import functional, reference

SHAPE = (8, 64, 64, 68)  # 8.9 MB of float32
SMALL_SHARE = 0.02


def peak_during(call):
    """Return the peak of allocated memory above the level before the call, and the result of the call."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        result = call()
        return tracemalloc.get_traced_memory()[1] - before, result
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("activation", ["leaky_relu", "elu"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_forward_and_backward_allocate_nothing_full_size(strategy, layout, dtype, activation):
    """Except for the new z of strategies that keep x or x-hat."""
    batch = random_batch(SHAPE, dtype, mean=0.0)
    x, axis = LAYOUTS[layout](batch.x)
    dz = lay_out(batch.dz, layout)
    assert batch.x.astype(np.float64).nbytes >= 16e6
    options = {"strategy": strategy, "activation": activation, "channel_axis": axis}
    fresh = 0 if reference.KEEPS[strategy] == "z" else x.nbytes
    weight = np.abs(batch.weight).clip(0, 0.7)  # elu does not saturate
    peak, (_, ctx) = peak_during(lambda: functional.forward(x, weight=weight, bias=weight, **options))
    assert fresh <= peak < fresh + SMALL_SHARE * x.nbytes
    peak, gradients = peak_during(lambda: functional.backward(ctx, dz, overwrite=True))
    assert peak < SMALL_SHARE * x.nbytes
    assert gradients.dx is dz


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_fresh_dx_is_the_only_full_size_array_of_a_backward_without_overwrite(layout):
    batch = random_batch(SHAPE, "float32")
    x, axis = LAYOUTS[layout](batch.x)
    _, ctx = functional.forward(x, channel_axis=axis)
    dz = lay_out(batch.dz, layout)
    peak, _ = peak_during(lambda: functional.backward(ctx, dz))
    assert x.nbytes <= peak < (1 + SMALL_SHARE) * x.nbytes


@pytest.mark.parametrize("layout", LAYOUTS)
def test_statistics_and_the_two_steps_of_backward_allocate_nothing_full_size(layout):
    batch = random_batch(SHAPE, "float32")
    x, axis = LAYOUTS[layout](batch.x)
    dz = lay_out(batch.dz, layout)
    peak, (mean, var, count) = peak_during(lambda: functional.statistics(x, channel_axis=axis))
    assert peak < SMALL_SHARE * x.nbytes
    peak, (_, ctx) = peak_during(
        lambda: functional.normalize(x, mean=mean, var=var, count=count, channel_axis=axis)
    )
    assert peak < SMALL_SHARE * x.nbytes
    peak, sums = peak_during(lambda: functional.backward_reduce(ctx, dz))
    assert peak < SMALL_SHARE * x.nbytes
    peak, _ = peak_during(
        lambda: functional.backward_apply(ctx, dz, **as_sums(sums), count=count, overwrite=True)
    )
    assert peak < SMALL_SHARE * x.nbytes


@pytest.mark.parametrize("strategy", ["checkpoint", "checkpoint_xhat", "pre_activation"])
def test_recompute_allocates_z_or_nothing(strategy):
    batch = random_batch(SHAPE, "float32")
    x = batch.x.copy()
    z, ctx = functional.forward(x, strategy=strategy)
    peak, _ = peak_during(lambda: ctx.recompute(out=z))
    assert peak < SMALL_SHARE * x.nbytes
    peak, _ = peak_during(ctx.recompute)
    assert x.nbytes <= peak < (1 + SMALL_SHARE) * x.nbytes


def test_a_freed_context_keeps_no_array():
    batch = random_batch(SHAPE, "float32")
    weight = batch.weight.copy()
    weight[:8] = 0  # guarded channels: x-hat of an eighth of the batch is kept in addition to z

    def train():
        x = batch.x.copy()
        _, ctx = functional.forward(x, weight=weight, bias=batch.bias, activation="elu", activation_param=1.0)
        functional.backward(ctx, batch.dz)

    train()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(3):
            train()
        left = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert left < 10_000


RESIDENT = """
import resource
import sys

import numpy as np

from inplace_abn import functional

channel_axis = int(sys.argv[1])
x = np.ones((64, 64, 64, 64), np.float32)  # 64 MB
x[0] = 2
dz = np.ones_like(x)
dz[1] = 2
small = np.ones((4, 64, 64, 64), np.float32)  # allocates threads, scratch and code pages first
small[0] = 2
functional.backward(functional.forward(small, channel_axis=channel_axis)[1], np.ones_like(small))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
_, ctx = functional.forward(x, channel_axis=channel_axis)
functional.backward(ctx, dz, overwrite=True)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(grown * (1 if sys.platform == "darwin" else 1024) / x.nbytes)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no getrusage")
@pytest.mark.parametrize("channel_axis", [1, -1])
def test_the_process_does_not_grow(channel_axis):
    """The peak of the resident memory includes malloc, which tracemalloc does not trace."""
    command = [sys.executable, "-c", RESIDENT, str(channel_axis)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.05
