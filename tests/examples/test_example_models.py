"""The models of the scripts of examples/: of torchvision and timm by name, and the paper's."""

import numpy as np
import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", minversion="2.4")

pytest.importorskip("PIL")

import imagenet  # noqa: E402
import segmentation  # noqa: E402
import tiny_data_sets as tiny  # noqa: E402
from training import models  # noqa: E402
from training.wider_resnet import WiderResNet38  # noqa: E402
from without_operators import import_torchvision  # noqa: E402

import_torchvision()

from inplace_abn import models as of_numpy  # noqa: E402
from inplace_abn.torch import convert, ledger, report  # noqa: E402


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def meta(make, *arguments):
    """Return a model without memory for its parameters."""
    with torch.device("meta"):
        return make(*arguments)


def test_wider_resnet_has_the_parameters_of_the_numpy_network():
    ours = of_numpy.wider_resnet(num_classes=7, width=1 / 16)
    assert parameters(WiderResNet38(7, width=1 / 16)) == sum(p.data.size for p in ours.parameters())


@pytest.mark.parametrize("dilated", [False, True])
def test_wider_resnet_keeps_half_after_conversion(dilated):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 64)
    model = WiderResNet38(5, width=1 / 16, dilated=dilated)
    assert model.backbone(x).shape == (2, 256, *((8, 8) if dilated else (2, 2)))
    with ledger(model) as stock:
        expected = model(x)
        expected.sum().backward()
    model = convert(model)
    assert {row.state for row in report(model).rows} <= {"fused", "copied"}
    with ledger(model) as converted:
        found = model(x)
        found.sum().backward()
    assert torch.allclose(found, expected, atol=1e-4)
    assert converted.kept / stock.kept < 0.6


@pytest.mark.parametrize(
    ("name", "millions"),
    [("resnet50", 25.56), ("resnext101_64x4d", 83.46), ("resnext152_64x4d", 115.0), ("googlenet", 6.62)],
)
def test_classifiers_of_torchvision(name, millions):
    model = meta(models.classifier, name, 1000)
    assert parameters(model) / 1e6 == pytest.approx(millions, abs=0.3)


def test_classifiers_of_timm():
    pytest.importorskip("timm")
    assert parameters(meta(models.classifier, "resnet10t", 10)) > 4e6
    assert type(meta(models.classifier, "timm/resnet18", 10)).__module__.startswith("timm.")
    with pytest.raises(SystemExit, match="neither torchvision nor timm has 'resnet51'"):
        models.classifier("resnet51", 10)


@pytest.mark.parametrize("name", ["resnet50", "resnext101_64x4d", "wider_resnet38"])
def test_deeplabv3(name):
    model = meta(models.segmenter, f"deeplabv3_{name}", 19)
    x = torch.empty(2, 3, 64, 96, device="meta")
    assert model(x)["out"].shape == (2, 19, 64, 96)
    assert model.backbone(x)["out"].shape[2:] == (8, 12)


def test_segmentation_models_of_torchvision():
    model = meta(models.segmenter, "lraspp_mobilenet_v3_large", 5)
    assert model(torch.empty(1, 3, 32, 32, device="meta"))["out"].shape == (1, 5, 32, 32)
    for name in ("resnet50", "deeplabv3_resnet18", "deeplabv3_vgg16"):
        with pytest.raises(SystemExit, match=rf"^--model: expected small, a segmentation .* got '{name}'"):
            models.segmenter(name, 5)


def test_a_classifiers_weights_start_a_backbone(tmp_path):
    torch.save(models.classifier("small", 10).state_dict(), tmp_path / "weights.pt")
    model = models.segmenter("small", 4, tmp_path / "weights.pt")
    assert torch.equal(model.backbone[0].weight, torch.load(tmp_path / "weights.pt")["backbone.0.weight"])
    torch.save(models.Small(10, per_pixel=False, width=8).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(SystemExit, match=r"^--backbone: .*weights.pt does not fit: 0.weight, 1.weight"):
        models.segmenter("small", 4, tmp_path / "weights.pt")


def trained(script, root, *more):
    """Train for two steps; return the scores, and the names in the state dict that was written."""
    common = (
        "--crop=32",
        "--batch-size=2",
        "--epochs=1",
        "--workers=0",
        "--device=cpu",
        "--activation=leaky_relu",
    )
    scores = script.main([str(root), f"--output={root / 'run'}", *common, *more])
    return scores, list(torch.load(root / "run" / "weights.pt", weights_only=True))


@pytest.mark.slow
def test_a_classifier_of_torchvision_trains(tmp_path):
    for split in ("train", "val"):
        tiny.class_folders(tmp_path, split, tiny.random_images(4, 40, 40), np.arange(4) % 2)
    sizes = "--resize=32", "--evaluation-crop=32", "--autocast=bfloat16"
    scores, names = trained(imagenet, tmp_path, "--model=resnet18", *sizes)
    assert 0 <= scores["top1"] <= scores["top5"] == 1
    assert names == list(meta(models.classifier, "resnet18", 2).state_dict())


@pytest.mark.slow
def test_a_segmentation_model_of_torchvision_trains(tmp_path):
    model = "lraspp_mobilenet_v3_large"
    for split in ("train", "val"):
        labels = tiny.random_labels([0, 7, 8, 11], 4, 40, 56)
        tiny.cityscapes(tmp_path, split, tiny.random_images(4, 40, 56), labels)
    scores, names = trained(segmentation, tmp_path, f"--model={model}", "--learning-rate=0.001")
    assert 0 <= scores["mean_iou"] <= scores["pixels"] < 1
    assert names == list(meta(models.segmenter, model, 19).state_dict())
