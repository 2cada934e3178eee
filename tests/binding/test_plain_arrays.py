"""Subclasses of arrays: every layer and operation refuses them, with the message of the core."""

import warnings

import numpy as np
import pytest
from operations import Context
from refusals import Subclass

from inplace_abn import functional, ops
from inplace_abn.layers import (
    ABN,
    Activation,
    AvgPool2d,
    Conv2d,
    ConvTranspose2d,
    CrossEntropy,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    InPlaceABN,
    Linear,
    MaxPool2d,
    Recompute,
    Residual,
    Sequential,
    Upsample,
)

LAYERS = {
    "ABN": lambda: ABN(4),
    "InPlaceABN": lambda: InPlaceABN(4),
    "Activation": Activation,
    "Activation, in place": lambda: Activation("relu", inplace=True),
    "AvgPool2d": lambda: AvgPool2d(2),
    "Conv2d": lambda: Conv2d(4, 4, 1),
    "ConvTranspose2d": lambda: ConvTranspose2d(4, 4, 1),
    "Dropout": Dropout,
    "Dropout, eval": lambda: Dropout().eval(),
    "Flatten": Flatten,
    "GlobalAvgPool2d": GlobalAvgPool2d,
    "Linear": lambda: Linear(4, 3),
    "MaxPool2d": lambda: MaxPool2d(2),
    "Recompute": lambda: Recompute(Activation()),
    "Residual": lambda: Residual(Sequential()),
    "Upsample": lambda: Upsample(scale_factor=2),
}
OPERATIONS = {
    "avg_pool2d": {"kernel_size": 2},
    "conv2d": {"weight": np.ones((4, 4, 1, 1))},
    "conv_transpose2d": {"weight": np.ones((4, 4, 1, 1))},
    "dropout": {},
    "flatten": {},
    "global_avg_pool2d": {},
    "linear": {"weight": np.ones((3, 4))},
    "max_pool2d": {"kernel_size": 2},
    "upsample_bilinear2d": {"size": 2},
}
KINDS = {
    "masked": lambda a: np.ma.array(a, mask=a > 0),
    "matrix": lambda a: np.asmatrix(a.reshape(len(a), -1) if a.ndim else a),
    "subclass": lambda a: a.view(Subclass),
}


def ones(*shape, dtype=np.float32):
    return np.ones(shape or (2, 4, 4, 4), dtype)


def of_kind(kind, array):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        return KINDS[kind](array)


def words(name, array):
    """Return the message of the core for such an array, with `name` for x."""
    with pytest.raises(TypeError) as caught:
        functional.forward(array)
    return str(caught.value).replace("x must", f"{name} must").replace("x.view", f"{name}.view")


def refused(name, array, call, *arguments):
    before = array.tobytes()
    with pytest.raises(TypeError) as caught:
        call(*arguments, array)
    assert str(caught.value).split(": ")[-1] == words(name, array)
    assert array.tobytes() == before
    assert array.flags.writeable


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", LAYERS)
def test_layers(layer, kind):
    refused("x", of_kind(kind, ones()), LAYERS[layer]())
    layer = LAYERS[layer]()
    z = layer(ones())
    refused("dz", of_kind(kind, np.ones_like(z)), layer.backward)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations(operation, kind):
    options, operation = OPERATIONS[operation], getattr(ops, operation)
    refused("x", of_kind(kind, ones(dtype=float)), lambda x: operation.forward(Context(), x, **options))
    ctx = Context()
    z = operation.forward(ctx, ones(dtype=float), **options)
    refused("dz", of_kind(kind, np.ones_like(z)), operation.backward, ctx)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_biases(kind):
    x, weight, bias = ones(2, 4), ones(3, 4), ones(3)
    refused("weight", of_kind(kind, weight), ops.linear.forward, Context(), x)
    if kind != "matrix":  # which has two dimensions
        refused("bias", of_kind(kind, bias), ops.linear.forward, Context(), x, weight)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_labels_and_the_gradient_of_the_loss(kind):
    criterion, scores, labels = CrossEntropy(), ones(2, 4), np.array([0, 1])
    refused("target", of_kind(kind, labels), criterion, scores)
    refused("x", of_kind(kind, scores), lambda x: criterion(x, labels))
    criterion(scores, labels)
    refused("dz", of_kind(kind, np.array(1.0)), criterion.backward)


@pytest.mark.parametrize("layer", LAYERS)
def test_memory_maps_are_accepted(layer, tmp_path):
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=(2, 4, 4, 4))
    layer = LAYERS[layer]()
    dz = np.ones_like(layer(x))
    gradient = np.memmap(tmp_path / "dz", np.float32, "w+", shape=dz.shape)
    assert layer.backward(gradient).shape == x.shape


def test_labels_from_a_memory_map_are_accepted(tmp_path):
    labels = np.memmap(tmp_path / "labels", np.int64, "w+", shape=(2,))
    assert CrossEntropy()(ones(2, 4), labels) == pytest.approx(np.log(4))
