"""`convert` on models of torchvision and timm: results, gradients and statistics of the original's."""

import copy

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", minversion="2.4")

import zoo  # noqa: E402

from inplace_abn.torch import convert, report  # noqa: E402

BOUNDS = {"outputs": 1e-11, "gradients": 1e-8, "buffers": 1e-12, "eval": 1e-12}

# name: (model, size of the images, states of its batch norms)
MODELS = {
    "resnet50": (lambda: zoo.vision("resnet50"), 64, {"fused": 37, "with residual": 16}),
    "mobilenet_v2": (lambda: zoo.vision("mobilenet_v2"), 64, {"fused": 42, "with residual": 10}),
    "regnet_y_400mf": (lambda: zoo.vision("regnet_y_400mf"), 64, {"fused": 37, "with residual": 16}),
    "efficientnet_b0": (lambda: zoo.vision("efficientnet_b0"), 64, {"fused": 49}),
    "mobilenet_v3_large": (lambda: zoo.vision("mobilenet_v3_large"), 64, {"fused": 36, "with residual": 10}),
    "densenet121": (lambda: zoo.vision("densenet121"), 64, {"fused": 121}),
    "deeplabv3_resnet50": (
        lambda: zoo.segmentation("deeplabv3_resnet50", aux_loss=True),
        64,
        {"fused": 45, "with residual": 16},
    ),
    "fcn_resnet50": (lambda: zoo.segmentation("fcn_resnet50"), 64, {"fused": 38, "with residual": 16}),
    "lraspp_mobilenet_v3_large": (
        lambda: zoo.segmentation("lraspp_mobilenet_v3_large"),
        64,
        {"fused": 37, "with residual": 10},
    ),
    "pyramid of resnet50": (lambda: zoo.pyramid("resnet50"), 64, {"fused": 37, "with residual": 16}),
    "pyramid of mobilenet_v3_large": (
        lambda: zoo.pyramid("mobilenet_v3_large"),
        64,
        {"fused": 37, "with residual": 8, "left": 1},
    ),
    "timm resnet50": (lambda: zoo.timm("resnet50"), 64, {"fused": 37, "with residual": 16}),
    "timm regnety_004": (lambda: zoo.timm("regnety_004"), 64, {"fused": 37, "with residual": 16}),
    "timm efficientnet_b0": (lambda: zoo.timm("efficientnet_b0"), 64, {"fused": 40, "with residual": 9}),
}


def images(size, dtype=torch.float64, number=3):
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(2), dtype=dtype)


def states(model):
    counts = {}
    for row in report(model).rows:
        counts[row.state] = counts.get(row.state, 0) + 1
    return counts


@pytest.mark.parametrize("name", MODELS)
def test_same_results(name):
    make, size, expected = MODELS[name]
    torch.manual_seed(0)
    model = zoo.prepare(make())
    converted = convert(copy.deepcopy(model))
    assert states(converted) == expected
    found = zoo.errors(model, converted, images(size))
    assert all(found[key] <= bound for key, bound in BOUNDS.items()), found
