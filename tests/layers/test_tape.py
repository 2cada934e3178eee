"""The tape: gradients of networks that are not a sequence, and what one backward releases."""

import gc
import threading

import numpy as np
import pytest
from networks import abn, conv, normal

from inplace_abn import gradcheck, layers, memory
from inplace_abn.layers import Activation, Graph, Linear, no_grad, record

pytestmark = pytest.mark.essential

SHAPE = (3, 4, 3, 4)


# ---- shapes of graphs --------------------------------------------------------------------------------------


def test_fork_in_place_layer_and_sum():
    first, second, x = abn(strategy="inplace"), conv(), normal(SHAPE)
    with record() as tape:
        a = second(x)
        b = layers.add(a, x)
        z = layers.add(b, first(a))  # overwrites a, which add has not kept
    assert z.shape == SHAPE
    dx = tape.backward(np.ones(SHAPE))

    class Same(Graph):
        def __init__(self):
            self.first, self.second = first, second

        def compute(self, x):
            a = self.second(x)
            return layers.add(layers.add(a, x), self.first(a))

    network = Same()
    network(x)
    np.testing.assert_array_equal(network.backward(np.ones(SHAPE)), dx)
    report = gradcheck(network, x, samples=8, modes="train")
    assert report.ok, report


def test_an_in_place_layer_is_refused_where_another_call_keeps_the_array():
    x = normal(SHAPE)
    with record() as tape:
        a = conv()(x)
        b = conv(seed=1)(a)
        message = r"writes in place, but Conv2d keeps that memory as 'input' .* on a tape, .* use a layer"
        with pytest.raises(ValueError, match=message):
            abn(strategy="inplace")(a)
        z = layers.add(a, b)
    assert tape.backward(np.ones(SHAPE)).shape == SHAPE
    assert z.flags.writeable


def test_a_layer_called_twice_and_a_validation_in_between_have_backwards_of_their_own():
    layer, x, y = Linear(4, 4, dtype=float, rng=0), normal((2, 4)), normal((2, 4), 1)
    weight = layer.weight.data
    before = layer(y)
    with record() as tape:
        z = layer(layer(x))
        with no_grad():
            layer(y)
        with record() as other:
            layer(y)
    after = layer(y)
    np.testing.assert_allclose(tape.backward(np.ones((2, 4))), np.ones((2, 4)) @ weight @ weight)
    assert z.shape == before.shape == after.shape
    layer.zero_grad()
    np.testing.assert_allclose(layer.backward(np.ones((2, 4))), np.ones((2, 4)) @ weight)
    np.testing.assert_allclose(layer.backward(np.ones((2, 4))), np.ones((2, 4)) @ weight)
    np.testing.assert_allclose(layer.weight.grad, 2 * np.ones((2, 4)).T @ y)
    assert other.backward(np.ones((2, 4))).shape == (2, 4)


def test_several_inputs_and_outputs():
    a, b = normal((2, 3)), normal((2, 3), 1)
    with record(a, b) as tape:
        product, total = layers.mul(a, b), layers.add(a, b)
    da, db = tape.backward([np.ones((2, 3)), np.full((2, 3), 2.0)], outputs=[product, total])
    np.testing.assert_allclose(da, b + 2)
    np.testing.assert_allclose(db, a + 2)


def test_a_result_that_the_outputs_do_not_depend_on_is_released():
    layer, x = conv(), normal(SHAPE)
    with record() as tape:
        z, unused = layers.mul(x, x), layer(x)
    np.testing.assert_allclose(tape.backward(np.ones(SHAPE), outputs=z), 2 * x)
    assert layer.weight.grad is None
    assert unused.flags.writeable
    assert x.flags.writeable


def test_the_gradient_of_a_loss_and_of_two_losses():
    scores, x, labels = Linear(4, 3, dtype=float, rng=0), normal((5, 4)), np.array([0, 2, 1, 1, 0])
    criterion, other = layers.CrossEntropy(), layers.MSELoss()
    with record() as tape:
        criterion(scores(x), labels)
    dx = tape.backward()
    criterion(scores(x), labels)
    np.testing.assert_array_equal(scores.backward(criterion.backward()), dx)
    with record(x) as tape:
        z = scores(x)
        losses = [criterion(z, labels), other(z, np.zeros((5, 3)))]
    both = tape.backward([1.0, 0.5], outputs=losses)
    np.testing.assert_allclose(both - dx, 0.5 * (2 / 15 * z) @ scores.weight.data)


def test_gradients_are_arrays_of_the_caller():
    x, dz = normal((2, 3)), np.ones((2, 3))
    with record(x) as tape:
        layers.add(x, 1.0)
    dx = tape.backward(dz)
    assert not np.may_share_memory(dx, dz)
    with record(x) as tape:
        layers.add(x, 1.0)
    assert tape.backward(dz, overwrite=True) is dz
    a, b = normal((2, 3)), normal((2, 3))
    with record(a, b) as tape:
        layers.add(a, b)
    da, db = tape.backward(dz, overwrite=True)
    assert not np.may_share_memory(da, db)


@pytest.mark.parametrize("overwrite", [False, True])
def test_dz_is_overwritten_only_on_request(overwrite):
    x, dz = normal(SHAPE), normal(SHAPE, 1)
    layer, given = abn(strategy="inplace"), dz.copy()
    with record() as tape:
        a = layers.add(x, 0.0)
        layers.add(layer(layers.add(a, 0.0)), a)
    tape.backward(dz, overwrite=overwrite)
    assert overwrite or np.array_equal(dz, given)


def test_residual_as_an_input_of_a_recorded_call():
    layer, plain, x = abn(strategy="inplace"), abn(activation="identity"), normal(SHAPE)
    end = Activation(dtype=np.float64)
    with record() as tape:
        z = layer(layers.mul(x, 2.0), residual=x)
    dx = tape.backward(np.ones(SHAPE))
    with record() as tape:
        want = end(layers.add(plain(layers.mul(x, 2.0)), x))
    np.testing.assert_allclose(z, want, atol=1e-12)
    np.testing.assert_allclose(dx, tape.backward(np.ones(SHAPE)), atol=1e-11)


def test_containers_and_recompute_are_single_calls():
    block = layers.Recompute(conv(), abn(strategy="inplace"), layers.MaxPool2d(2, padding=1))
    x = normal(SHAPE)
    with record() as tape:
        z = layers.add(block(x), block(layers.mul(x, 0.5)))
    dz = normal(z.shape)
    dx = tape.backward(dz)
    block(x)
    want = block.backward(dz)
    block(0.5 * x)
    np.testing.assert_allclose(dx, want + 0.5 * block.backward(dz), atol=1e-12)


# ---- one tape, one backward --------------------------------------------------------------------------------


def test_a_second_backward_is_refused():
    x = normal((2, 3))
    with record() as tape:
        layers.mul(x, x)
    tape.backward(np.ones((2, 3)))
    with pytest.raises(RuntimeError, match="its backward has run already"):
        tape.backward(np.ones((2, 3)))
    with pytest.raises(RuntimeError, match="one tape records one block"), tape:
        pass


def test_a_wrong_dz_leaves_the_tape_as_it_was():
    x = normal((2, 3))
    with record() as tape:
        layers.mul(x, x)
    for dz, error in (
        (np.ones((3, 2)), ValueError),
        (np.ones((2, 3), np.float32), TypeError),
        (None, TypeError),
    ):
        with pytest.raises(error, match="dz must be"):
            tape.backward(dz)
    with pytest.raises(TypeError, match="dz: expected a list of 1 gradients"):
        tape.backward(np.ones((2, 3)), outputs=[x])
    np.testing.assert_allclose(tape.backward(np.ones((2, 3))), 2 * x)


def test_no_call_after_the_backward_and_none_recorded():
    x = normal((2, 3))
    with record() as tape:
        layers.mul(x, x)
        tape.backward(np.ones((2, 3)))
        with pytest.raises(RuntimeError, match="its backward has run already"):
            layers.mul(x, x)
    with record() as tape, no_grad():
        layers.mul(x, x)
    with pytest.raises(RuntimeError, match="no call was recorded"):
        tape.backward(np.ones((2, 3)))


@pytest.mark.parametrize("how", ["error", "dropped", "released", "failing backward"])
def test_everything_is_released_without_a_backward(how):
    class Failing(layers.Layer):
        def forward(self, ctx, x):
            return x.copy()

        def gradients(self, ctx, dz, *, overwrite=False):
            raise RuntimeError("broken on purpose")

    x, layer = normal(SHAPE), conv()
    with memory.ledger() as book:
        try:
            with record() as tape:
                z = layer(layer(x))
                assert book.live == 2 * x.nbytes
                z = Failing()(z) if how == "failing backward" else z
                if how == "error":
                    raise KeyError("in the block")
            if how == "failing backward":
                with pytest.raises(RuntimeError, match="broken on purpose"):
                    tape.backward(np.ones(SHAPE))
            elif how == "released":
                tape.release()
        except KeyError:
            pass
        if how == "dropped":
            del tape
            gc.collect()
        assert book.live == 0
    assert x.flags.writeable
    assert z.flags.writeable
    if how not in ("dropped", "failing backward"):
        with pytest.raises(RuntimeError, match=r"tape: .*; record the forward on a new tape"):
            tape.backward(np.ones(SHAPE))


def test_memory_goes_down_call_by_call():
    class Watching(layers.Layer):
        def forward(self, ctx, x):
            return x.copy()

        def gradients(self, ctx, dz, *, overwrite=False):
            seen.append(book.live)
            return dz

    seen, x, watching, layer = [], normal(SHAPE), Watching(), conv()
    with memory.ledger() as book:
        with record() as tape:
            z = watching(x)
            for _ in range(3):
                z = watching(layer(z))
        tape.backward(np.ones(SHAPE))
    assert seen == [3 * x.nbytes, 2 * x.nbytes, x.nbytes, 0]


def test_each_thread_has_its_own_tape():
    layer, x = conv(), normal(SHAPE)
    results = {}

    def other():
        layer(x)
        with record() as tape:
            z = layer(layers.mul(x, 2.0))
        results["dx"] = tape.backward(np.ones(z.shape))

    with record() as tape:
        layer(x)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    dx = tape.backward(np.ones(SHAPE))
    np.testing.assert_allclose(results["dx"], 2 * dx)


def test_a_graph_does_not_overwrite_its_input_by_default():
    class Begins(Graph):
        def __init__(self):
            self.abn = abn(strategy="inplace")

        def compute(self, x):
            return self.abn(x)

    class Overwrites(Begins):
        overwrites_input = True

    x = normal(SHAPE)
    with pytest.raises(ValueError, match="would overwrite an input of the graph"):
        Begins()(x)
    with no_grad(), pytest.raises(ValueError, match="would overwrite an input of the graph"):
        Begins()(x)
    report = gradcheck(Overwrites(), x, samples=8)
    assert report.ok, report
    assert Overwrites()(x) is x


def test_parameters_of_a_graph_itself():
    class Gain(Graph):
        def __init__(self):
            self.gain = layers.Parameter(normal((4, 1, 1)))
            self.inner = conv()

        def compute(self, x):
            return layers.mul(self.inner(x), self.gain.data)

    report = gradcheck(Gain(), normal(SHAPE), samples=8)
    assert report.ok, report
    assert "gain" in [row.name for row in report.rows]


def test_a_function_that_uses_a_tape_is_checked_by_gradcheck():
    layer = conv()

    def function(x):
        with record(x) as tape:
            z = layers.add(layer(x), x)
        return z, tape.backward

    assert gradcheck(function, normal(SHAPE), samples=8)
