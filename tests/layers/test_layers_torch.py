"""Layers and whole networks compared to those of PyTorch."""

import inspect

import numpy as np
import pytest
from networks import STRATEGIES, normal

from inplace_abn import layers, models

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", reason="PyTorch is not installed")
nn = torch.nn

PAIRS = {
    "conv": (layers.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1)),
    "conv, dilated": (layers.Conv2d(4, 6, (3, 2), 1, (2, 1), 2), nn.Conv2d(4, 6, (3, 2), 1, (2, 1), 2)),
    "conv, groups": (layers.Conv2d(4, 6, 3, groups=2, bias=False), nn.Conv2d(4, 6, 3, groups=2, bias=False)),
    "conv, same": (
        layers.Conv2d(4, 6, (5, 3), padding="same", dilation=2),
        nn.Conv2d(4, 6, (5, 3), padding="same", dilation=2),
    ),
    "transposed": (layers.ConvTranspose2d(4, 6, 3, 2, 1, 1), nn.ConvTranspose2d(4, 6, 3, 2, 1, 1)),
    "transposed, groups": (
        layers.ConvTranspose2d(4, 6, (2, 3), 2, groups=2, bias=False, dilation=(1, 2)),
        nn.ConvTranspose2d(4, 6, (2, 3), 2, groups=2, bias=False, dilation=(1, 2)),
    ),
    "max_pool": (layers.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 2, 1)),
    "avg_pool": (layers.AvgPool2d(3, 2, 1), nn.AvgPool2d(3, 2, 1)),
    "global": (layers.GlobalAvgPool2d(keepdims=True), nn.AdaptiveAvgPool2d(1)),
    "flatten": (layers.Flatten(), nn.Flatten()),
    "upsample": (layers.Upsample(scale_factor=2), nn.Upsample(scale_factor=2, mode="bilinear")),
    "upsample to": (layers.Upsample((5, 11)), nn.Upsample((5, 11), mode="bilinear")),
    "dropout": (layers.Dropout(0.5).eval(), nn.Dropout(0.5).eval()),
    "linear": (layers.Linear(9, 5), nn.Linear(9, 5)),
    "leaky": (layers.Activation("leaky_relu", 0.2), nn.LeakyReLU(0.2)),
    "elu": (layers.Activation("elu", 1.5, inplace=True), nn.ELU(1.5)),
    "relu": (layers.Activation("relu"), nn.ReLU()),
    "relu6": (layers.Activation("relu6", inplace=True), nn.ReLU6()),
    "hardswish": (layers.Activation("hardswish"), nn.Hardswish()),
    "leaky of a negative slope": (layers.Activation("leaky_relu", -0.5), nn.LeakyReLU(-0.5)),
    "celu of a negative alpha": (layers.Activation("celu", -2), nn.CELU(-2)),
}


def compare(ours, theirs, x, rtol=1e-11):
    """Load the weights of PyTorch, run forward and backward of both, and compare all results."""
    theirs = theirs.double()
    for parameter in ours.parameters():
        parameter.data, parameter.grad = parameter.data.astype(np.float64), None
    ours.load_state_dict({name: value.numpy() for name, value in theirs.state_dict().items()})
    given = torch.tensor(x, requires_grad=True)
    want = theirs(given)
    dz = normal(tuple(want.shape), 9)
    want.backward(torch.tensor(dz))
    np.testing.assert_allclose(
        ours(x.copy()), want.detach().numpy(), rtol=0, atol=rtol * want.abs().max().item()
    )
    np.testing.assert_allclose(
        ours.backward(dz), given.grad.numpy(), rtol=0, atol=rtol * given.grad.abs().max().item()
    )
    theirs = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        gradient = theirs[name].grad.numpy()
        np.testing.assert_allclose(
            parameter.grad, gradient, rtol=0, atol=rtol * max(1, np.abs(gradient).max()), err_msg=name
        )


@pytest.mark.parametrize("name", PAIRS)
def test_layer(name):
    compare(*PAIRS[name], normal((2, 4, 7, 9)))


@pytest.mark.parametrize("name", ["conv", "max_pool", "linear", "conv, groups", "transposed"])
def test_repr_begins_like_that_of_pytorch(name):
    ours, theirs = PAIRS[name]
    assert repr(ours).split("(")[0] == repr(theirs).split("(")[0]
    assert repr(ours)[:-1].split(", dilation")[0] in repr(theirs)


@pytest.mark.parametrize(
    "name", ["Conv2d", "ConvTranspose2d", "Linear", "MaxPool2d", "AvgPool2d", "Dropout", "CrossEntropy"]
)
def test_arguments_have_the_defaults_of_pytorch(name):
    theirs = {"CrossEntropy": "CrossEntropyLoss"}.get(name, name)
    same_defaults(getattr(layers, name), getattr(nn, theirs))


def test_batch_norm_has_the_defaults_of_pytorch():
    same_defaults(layers.InPlaceABN, nn.BatchNorm2d)


def same_defaults(ours, theirs):
    ours, theirs = (inspect.signature(kind).parameters for kind in (ours, theirs))
    shared = [name for name in ours if name in theirs and name != "dtype"]
    assert shared
    for name in shared:
        assert ours[name].default == theirs[name].default, name


@pytest.mark.parametrize("pixels", [(), (4, 5)])
def test_cross_entropy(pixels):
    scores, target = normal((3, 6, *pixels)), np.random.default_rng(1).integers(0, 6, (3, *pixels))
    target.flat[1] = 255
    given = torch.tensor(scores, requires_grad=True)
    want = nn.CrossEntropyLoss(ignore_index=255)(given, torch.tensor(target))
    (3 * want).backward()
    criterion = layers.CrossEntropy(ignore_index=255)
    assert criterion(scores, target) == pytest.approx(want.item(), rel=1e-12)
    np.testing.assert_allclose(criterion.backward(3.0), given.grad.numpy(), atol=1e-14)


# ---- networks ----------------------------------------------------------------------------------------------


class TheirResidual(nn.Module):
    """The blocks in PyTorch, with the same names."""

    def __init__(self, ours):
        super().__init__()
        for key, layer in ours.children():
            setattr(self, key, translate(layer))
        self.has = {key for key, _ in ours.children()}

    def forward(self, x):
        a = self.preactivation(x) if "preactivation" in self.has else x
        z = self.branch(a) + (self.shortcut(a) if "shortcut" in self.has else x)
        return self.activation(z) if "activation" in self.has else z


class TheirABN(nn.BatchNorm2d):
    def __init__(self, ours):
        super().__init__(ours.num_features)
        self.slope = 1.0 if ours.activation == "identity" else ours.activation_param

    def forward(self, x):
        return nn.functional.leaky_relu(super().forward(x), self.slope)


def translate(ours):
    """Return the same layer in PyTorch."""
    kind = type(ours).__name__
    if kind == "Sequential":
        net = nn.Sequential()
        for key, layer in ours.children():
            net.add_module(key, translate(layer))
        return net
    return {
        "Residual": TheirResidual,
        "ABN": TheirABN,
        "Conv2d": lambda conv: nn.Conv2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            bias=conv.bias is not None,
        ),
        "Linear": lambda linear: nn.Linear(linear.in_features, linear.out_features),
        "Activation": lambda activation: nn.LeakyReLU(activation.activation_param),
        "GlobalAvgPool2d": lambda _: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        "Upsample": lambda up: nn.Upsample(scale_factor=up.scale_factor, mode="bilinear"),
    }[kind](ours)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", ["preactivation", "postactivation", "encoder_decoder"])
def test_network(kind, strategy, training):
    style = {"strategy": strategy, "dtype": np.float64, "rng": 0}
    if kind == "encoder_decoder":
        ours = models.encoder_decoder(2, 3, (4, 6), **style)
    else:
        ours = models.residual_network(2, 3, (4, 6), 2, block=kind, **style)
    torch.manual_seed(0)
    compare(ours.train(training), translate(ours).train(training), normal((3, 2, 8, 8)), rtol=1e-9)
