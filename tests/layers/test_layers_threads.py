"""One network in several threads: a backward is correct or refused."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest

from inplace_abn import layers


def network():
    return layers.Sequential(layers.Conv2d(4, 8, 3, padding=1, rng=0), layers.InPlaceABN(8))


def elsewhere(call, *arguments):
    """The result of a call made by another thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call, *arguments).result()


def test_a_backward_through_the_call_of_another_thread_is_refused():
    x, y = np.random.default_rng(0).normal(size=(2, 8, 4, 9, 9)).astype(np.float32)
    net, ones = network(), np.ones((8, 8, 9, 9), np.float32)
    net(y)
    want = net.backward(ones)
    net(x)
    elsewhere(net, y)
    with pytest.raises(RuntimeError, match=r"^Sequential: another thread has .* copy\.deepcopy"):
        net.backward(ones)
    elsewhere(net.release(), y)
    assert np.array_equal(net.backward(ones), want)  # forward in one thread, backward in another


def test_training_in_several_threads_is_correct_or_refused():
    xs = np.random.default_rng(0).normal(size=(4, 8, 4, 16, 16)).astype(np.float32)
    net, ones = network(), np.ones((8, 8, 16, 16), np.float32)

    def step(net, x):
        net(x)
        return net.backward(ones)

    want = [step(network(), x) for x in xs]

    def train(i):
        for _ in range(50):
            with suppress(RuntimeError):
                assert np.array_equal(step(net, xs[i]), want[i])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(train, range(4)))
    assert np.array_equal(step(net.release(), xs[0]), want[0])
