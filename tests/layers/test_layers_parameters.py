"""Parameters of layers: replacing, copying and freezing them."""

import copy
import pickle

import numpy as np
import pytest

from inplace_abn import gradcheck
from inplace_abn.layers import (
    ABN,
    Activation,
    Conv2d,
    GroupNorm,
    InPlaceABN,
    Layer,
    Linear,
    Parameter,
    Sequential,
)

PLACES = [
    (lambda: ABN(4), "weight"),
    (lambda: InPlaceABN(4), "bias"),
    (lambda: Linear(4, 3), "weight"),
    (lambda: Linear(4, 3), "bias"),
    (lambda: Conv2d(4, 3, 1), "weight"),
    (lambda: Activation("prelu", num_slopes=4), "slope"),
]


@pytest.mark.parametrize("value", [np.ones(4, np.float32), None, [1.0], Linear(1, 1)])
@pytest.mark.parametrize(("make", "key"), PLACES)
def test_replacing_a_parameter_by_another_object_is_refused(make, key, value):
    net = Sequential({"net": make()})
    before, kept = net.state_dict(), getattr(net.net, key)
    kind = type(value).__name__
    with pytest.raises(TypeError) as caught:
        setattr(net.net, key, value)
    assert str(caught.value) == (
        f"{net.net.label}: {key} must be a Parameter, got {kind}; write layer.{key}.data[...] = array for "
        "other values, or assign Parameter(array)"
    )
    assert getattr(net.net, key) is kept
    assert list(net.state_dict()) == list(before)
    net(np.ones((2, 4, 4, 4), np.float32))


@pytest.mark.parametrize(("make", "key"), PLACES)
def test_parameters_may_be_replaced(make, key):
    layer = make()
    names = list(layer.state_dict())
    new = Parameter(getattr(layer, key).data * 2)
    setattr(layer, key, new)
    assert list(layer.state_dict()) == names
    assert new.name == key
    assert any(parameter is new for parameter in layer.parameters())


@pytest.mark.parametrize("make", [lambda **o: Linear(4, 3, **o), lambda **o: Conv2d(4, 3, 1, **o)])
def test_a_bias_may_be_added_later(make):
    layer = make(bias=False)
    layer.bias = Parameter(np.full(3, 2, np.float32))
    assert list(layer.state_dict()) == ["weight", "bias"]
    layer.weight.data[...] = 0
    assert (layer(np.ones((2, 4, 4, 4), np.float32)) == 2).all()


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_keep_their_parameters(duplicate):
    for make, key in PLACES:
        layer = make()
        twin = duplicate(layer)
        assert list(twin.state_dict()) == list(layer.state_dict())
        with pytest.raises(TypeError, match=f"{key} must be a Parameter, got ndarray"):
            setattr(twin, key, getattr(layer, key).data)


def test_parameters_of_an_integer_dtype_are_refused():
    layer = InPlaceABN(4)
    layer.weight = Parameter(np.ones(4, int))
    with pytest.raises(TypeError, match="the layer's parameters must be float32 or float64, got int64"):
        layer(np.ones((8, 4), np.float32))


def test_a_frozen_weight_of_linear_gets_no_gradient_and_keeps_no_input():
    layer, x = Linear(4, 3, rng=0), np.ones((2, 4), np.float32)
    want = layer(x) @ layer.weight.data
    layer.release()
    layer.weight.requires_grad = False
    z = layer(x)
    assert x.flags.writeable
    dx = layer.backward(z)
    np.testing.assert_allclose(dx, want, rtol=1e-6)
    assert layer.weight.grad is None
    np.testing.assert_allclose(layer.bias.grad, z.sum(axis=0), rtol=1e-6)


class TwoBiases(Layer):
    """x plus two biases; ``gradients`` returns the same array several times."""

    def __init__(self, shape):
        self.first, self.second = Parameter(np.zeros(shape)), Parameter(np.zeros(shape))

    def forward(self, ctx, x):
        return x + self.first.data + self.second.data

    def gradients(self, ctx, dz, *, overwrite=False):
        gradient = dz if self.first.data.shape == dz.shape else dz.sum(axis=0)
        return dz, gradient, gradient


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
@pytest.mark.parametrize("overwrite", [False, True])
def test_gradients_of_parameters_share_no_memory(shape, overwrite):
    net = Sequential(Activation("tanh"), TwoBiases(shape))
    x = np.ones((2, 3))
    for calls in (1, 2):
        z = net(x)
        net.backward(np.ones_like(z), overwrite=overwrite)
        want = np.full(shape, 2.0 * calls if shape == (3,) else calls)
        assert np.array_equal(net[1].first.grad, want)
        assert np.array_equal(net[1].second.grad, want)


def test_a_gradient_that_is_the_data_of_its_parameter_is_copied():
    class Penalty(Layer):
        def __init__(self):
            self.weight = Parameter(np.array([1.0, 2.0]))

        def forward(self, ctx, x):
            return x

        def gradients(self, ctx, dz, *, overwrite=False):
            return dz, self.weight.data

    layer = Penalty()
    for _ in range(2):
        layer.backward(layer(np.ones(1)))
    assert layer.weight.data.tolist() == [1, 2]
    assert layer.weight.grad.tolist() == [2, 4]


def test_gradients_in_one_array_are_not_overwritten_by_the_layer_before():
    class Split(Layer):
        def __init__(self):
            self.left, self.right = Activation("tanh"), Activation("sigmoid")

        def forward(self, ctx, x):
            return self.left(x), self.right(x)

        def gradients(self, ctx, dz, *, overwrite=False):
            return self.left.backward(dz[0], overwrite=overwrite) + self.right.backward(
                dz[1], overwrite=overwrite
            )

    class Add(Layer):
        def forward(self, ctx, x, y):
            return x + y

        def gradients(self, ctx, dz, *, overwrite=False):
            return dz, dz

    net, x = Sequential(Split(), Add()), np.linspace(-1, 1, 6).reshape(2, 3)
    want = net.backward(np.ones_like(net(x)))
    assert np.array_equal(net.backward(np.ones_like(net(x)), overwrite=True), want)
    assert gradcheck(net, x).ok


def test_the_message_for_parameters_and_buffers_of_two_dtypes_names_them():
    layer = ABN(2)
    layer.running_mean = np.zeros(2)
    with pytest.raises(TypeError, match="parameters and buffers are float32 and float64, expected one dtype"):
        layer(np.ones((4, 2), np.float32))


@pytest.mark.parametrize("make", [lambda: ABN(2), lambda: GroupNorm(1, 2)])
def test_affine_set_to_false_later_keeps_weight_and_bias_in_use(make):
    layer, x = make(), np.arange(8, dtype=np.float32).reshape(4, 2)
    want = layer(x.copy())
    dx = layer.backward(np.ones_like(want))
    layer.affine = False
    assert np.array_equal(layer(x.copy()), want)
    assert np.array_equal(layer.backward(np.ones_like(want)), dx)
    assert layer.weight.grad.shape == (2,)
