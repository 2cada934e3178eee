"""Plain networks, and normalizations folded into the layers before them."""

import exported
import numpy as np
import pytest

from inplace_abn import export, layers
from inplace_abn.export.trace import trace
from inplace_abn.layers import (
    ABN,
    Activation,
    Conv2d,
    ConvTranspose2d,
    Graph,
    Identity,
    InPlaceABN,
    Layer,
    Linear,
    Residual,
    Sequential,
)

#: Normalizations that follow no convolution, and so remain.
REMAINING = {"preactivation": 5, "encoder_decoder": 6, "wider_resnet": 7, "densenet": 6}


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("name", exported.NETWORKS)
def test_networks(name, channel_axis):
    net, shape = exported.network(name, channel_axis, dtype=np.float64)
    x = exported.samples(shape, np.float64)
    folded = export.fold(net, shape)
    assert exported.remaining(folded) == REMAINING.get(name, 0)
    exported.assert_near(exported.evaluated(folded, x), exported.evaluated(net, x), 1e-12)


@pytest.mark.parametrize("name", ["resnet", "densenet"])
def test_to_standard(name):
    net, shape = exported.network(name)
    plain = export.to_standard(net)
    kinds = {type(layer).__name__ for _, layer in plain.named_layers()}
    assert not kinds & {"InPlaceABN", "Recompute"}
    assert not any(layer.overwrites_input for _, layer in plain.named_layers())
    assert list(plain.state_dict()) == list(net.state_dict())
    x = exported.samples(shape)
    exported.assert_near(exported.evaluated(plain, x), exported.evaluated(net, x), 1e-6)
    plain.load_state_dict(net.state_dict())


def test_to_standard_of_synchronized_layers():
    """In evaluation these are an ABN: they can be folded, and need no group."""
    net = exported.trained(
        layers.convert_sync(Sequential(Conv2d(3, 2, 1), InPlaceABN(2), Conv2d(2, 2, 1), ABN(2)))
    )
    plain = export.to_standard(net)
    assert [type(layer) for layer in (plain[1], plain[3])] == [ABN, ABN]
    assert not hasattr(plain[1], "group")
    assert exported.remaining(export.fold(net, (3, 4, 4))) == 0
    x = exported.samples((3, 4, 4))
    exported.assert_near(exported.evaluated(plain, x), exported.evaluated(net, x), 1e-6)


def test_to_standard_keeps_classes_of_the_user():
    class Mine(InPlaceABN):
        pass

    net = Sequential(Mine(2), InPlaceABN(2))
    plain = export.to_standard(net)
    assert [type(layer) for layer in plain] == [Mine, ABN]
    assert [layer.strategy for layer in (*plain, *net)] == ["standard"] * 2 + ["inplace"] * 2


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (Conv2d(4, 6, 3, groups=2, bias=False, dtype=np.float64), (4, 5, 5)),
        (Conv2d(4, 6, 3, dtype=np.float64), (4, 5, 5)),
        (ConvTranspose2d(4, 6, 3, stride=2, groups=2, dtype=np.float64), (4, 5, 5)),
        (ConvTranspose2d(4, 6, 2, bias=False, dtype=np.float64), (4, 5, 5)),
        (Linear(4, 6, bias=False, dtype=np.float64), (4,)),
    ],
    ids=["grouped", "biased", "transposed, grouped", "transposed", "linear"],
)
@pytest.mark.parametrize("affine", [True, False])
def test_layers(layer, shape, affine):
    net = exported.trained(Sequential(layer, ABN(6, affine=affine, dtype=np.float64)))
    x = exported.samples(shape, np.float64)
    folded = export.fold(net, shape, np.float64)
    assert [type(inner) for inner in folded] == [type(layer), Activation]
    exported.assert_near(exported.evaluated(folded, x), exported.evaluated(net, x), 1e-13)


def test_linear_layers_of_sequences():
    """The features are the last axis: a normalization of the axis 1 is not one of the features."""
    for axis, left in ((-1, 0), (1, 1)):
        norm = ABN(6, channel_axis=axis, dtype=np.float64)
        net = exported.trained(Sequential(Linear(4, 6, dtype=np.float64), norm))
        folded = export.fold(net, (6, 4), np.float64)
        assert exported.remaining(folded) == left


def test_activations_are_kept():
    slopes = layers.InPlaceABN(6, activation="prelu", num_slopes=6)
    slopes.slope.data[...] = np.linspace(0.1, 0.6, 6)
    last = ABN(2, activation="identity")
    net = exported.trained(Sequential(Conv2d(3, 6, 1), slopes, Conv2d(6, 2, 1), last))
    folded = export.fold(net, (3, 5, 5))
    assert type(folded[3]) is Identity
    assert folded[1].activation == "prelu"
    assert folded[1].inplace
    x = exported.samples((3, 5, 5))
    assert exported.remaining(net) == 2
    assert net.training
    exported.assert_near(exported.evaluated(folded, x), exported.evaluated(net, x), 1e-6)


class Twice(Graph):
    """A normalization whose input is used elsewhere, and one that is called for two convolutions."""

    def __init__(self):
        self.first, self.second = Conv2d(3, 4, 1, rng=0), Conv2d(4, 4, 1, rng=1)
        self.norm, self.shared = ABN(4), ABN(4)

    def compute(self, x):
        a = self.first(x)
        return layers.add(self.shared(self.second(self.norm(a))), self.shared(a))


class WithResidual(Graph):
    """A normalization that also adds and activates."""

    def __init__(self):
        self.conv, self.norm = Conv2d(3, 3, 1, rng=0), ABN(3, activation="identity")
        self.last = Activation("elu", 1.0)

    def compute(self, x):
        return self.norm(self.conv(x), residual=x, activation=self.last)


class WeightAsArray(Graph):
    """A graph that uses the weight of a normalization as an array."""

    def __init__(self):
        self.conv, self.norm = Conv2d(3, 3, 1, rng=0), ABN(3, channel_axis=1)

    def compute(self, x):
        pooled = layers.GlobalAvgPool2d()(self.norm(self.conv(x)))
        return layers.mul(pooled, self.norm.weight.data)


class Unknown(Layer):
    """A layer that calls layers of another one."""

    def __init__(self, conv, norm):
        self.conv, self.norm = conv, norm

    def forward(self, ctx, x):
        return np.flip(self.norm(self.conv(x)), -1)


@pytest.mark.parametrize("make", [Twice, WithResidual, WeightAsArray])
def test_what_another_layer_needs_is_not_folded(make):
    net = exported.trained(make())
    x = exported.samples((3, 5, 6))
    folded = export.fold(net, (3, 5, 6))
    assert exported.remaining(folded) == exported.remaining(net)
    assert np.array_equal(exported.evaluated(folded, x), exported.evaluated(net, x))


def test_layers_of_unknown_layers_are_not_folded():
    conv, norm = Conv2d(3, 3, 1, rng=0), ABN(3)
    net = exported.trained(Sequential(conv, norm, Unknown(conv, norm), Conv2d(3, 3, 1, rng=1), ABN(3)))
    x = exported.samples((3, 5, 6))
    folded = export.fold(net, (3, 5, 6))
    assert [type(layer).__name__ for layer in folded] == ["Conv2d", "ABN", "Unknown", "Conv2d", "Activation"]
    exported.assert_near(exported.evaluated(folded, x), exported.evaluated(net, x), 1e-6)


def test_statistics_of_the_batch_are_not_folded():
    net = Sequential(Conv2d(3, 3, 1), ABN(3, track_running_stats=False))
    assert exported.remaining(export.fold(net, (3, 5, 6))) == 1


def test_half_precision():
    net, shape = exported.network("resnet")
    x = exported.samples(shape, np.float16)
    folded = export.fold(net, shape, np.float16)
    assert exported.remaining(folded) == 0
    assert {parameter.data.dtype.name for parameter in folded.parameters()} == {"float32"}
    exported.assert_near(exported.evaluated(folded, x).astype(np.float32), exported.evaluated(net, x), 0.02)


def test_a_weight_that_two_layers_share_is_folded_once():
    one, other = Conv2d(3, 3, 1), Conv2d(3, 3, 1)
    other.weight = one.weight
    net = exported.trained(Sequential(one, ABN(3, activation="identity"), other))
    folded = export.fold(net, (3, 4, 4))
    assert np.array_equal(folded[2].weight.data, other.weight.data)
    x = exported.samples((3, 4, 4))
    exported.assert_near(exported.evaluated(folded, x), exported.evaluated(net, x), 1e-6)


def test_bad_arguments():
    net = Sequential(Conv2d(3, 3, 1), ABN(3))
    with pytest.raises(TypeError, match="network must be a Layer, got int"):
        export.fold(3, (3, 4, 4))
    with pytest.raises(TypeError, match="network must be a Layer, got list"):
        export.to_standard([net])
    for shape in (3, (), [], "3x4x4", np.zeros(3)):
        with pytest.raises(TypeError, match="input_shape must be the shape of one sample"):
            export.fold(net, shape)
    with pytest.raises(ValueError, match="input_shape must be at least 1"):
        export.fold(net, (3, 0, 4))
    with pytest.raises(ValueError, match=r"0 \(Conv2d\): .* C = 3; .* has C = 4"):
        export.fold(net, (4, 4, 4))
    with pytest.raises(ValueError, match=r"branch and shortcut: expected the same shape"):
        export.fold(Residual(Conv2d(3, 4, 1)), (3, 4, 4))


class UsesNumpy(Graph):
    def __init__(self):
        self.conv = Conv2d(3, 3, 1)

    def compute(self, x):
        return self.conv(np.flip(x, -1))


class UsesOverwritten(Graph):
    def __init__(self):
        self.conv, self.norm = Conv2d(3, 3, 1), InPlaceABN(3)

    def compute(self, x):
        a = self.conv(x)
        return layers.add(self.norm(a), a)  # in place: a is the result


def test_arrays_that_are_not_results_of_layers_are_refused():
    with pytest.raises(ValueError, match=r"conv \(Conv2d\): input 0, an array of shape .*, is not the"):
        export.fold(UsesNumpy(), (3, 4, 4))


class Composed(Layer):
    """A layer whose forward calls layers alone, as a module of PyTorch is written."""

    def __init__(self, strategy):
        self.conv, self.norm = Conv2d(3, 3, 1, rng=0), ABN(3, strategy=strategy)
        self.inner = Sequential(InPlaceABN(3), Conv2d(3, 3, 1, rng=1), InPlaceABN(3))

    def forward(self, ctx, x):
        return layers.add(self.inner(self.norm(self.conv(x))), x)


class InPlace(Layer):
    """Overwrites its input and uses it afterwards: only an input from outside is copied."""

    def __init__(self):
        self.inner = Sequential(InPlaceABN(3), Conv2d(3, 3, 1, rng=1))

    def forward(self, ctx, x):
        return layers.add(self.inner(x), x)


@pytest.mark.parametrize("strategy", ["standard", "inplace"])
def test_layers_that_call_layers(strategy):
    net = exported.trained(Sequential(Conv2d(3, 3, 1, rng=2), Composed(strategy)))
    x = exported.samples((3, 4, 4))
    folded = export.fold(net, (3, 4, 4))
    assert exported.remaining(folded) == 1  # the first one of the inner layers
    exported.assert_near(exported.evaluated(folded, x), exported.evaluated(net, x), 1e-6)


def test_layers_that_overwrite_their_input():
    inside = Sequential(Conv2d(3, 3, 1), InPlace())
    alone = InPlace()
    assert [step.op for step in trace(inside, (3, 4, 4)).steps] == ["Conv2d", ""]
    assert [step.op for step in trace(alone, (3, 4, 4)).steps] == ["ABN", "Activation", "Conv2d", "Add"]


class Masked(Graph):
    def __init__(self):
        self.norm = ABN(3)

    def compute(self, x):
        return self.norm(x, mask=np.ones((2, 4, 4), bool))


def test_masks_are_refused():
    with pytest.raises(ValueError, match=r"norm \(ABN\): mask=: the export is for batches without a mask"):
        export.fold(Masked(), (3, 4, 4))


def test_results_written_over_an_input():
    """The sum takes the result of the normalization twice, as in the network itself."""
    net = exported.trained(UsesOverwritten())
    x = exported.samples((3, 4, 4))
    exported.assert_near(exported.evaluated(export.fold(net, (3, 4, 4)), x), exported.evaluated(net, x), 1e-6)
