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
    "timm lcnet_035": (lambda: zoo.timm("lcnet_035"), 64, {"fused": 27}),
    "timm hardcorenas_a": (lambda: zoo.timm("hardcorenas_a"), 64, {"fused": 29, "with residual": 5}),
    "timm repvgg_a0": (
        lambda: zoo.timm("repvgg_a0"),
        64,
        {"fused": 22, "with residual": 22, "copied": 17},
    ),
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


def replaced(model, make):
    """Replace each ReLU and ReLU6 of a model."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, (torch.nn.ReLU, torch.nn.ReLU6)):
                setattr(parent, name, make())
    return model


def resnet50_silu():
    return replaced(zoo.vision("resnet50"), lambda: torch.nn.SiLU(inplace=True))


RUN_AGAIN = {"recompute_stem": True, "recompute_projections": True}

# name: (model, options of convert, most bytes relative to the original's)
KEPT = {
    "resnet50": (MODELS["resnet50"][0], {}, 0.54),
    "resnet50, leaky ReLU": (MODELS["resnet50"][0], {"activation": "leaky_relu"}, 0.54),
    "resnet50, SiLU": (resnet50_silu, {}, 0.39),
    "resnet50, run again": (MODELS["resnet50"][0], RUN_AGAIN, 0.44),
    "mobilenet_v2": (MODELS["mobilenet_v2"][0], {}, 0.36),
    "regnet_y_400mf": (MODELS["regnet_y_400mf"][0], {}, 0.49),
    "efficientnet_b0": (MODELS["efficientnet_b0"][0], {}, 0.34),
    "mobilenet_v3_large": (MODELS["mobilenet_v3_large"][0], {}, 0.42),
    "densenet121": (MODELS["densenet121"][0], {}, 0.52),
}


@pytest.mark.parametrize("name", KEPT)
def test_kept_bytes(name):
    make, options, most = KEPT[name]
    torch.manual_seed(0)
    model = make()
    converted = convert(copy.deepcopy(model), **options)
    assert zoo.kept_ratio(model, converted, images(224, torch.float32, 2)) <= most


def test_running_again_gives_the_same_results():
    torch.manual_seed(0)
    model = zoo.prepare(zoo.vision("resnet50"))
    converted = convert(copy.deepcopy(model), **RUN_AGAIN)
    again = [row.path for row in report(converted).rows if "runs again" in row.why]
    assert again == ["bn1", *(f"layer{number}.0.downsample.1" for number in range(1, 5))]
    found = zoo.errors(model, converted, images(64))
    assert all(found[key] <= bound for key, bound in BOUNDS.items()), found


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "efficientnet_b0"])
def test_float32_is_as_exact_as_the_original(name):
    torch.manual_seed(0)
    exact = zoo.prepare(MODELS[name][0]())
    original = copy.deepcopy(exact).float()
    converted = convert(copy.deepcopy(original))
    outputs, gradients, _ = zoo.step(exact, images(64))
    found = {}
    for each in (original, converted):
        got = zoo.step(each, images(64).float())
        difference = sum(
            (got[1][key].double() - gradient).square().sum() for key, gradient in gradients.items()
        )
        found[each] = zoo.error(got[0][0], outputs[0]), difference.sqrt().item()
    assert found[converted][0] <= 1.5 * found[original][0]
    assert found[converted][1] <= 1.5 * found[original][1]
