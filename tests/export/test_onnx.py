"""ONNX files of networks, compared in onnxruntime with the networks in evaluation."""

import exported
import numpy as np
import pytest

from inplace_abn import export, layers, reference
from inplace_abn.layers import (
    ABN,
    Activation,
    AvgPool2d,
    Concat,
    Conv2d,
    ConvTranspose2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    Graph,
    GroupNorm,
    Identity,
    InPlaceABN,
    Linear,
    MaxPool2d,
    Recompute,
    Sequential,
    Upsample,
)

onnx = pytest.importorskip("onnx")
from onnx_files import RTOL, compare, outputs_of  # noqa: E402

CASES = [(1, np.float32), (-1, np.float32), (1, np.float16)]


@pytest.mark.parametrize(("channel_axis", "dtype"), CASES, ids=str)
@pytest.mark.parametrize("name", exported.NETWORKS)
def test_networks(name, channel_axis, dtype, path):
    net, shape = exported.network(name, channel_axis)
    compare(net, shape, path, dtype)


@pytest.mark.parametrize("name", ["postactivation", "wider_resnet", "densenet"])
def test_folded_networks(name, path):
    net, shape = exported.network(name)
    folded = export.fold(net, shape)
    export.to_onnx(folded, path, shape)
    x = exported.samples(shape)
    exported.assert_near(outputs_of(path, x), exported.evaluated(net, x), RTOL[np.float32])
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("BatchNormalization") == exported.remaining(folded)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "deeplabv3", "densenet"])
def test_large_networks(name, path):
    from inplace_abn import models

    net = exported.trained(
        getattr(models, name)(rng=0, **({"num_classes": 21} if name == "deeplabv3" else {}))
    )
    shape = (3, 96, 96)
    export.to_onnx(export.fold(net, shape), path, shape)
    x = exported.samples(shape)
    exported.assert_near(outputs_of(path, x), exported.evaluated(net, x), 1e-4)


# ---- activations -----------------------------------------------------------------------------------------

PARAMETERS = {"leaky_relu": (0.2, -0.3), "elu": (0.7, -0.4), "celu": (0.6, -0.8), "prelu": (0.25,)}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("name", reference.ACTIVATIONS)
def test_activations(name, dtype, path):
    """An activation alone, and one of a normalization, near zero, in the tails, and beyond the kinks."""
    y = np.linspace(-9, 9, 301, dtype=np.float32).astype(dtype).reshape(1, 1, 7, 43)
    for parameter in PARAMETERS.get(name, (0.01,)):
        layer = Activation(name, parameter)
        export.to_onnx(layer, path, y.shape[1:], dtype)
        want = exported.evaluated(layer, y).astype(np.float64)
        # The relative error of exp(y) is that of y times |y|; sigmoid(y) is multiplied by y.
        bound = 4 * np.finfo(dtype).eps * np.maximum(1, np.abs(y)) * np.maximum(1, np.abs(want))
        got = outputs_of(path, y).astype(np.float64)
        assert (np.abs(got - want) <= bound).all(), (parameter, np.abs(got - want).max())
    norm = exported.trained(ABN(6, activation=name, activation_param=PARAMETERS.get(name, (0.01,))[0]))
    compare(norm, (6, 5), path, dtype)


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("kind", [Activation, ABN])
def test_slopes_per_channel(kind, channel_axis, path):
    options = {"num_slopes": 3, "channel_axis": channel_axis}
    layer = Activation("prelu", **options) if kind is Activation else ABN(3, activation="prelu", **options)
    layer.slope.data[...] = 0.1, -0.5, 2
    compare(layer, (3, 5, 6) if channel_axis == 1 else (5, 6, 3), path)


# ---- layers ----------------------------------------------------------------------------------------------


def image_layers(axis):
    last = {"channel_axis": axis}
    return {
        "same padding": Conv2d(4, 6, (2, 3), padding="same", groups=2, dilation=(3, 1), **last),
        "stride and padding": Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(2, 1), bias=False, **last),
        "transposed": ConvTranspose2d(4, 6, 3, stride=(2, 3), padding=(1, 0), output_padding=(1, 2), **last),
        "transposed, groups": ConvTranspose2d(4, 6, 2, groups=2, bias=False, dilation=(1, 2), **last),
        "max pool": MaxPool2d((3, 2), (2, 1), (1, 0), **last),
        "average pool": AvgPool2d(3, 2, 1, **last),
        "mean": GlobalAvgPool2d(**last),
        "mean, keepdims": GlobalAvgPool2d(keepdims=True, **last),
        "bilinear": Upsample(scale_factor=(2, 1.5), **last),
        "bilinear, size": Upsample((11, 3), **last),
        "aligned corners": Upsample((13, 9), align_corners=True, **last),
        "nearest": Upsample(scale_factor=2, mode="nearest", **last),
        "nearest, size": Upsample((4, 17), mode="nearest", **last),
        "groups": GroupNorm(2, 4, **last),
        "groups, not affine": GroupNorm(4, 4, affine=False, **last),
        "normalization": InPlaceABN(4, activation="silu", **last),
        "not affine": ABN(4, affine=False, **last),
        "statistics of the batch": ABN(4, track_running_stats=False, **last),
        "concatenation": Concat(Conv2d(4, 3, 1, **last), Identity(), InPlaceABN(4, **last), **last),
        "run again": Recompute(InPlaceABN(4, **last), Dropout(0.5)),
        "flatten": Sequential(Conv2d(4, 2, 3, **last), Flatten()),
        "flatten and linear": Sequential(MaxPool2d(2, **last), Flatten(), Linear(48, 3)),
    }


@pytest.mark.parametrize(("channel_axis", "dtype"), CASES, ids=str)
@pytest.mark.parametrize("name", image_layers(1))
def test_layers_of_images(name, channel_axis, dtype, path):
    layer = exported.trained(image_layers(channel_axis)[name])
    for _, inner in layer.named_layers():
        if isinstance(inner, GroupNorm) and inner.affine:
            inner.weight.data[...], inner.bias.data[...] = (1, -2, 3, -4), (4, 3, 2, 1)
    compare(layer, (4, 6, 9) if channel_axis == 1 else (6, 9, 4), path, dtype)


@pytest.mark.parametrize("layer", [Linear(4, 3), Linear(4, 3, bias=False)], ids=["bias", "no bias"])
@pytest.mark.parametrize("shape", [(4,), (5, 4), (2, 5, 4)], ids=str)
def test_linear_layers(layer, shape, path):
    compare(layer, shape, path)


@pytest.mark.parametrize(("shape", "channel_axis"), [((4,), 1), ((4, 7), 1), ((7, 4), -1), ((4, 2, 3, 5), 1)])
def test_normalizations_of_other_batches(shape, channel_axis, path):
    compare(exported.trained(ABN(4, channel_axis=channel_axis)), shape, path)


def test_layers_without_nodes(path):
    compare(Sequential(), (4,), path, rtol=0)
    compare(Sequential(Dropout(), Identity(), Activation("identity")), (4,), path, rtol=0)


# ---- graphs ----------------------------------------------------------------------------------------------


class Gates(Graph):
    """Sums and products of arrays, numbers and a parameter."""

    def __init__(self, axis):
        last = {"channel_axis": axis}
        self.conv, self.gate = Conv2d(3, 3, 1, rng=0, **last), Conv2d(3, 3, 1, rng=1, **last)
        self.pool = GlobalAvgPool2d(keepdims=True, **last)
        self.gain = layers.Parameter(np.linspace(1, 2, 3, dtype=np.float32).reshape(3, 1, 1))
        self.norm = ABN(3, activation="identity", strategy="inplace", **last)
        self.last, self.axis = Activation("elu", 1.0), axis

    def compute(self, x):
        z = self.conv(x)
        gated = layers.mul(layers.mul(z, 2.0), self.gate(self.pool(x)))
        if self.axis == 1:
            gated = layers.mul(gated, self.gain.data)
        gated = self.norm(layers.add(gated, -0.5), residual=x, activation=self.last)
        return layers.concat([gated, x], channel_axis=self.axis)


@pytest.mark.parametrize("channel_axis", [1, -1])
def test_graph(channel_axis, path):
    net = exported.trained(Gates(channel_axis))
    compare(net, (3, 4, 5) if channel_axis == 1 else (4, 5, 3), path)
    names = {array.name for array in onnx.load(path).graph.initializer}
    assert ("gain" in names) == (channel_axis == 1)
    assert {"conv.weight", "gate.bias", "norm.running_mean"} <= names


class TwoInputs(Graph):
    def __init__(self):
        self.one, self.other = Linear(3, 4, rng=0), Linear(2, 4, rng=1)

    def compute(self, x, y):
        a = self.one(x)
        return layers.add(a, self.other(y)), a


def test_several_inputs_and_outputs(path):
    net = TwoInputs()
    export.to_onnx(net, path, [(3,), (2,)])
    inputs = exported.samples((3,)), exported.samples((2,))
    for got, want in zip(outputs_of(path, *inputs), exported.evaluated(net, *inputs), strict=True):
        exported.assert_near(got, want, 1e-6)
    graph = onnx.load(path).graph
    assert [one.name for one in graph.input] == ["input0", "input1"]
    assert [one.name for one in graph.output] == ["output0", "output1"]


def test_layers_called_twice_share_their_weights(path):
    conv = Conv2d(3, 3, 1)
    compare(Sequential(conv, InPlaceABN(3), conv), (3, 4, 4), path)
    assert len(onnx.load(path).graph.initializer) == 6


# ---- the file --------------------------------------------------------------------------------------------


def test_names_and_sizes(path):
    net, shape = exported.network("resnet")
    export.to_onnx(net, path, shape)
    model = onnx.load(path)
    assert model.opset_import[0].version == 17
    (given,), (result,) = model.graph.input, model.graph.output
    sizes = [dim.dim_param or dim.dim_value for dim in given.type.tensor_type.shape.dim]
    assert (given.name, sizes) == ("input", ["N", *shape])
    assert [dim.dim_param or dim.dim_value for dim in result.type.tensor_type.shape.dim] == ["N", 5]
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert "stage1.0.branch.conv1/Conv" in names
    state = set(net.state_dict())
    assert all(array.name in state for array in model.graph.initializer)


@pytest.mark.parametrize("name", ["deeplabv3", "unet", "resnet"])
def test_images_of_any_size(name, path):
    net, shape = exported.network(name)
    export.to_onnx(net, path, shape, free_axes=(2, 3))
    x = exported.samples((shape[0], 48, 40), number=2)
    exported.assert_near(outputs_of(path, x), exported.evaluated(net, x), 1e-5)


def test_float64(path):
    """onnxruntime has no float64 convolutions; the evaluator of onnx has. Its eps is a float32 number."""
    net, shape = exported.network("postactivation", dtype=np.float64, activation="celu", activation_param=0.5)
    export.to_onnx(net, path, shape, np.float64)
    x = exported.samples(shape, np.float64)
    from onnx.reference import ReferenceEvaluator

    (got,) = ReferenceEvaluator(str(path)).run(None, {"input": x})
    exported.assert_near(got, exported.evaluated(net, x), 1e-7)


@pytest.mark.parametrize("of_network", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_weights_are_converted(of_network, dtype, path):
    """A network of linear layers, whose float64 operations onnxruntime has."""
    net = Sequential(Linear(4, 6, dtype=of_network), Activation("tanh"), Linear(6, 3, dtype=of_network))
    export.to_onnx(net, path, (4,), dtype)
    assert {array.dims[0] for array in onnx.load(path).graph.initializer} == {3, 6}
    got = outputs_of(path, exported.samples((4,), dtype))
    want = exported.evaluated(net, exported.samples((4,), of_network))
    assert got.dtype == dtype
    assert net[0].weight.data.dtype == of_network
    eps = max(np.finfo(dtype).eps, np.finfo(of_network).eps)
    exported.assert_near(got.astype(np.float64), want.astype(np.float64), 8 * eps)


def test_the_network_is_not_changed(path):
    net, shape = exported.network("resnet")
    before = net.state_dict()
    export.to_onnx(net, path, shape)
    assert net.training
    assert all(np.array_equal(array, before[name]) for name, array in net.state_dict().items())
    assert net.last_call is None
