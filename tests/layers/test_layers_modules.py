"""Layers in sequences, lists and dicts; layers in plain lists are refused."""

import copy
import pickle

import numpy as np
import pytest
from networks import normal

from inplace_abn.layers import (
    ABN,
    Dropout,
    Flatten,
    Identity,
    InPlaceABN,
    Layer,
    Linear,
    ModuleDict,
    ModuleList,
    Parameter,
    Sequential,
)


def linear(seed=0):
    return Linear(3, 3, dtype=np.float64, rng=seed)


class Branches(Layer):
    """The sum of the results of several layers, which are kept in a list or a dict."""

    def __init__(self, layers):
        self.branches = layers

    def _layers(self):
        return self.branches.values() if isinstance(self.branches, ModuleDict) else self.branches

    def forward(self, ctx, x):
        return sum(layer(x) for layer in self._layers())

    def gradients(self, ctx, dz, *, overwrite=False):
        return sum(layer.backward(dz) for layer in self._layers())


HOLDERS = {
    "list": (lambda *layers: ModuleList(layers), ["0", "1"]),
    "dict": (lambda a, b: ModuleDict({"a": a, "b": b}), ["a", "b"]),
}


@pytest.mark.parametrize("kind", HOLDERS)
def test_layers_in_a_list_or_dict_are_found(kind):
    make, names = HOLDERS[kind]
    net, x, dz = Branches(make(linear(0), linear(1))), normal((4, 3)), normal((4, 3), 1)
    assert list(net.state_dict()) == [f"branches.{i}.{key}" for i in names for key in ("weight", "bias")]
    assert [p.name for p in net.parameters()] == list(net.state_dict())
    assert not any(layer.training for _, layer in net.eval().named_layers())
    net(x)
    net.backward(dz)
    for parameter in net.parameters():
        assert parameter.grad is not None
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert list(twin.state_dict()) == list(net.state_dict())
        np.testing.assert_array_equal(twin(x), net(x))
    assert "(branches): Module" in repr(net)


@pytest.mark.parametrize("make", [ModuleList, lambda layers: Sequential(*layers)], ids=["list", "Sequential"])
def test_a_sequence_of_layers_has_the_methods_of_a_list(make):
    a, b, c, d, e = plain = [linear(i) for i in range(5)]
    layers, plain = make([a, b]), [a, b]

    def check():
        assert list(layers) == plain
        assert len(layers) == len(plain)
        assert [name for name, _ in layers.children()] == [str(i) for i in range(len(plain))]
        assert [layer.name for layer in layers] == [str(i) for i in range(len(plain))]

    assert layers.append(c) is layers
    assert layers.extend([d]) is layers
    plain += [c, d]
    check()
    assert layers.insert(1, e) is layers
    plain.insert(1, e)
    check()
    layers[0], plain[0] = linear(9), layers[0]
    assert layers[0] is not a
    plain[0] = layers[0]
    check()
    assert layers.pop() is plain.pop()
    assert layers.pop(0) is plain.pop(0)
    check()
    del layers[-1], plain[-1]
    check()
    layers.insert(-1, a), plain.insert(-1, a)
    check()
    assert type(layers[1:]) is type(layers)
    assert list(layers[1:]) == plain[1:]
    assert layers[-1] is plain[-1]
    del layers[:2], plain[:2]
    check()
    for wrong in (lambda: layers[9], lambda: layers.pop(9), lambda: layers.__setitem__(-9, a)):
        with pytest.raises(IndexError):
            wrong()
    with pytest.raises(TypeError, match=r"layer 0 must be a Layer, got 3"):
        layers[0] = 3


def test_names_that_are_no_positions_do_not_change():
    net = Sequential({"first": linear(), "second": linear()})
    del net[0]
    net.insert(0, linear())
    assert [name for name, _ in net.children()] == ["0", "second"]
    net[1] = Identity()
    assert repr(net[1]) == repr(net.second) == "Identity()"


def test_lists_of_layers_can_be_concatenated():
    a, b = linear(), linear()
    layers = ModuleList([a])
    layers += [b]
    assert list(layers) == [a, b]
    assert list(ModuleList([a]) + ModuleList([b])) == [a, b]


def test_a_dict_of_layers_has_the_methods_of_a_dict():
    a, b = linear(), linear()
    layers = ModuleDict([("a", a)])
    layers["b"] = b
    assert (list(layers), layers.keys(), layers.values()) == (["a", "b"], ["a", "b"], [a, b])
    assert layers.items() == [("a", a), ("b", b)]
    assert "b" in layers
    assert "c" not in layers
    layers.update({"a": b})
    assert layers["a"] is b
    assert layers.pop("a") is b
    with pytest.raises(KeyError):
        layers["a"]
    with pytest.raises(KeyError):
        del layers["training"]
    layers.clear()
    assert len(layers) == 0
    for name in ("", "a.b", "keys"):
        with pytest.raises(ValueError, match=r"name of a layer: .* is empty, in use or contains a dot"):
            layers[name] = a
    with pytest.raises(TypeError, match="name of a layer: expected a str, got 1"):
        layers[1] = a
    with pytest.raises(TypeError, match="layer 'a' must be a Layer, got None"):
        layers["a"] = None


@pytest.mark.parametrize("make", [lambda: ModuleList([linear()]), lambda: ModuleDict({"a": linear()})])
def test_lists_and_dicts_are_not_called(make):
    with pytest.raises(NotImplementedError, match="is not called; call the layers in it"):
        make()(normal((2, 3)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda a: [a, linear()], r"is a list that contains \[0\] \(Linear\), \[1\] .*ModuleList\(ways\)"),
        (lambda a: (1, a), r"is a tuple that contains \[1\] \(Linear\)"),
        (lambda a: {"x": a}, r"is a dict that contains \['x'\] \(Linear\), .*layers.ModuleDict\(ways\)"),
        (lambda a: [[1], {"y": [a]}], r".*contains \[1\]\['y'\]\[0\] \(Linear\)"),
        (lambda a: [a.weight], r".*contains \[0\] \(Parameter\), .*assign each Parameter to an attribute"),
        (lambda a: [a] * 9, r".*\[3\] \(Linear\), \.\.\., which"),
    ],
)  # fmt: skip
def test_layers_in_plain_lists_are_refused(make, message):
    net = Sequential({"net": Branches(ModuleList())})
    with pytest.raises(TypeError, match=rf"^net \(Branches\): ways {message}"):
        net.net.ways = make(linear())
    assert not hasattr(net.net, "ways")
    net.net.ways = [1, "two", (3.0, None)]


def test_identity_keeps_the_positions_of_other_layers():
    """A checkpoint with BatchNorm and LeakyReLU as two layers loads by position."""
    net = Sequential(linear(), InPlaceABN(3, dtype=np.float64), Identity(54, unused=True), linear(1))
    assert list(net.state_dict())[-2:] == ["3.weight", "3.bias"]
    x = normal((4, 3))
    assert Identity()(x) is x
    z = net(x)
    assert net.backward(np.ones_like(z)).shape == x.shape
    first = Sequential(Identity(), InPlaceABN(3, dtype=np.float64))
    assert first.overwrites_input
    net[2] = Dropout()
    assert isinstance(net[2], Dropout)


# ---- frozen parameters -------------------------------------------------------------------------------------


def test_frozen_parameters_get_no_gradient():
    net = Sequential(linear(), ABN(3, activation="prelu", dtype=np.float64), linear(1))
    assert net[:2].requires_grad_(False) is not None
    net(normal((4, 3)))
    dx = net.backward(np.ones((4, 3)))
    assert dx.shape == (4, 3)
    found = {name for name, parameter in net.named_parameters() if parameter.grad is not None}
    assert found == {"2.weight", "2.bias"}
    net.requires_grad_()
    net(normal((4, 3)))
    net.backward(np.ones((4, 3)))
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert "frozen" in repr(Parameter(np.zeros(1), requires_grad=False))


def test_a_frozen_parameter_is_not_checked_by_gradcheck():
    from inplace_abn import gradcheck

    net = linear()
    net.bias.requires_grad = False
    report = gradcheck(net, normal((2, 3)))
    assert report.ok
    assert {row.name for row in report.rows} == {"x", "weight"}


def test_flatten_is_still_a_layer_of_a_sequence():
    net = Sequential(Flatten(), linear())
    assert net.extend([Flatten()])[-1].name == "2"


def test_a_list_that_is_filled_after_its_assignment_is_refused():
    class Net(Layer):
        def __init__(self):
            self.blocks, self.named = [], []
            self.blocks.append(Linear(2, 2))
            self.first = Linear(2, 2)
            self.named.append(self.first)

    net = Net()
    for use in (net.parameters, net.state_dict, net.eval, net.zero_grad):
        with pytest.raises(TypeError, match=r"Net: blocks is a list that contains \[0\] \(Linear\)"):
            use()
    net.blocks = ModuleList(net.blocks)
    assert len(net.eval().parameters()) == 4
