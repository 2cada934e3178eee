"""What a call costs when the array is too small to matter: forward + backward on (2, 8, 4, 4)."""

import statistics
import time

import numpy as np

from benchmarks.contestants import Batch
from benchmarks.targets import CHANNELS_FIRST, OVERHEAD_SHAPE
from inplace_abn import _core, functional


def measure(calls):
    """Time `calls` pairs of calls through each module, alternating between them.

    Each pair is timed by itself and gets fresh inputs outside the timing, so the figures hold the clock's
    own some tens of nanoseconds.

    Returns
    -------
    dict of str to dict
        Seconds of a pair, by name of the module: its "median" and its "least".
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
    arguments = (x, batch.weight, batch.bias, batch.running_mean, batch.running_var)
    seconds = []
    for _ in range(calls):
        copy(x, x0)
        copy(dz, dz0)
        begin = clock()
        _, context = forward(*arguments)
        backward(context, dz, overwrite=True)
        seconds.append(clock() - begin)
        del context
    return seconds
