"""Calls of layers: the call that a backward belongs to, and calls without a backward."""

import gc
import warnings
import weakref

import numpy as np
import pytest
from networks import STRATEGIES, abn, chain, conv, normal, run

from inplace_abn import memory
from inplace_abn.layers import (
    CrossEntropy,
    Layer,
    Linear,
    Recompute,
    Residual,
    Sequential,
    no_grad,
)

# ---- the call that a backward belongs to -------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("wrap", [Sequential, Recompute, Residual], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 1, 0)])
def test_calls_in_any_order(strategy, wrap, order):
    net, batches = wrap(chain(strategy)), [normal((2, 4, 3, 3), seed) for seed in range(3)]
    dz = normal((2, 4, 3, 3), 9)
    want = [run(net, x, dz) for x in batches]
    net.zero_grad()
    calls = []
    for x in batches:
        net(x.copy())
        calls.append(net.last_call)
    for i in order:
        np.testing.assert_array_equal(net.backward(dz.copy(), call=calls[i]), want[i]["dx"])
    np.testing.assert_allclose(
        net.parameters()[0].grad, sum(result[net.parameters()[0].name] for result in want)
    )
    assert not any(layer.last_call for _, layer in net.named_layers())


def test_the_gradient_of_a_loss_selects_its_call():
    net, criterion = Sequential(chain("inplace"), conv(4, 3)), CrossEntropy()
    other, target = CrossEntropy(), np.zeros((2, 3, 3), int)
    xs = [normal((2, 4, 3, 3), seed) for seed in range(2)]
    want = []
    for x in xs:
        criterion(net(x.copy()), target)
        want.append(net.backward(criterion.backward()))
    criterion(net(xs[0].copy()), target)
    other(net(xs[1].copy()), target)
    np.testing.assert_array_equal(net.backward(criterion.backward()), want[0])  # the first call first
    np.testing.assert_array_equal(net.backward(other.backward()), want[1])


def test_a_shared_layer_inside_a_network_and_by_itself():
    """The backward of the network uses the call that its forward made, not the later one."""
    shared, x, y = Linear(4, 4, dtype=np.float64, rng=0), normal((3, 4)), normal((3, 4), 1)
    net, dz = Sequential(shared), normal((3, 4), 2)
    net(x)
    shared(y)
    net.backward(dz)
    np.testing.assert_allclose(shared.weight.grad, dz.T @ x)
    shared.zero_grad()
    shared.backward(dz)
    np.testing.assert_allclose(shared.weight.grad, dz.T @ y)


def test_reused_buffers_do_not_select_a_wrong_call():
    layer, dz = abn(strategy="inplace"), np.empty((2, 4, 3))
    buffers = [np.empty_like(dz) for _ in range(2)]
    for repetition in range(3):
        for seed, x in enumerate(buffers):
            x[...] = normal(x.shape, 10 * repetition + seed)
            layer(x)
        for seed in (1, 0):
            dz[...] = normal(dz.shape, seed)
            got = layer.backward(dz, overwrite=True).copy()
            fresh = abn(strategy="inplace")
            want = run(fresh, normal(dz.shape, 10 * repetition + seed), normal(dz.shape, seed))
            np.testing.assert_array_equal(got, want["dx"])


def test_a_wrong_call_is_refused():
    net, x = Sequential({"a": Linear(4, 4, dtype=np.float64)}), normal((3, 4))
    net(x)
    call = net.last_call
    with pytest.raises(ValueError, match=r"^a \(Linear\): call: expected a call of this layer, got one of"):
        net.a.backward(x, call=call)
    with pytest.raises(TypeError, match=r"^Sequential: call: expected a Call, such as .*, got int"):
        net.backward(x, call=1)
    net.backward(x, call=call)
    with pytest.raises(RuntimeError, match=r"^Sequential: call: its backward has run already"):
        net.backward(x, call=call)
    assert net.last_call is None


def test_a_failing_call_releases_its_own_arrays_only():
    class Fails(Layer):
        def forward(self, ctx, x):
            raise ValueError("too bad")

    first, x = chain("inplace"), normal((2, 4, 3, 3))
    want = run(first, x, x)["dx"]
    first(x.copy())
    with pytest.raises(ValueError, match="too bad"):
        Sequential(first, Fails())(x.copy())
    np.testing.assert_array_equal(first.backward(x.copy()), want)
    assert not any(layer.last_call for _, layer in first.named_layers())


# ---- calls without a backward ------------------------------------------------------------------------------


def kept_after(net, calls, results=None):
    with memory.ledger() as ledger:
        for seed in range(calls):
            z = net(normal((2, 4, 3, 3), seed))
            if results is not None:
                results.append(z)
    return ledger.live


def test_a_validation_loop_keeps_one_set_of_contexts():
    net = Sequential(chain("inplace"), conv()).eval()
    once = kept_after(net, 1)
    net.release()
    assert kept_after(net, 20) == 2 * once  # of the last call, and of the one before: its z was alive
    net(normal((2, 4, 3, 3)))
    net.train()(normal((2, 4, 3, 3)))
    gc.collect()
    net.release()


def test_a_validation_loop_with_a_loss_keeps_a_few_sets_of_contexts():
    net, criterion = Sequential(chain("inplace"), conv()).eval(), CrossEntropy()
    kept, target = [], np.zeros((2, 3, 3), int)
    with memory.ledger() as ledger, pytest.warns(UserWarning, match="8 calls wait"):
        kept += [(criterion(net(normal((2, 4, 3, 3))), target), ledger.live)[1] for _ in range(40)]
    assert kept[20:] == kept[20:21] * 20
    assert kept[-1] <= 10 * kept[0]
    want = net.backward(criterion.backward())
    net.release(), criterion.release()
    criterion(net(normal((2, 4, 3, 3))), target)
    np.testing.assert_array_equal(net.backward(criterion.backward()), want)


def test_a_call_in_evaluation_lives_as_long_as_its_result_or_its_call():
    net, xs = Sequential(chain("standard"), conv()).eval(), [normal((2, 4, 3, 3), seed) for seed in range(3)]
    want = [run(net, x, x)["dx"] for x in xs]
    z = net(xs[0])
    net(xs[1])
    call = net.last_call
    net(xs[2])
    np.testing.assert_array_equal(net.backward(xs[2]), want[2])
    np.testing.assert_array_equal(net.backward(xs[1], call=call), want[1])
    np.testing.assert_array_equal(net.backward(xs[0]), want[0])
    del z
    for x in xs:
        net(x)
    net.backward(xs[2])
    with pytest.raises(RuntimeError, match=r"earlier calls in eval\(\) were dropped because"):
        [net.backward(x) for x in xs]


def test_a_validation_between_a_forward_and_its_backward():
    def network():
        return Sequential(chain("inplace"), conv())

    x, v = normal((2, 4, 3, 3)), normal((2, 4, 3, 3), 1)
    target, dz = np.zeros((2, 3, 3), int), np.ones((2, *network()(x).shape[1:]), x.dtype)
    alone = network()
    alone(x)
    want = alone.backward(dz)

    net = network()
    net(x)
    net.eval()(v)
    net.train()
    np.testing.assert_array_equal(net.backward(dz), want)

    net = network()
    net(x)
    call, z = net.last_call, net.eval()(v)
    with pytest.raises(RuntimeError, match=r"the last call was made in eval\(\), an earlier one in training"):
        net.train().backward(dz)
    np.testing.assert_array_equal(net.backward(dz, call=call), want)
    assert net.eval().backward(np.ones_like(z)).shape == v.shape

    net, criterion = network(), CrossEntropy()
    criterion(net(x), target)
    criterion(net.eval()(v), target)
    net.train()
    with pytest.raises(RuntimeError, match=r"the last call was made in eval\(\), an earlier one in training"):
        criterion.backward()


def test_many_pending_calls_warn_once():
    net, results = Sequential(chain("inplace"), conv()).eval(), []
    with pytest.warns(UserWarning, match=r"Sequential: 8 calls wait for their backward .* KiB; .*no_grad"):
        live = kept_after(net, 8, results)
    assert live > 0
    net.release()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept_after(net, 20, results)
    criterion, scores = CrossEntropy(), normal((2, 3))
    target = np.array([0, 1])
    with pytest.warns(UserWarning, match=r"CrossEntropy: 8 calls .*release\(\)"):
        assert len({criterion(scores, target) for _ in range(10)}) == 1


def test_the_bytes_of_a_call():
    net, x = Sequential(chain("inplace"), conv()), normal((2, 4, 3, 3))
    with memory.ledger() as ledger:
        net(x)
    assert net.last_call.nbytes == ledger.live


def test_weights_shared_through_time_do_not_warn():
    cell = Linear(3, 3, dtype=np.float64, rng=0)
    for _ in range(50):
        cell(normal((2, 3)))
    for _ in range(50):
        cell.backward(np.ones((2, 3)))


def test_calls_leak_nothing():
    net, x = chain("inplace"), normal((2, 4, 3, 3))
    net(x)
    gone = weakref.ref(net.last_call)
    net.backward(normal((2, 4, 3, 3)))
    assert gone() is None
    net(x)
    gone = weakref.ref(net.last_call)
    del net
    assert gone() is None
    assert x.flags.writeable
    with no_grad():
        net = chain("inplace")
        net(x)
    assert net.last_call is None


def test_a_call_of_a_deleted_layer():
    net, x = Sequential(conv(), conv()), normal((2, 4, 3, 3))
    z = net[:1](x)
    gc.collect()
    with pytest.raises(RuntimeError, match="it was called by a layer that no longer exists"):
        net[0].backward(np.ones_like(z))
    assert x.flags.writeable
