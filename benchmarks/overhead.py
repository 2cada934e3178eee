"""The overhead of a call: forward + backward on an array of (2, 8, 4, 4)."""

import statistics
import time

import numpy as np

from benchmarks.contestants import Batch
from benchmarks.targets import CHANNELS_FIRST, OVERHEAD_SHAPE
from inplace_abn import _core, functional


def measure(calls):
    """Time `calls` pairs of forward and backward through each module, alternating between the modules.

    Each pair is timed by itself; its inputs are restored outside the timing. The figures include the time
    to read the clock, some tens of nanoseconds.

    Returns
    -------
    dict of str to dict
        By name of the module: "median" and "least", in seconds per pair.
    """
    batch = Batch(OVERHEAD_SHAPE, CHANNELS_FIRST)
    modules = {"functional": functional, "_core": _core}
    seconds = {name: [] for name in modules}
    block = 500
    for start in range(0, calls, block):
        for name, module in modules.items():
            seconds[name] += _pairs(module, batch, min(block, calls - start))
    return {
        name: {"median": statistics.median(pairs), "least": min(pairs)} for name, pairs in seconds.items()
    }


def _pairs(module, batch, calls):
    clock, copy = time.perf_counter, np.copyto
    forward, backward = module.forward, module.backward
    x, dz, x0, dz0 = batch.x, batch.dz, batch.x0, batch.dz0
    arguments = {name: getattr(batch, name) for name in ("weight", "bias", "running_mean", "running_var")}
    seconds = []
    for _ in range(calls):
        copy(x, x0)
        copy(dz, dz0)
        begin = clock()
        _, context = forward(x, **arguments)
        backward(context, dz, overwrite=True)
        seconds.append(clock() - begin)
        del context
    return seconds
