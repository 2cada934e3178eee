"""Groups of threads, for tests of synchronized layers, and steps of such layers on parts of a batch."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from inplace_abn.layers import ABN, SyncABN

SIZES = {"equal": (2, 2, 2), "unequal": (1, 2, 3), "one empty": (4, 0, 2)}


class ThreadGroup:
    """A group whose ranks are threads."""

    def __init__(self, rank, barrier, shared):
        self.rank, self.size, self._barrier, self._shared = rank, barrier.parties, barrier, shared
        self.lengths = []  # of the values of each call

    def all_gather(self, values):
        self.lengths.append(len(values))
        self._shared[self.rank] = values.copy()
        self._barrier.wait()
        rows = np.stack(self._shared)
        self._barrier.wait()
        return rows


def thread_groups(size, timeout=120):
    """Return one `ThreadGroup` per rank. A rank that does not call all_gather breaks the others' barrier."""
    barrier, shared = threading.Barrier(size, timeout=timeout), [None] * size
    return [ThreadGroup(rank, barrier, shared) for rank in range(size)]


def in_ranks(function, groups):
    """Return the result of function(group) for each group, run in threads; exceptions are results."""

    def call(group):
        try:
            return function(group)
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(groups)) as pool:
        return list(pool.map(call, groups))


def inputs(samples=6, channels=5, dtype=np.float64, seed=0):
    """Return x, residual and dz of the whole batch."""
    rng = np.random.default_rng(seed)
    x, residual, dz = rng.normal(size=(3, samples, channels, 3, 2))
    return (x * 2 + 1).astype(dtype), residual.astype(dtype), dz.astype(dtype)


def make(activation, strategy, group=None, dtype=np.float64, channels=5):
    """Return an `ABN`, or for a group a `SyncABN`, with one channel that is guarded."""
    options = {"activation": activation, "strategy": strategy, "dtype": dtype, "activation_param": 0.5}
    layer = ABN(channels, **options) if group is None else SyncABN(channels, group=group, **options)
    layer.weight.data[...] = [1.5, -0.5, 0.0, 2.0, 1e-9][:channels]
    layer.bias.data[...] = [0.1, 0.2, -0.3, 0.4, 1.0][:channels]
    return layer


def step(layer, x, residual, dz, overwrite=False):
    """Return results of the batch, shares of the gradients of parameters, and running statistics."""
    x, residual, dz = x.copy(), residual.copy(), dz.copy()
    z = layer(x, residual=residual)
    result = z.copy()
    dx, dresidual = layer.backward(dz, overwrite=overwrite)
    parameters = [layer.weight.grad, layer.bias.grad]
    if layer.slope is not None:
        parameters.append(layer.slope.grad)
    return [result, dx, dresidual], parameters, [layer.running_mean, layer.running_var]


def part(arrays, sizes, rank):
    """Return the samples of a rank."""
    start = sum(sizes[:rank])
    return [array[start : start + sizes[rank]] for array in arrays]


def assert_as_one(ranks, whole, rtol):
    """Assert that the ranks' results are those of one process with the whole batch."""
    for got, want in zip(zip(*(rank[0] for rank in ranks), strict=True), whole[0], strict=True):
        _close(np.concatenate(got), want, rtol)
    for got, want in zip(zip(*(rank[1] for rank in ranks), strict=True), whole[1], strict=True):
        _close(np.sum(got, axis=0), want, rtol)
    for rank in ranks:
        for got, want in zip(rank[2], whole[2], strict=True):
            _close(got, want, rtol)


def _close(got, want, rtol):
    np.testing.assert_allclose(got, want, rtol=0, atol=rtol * max(1, np.abs(want).max()))
