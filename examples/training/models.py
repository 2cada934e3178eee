"""Models by name: those of torchvision and timm, DeepLabV3 over torchvision's, and a small one."""

import importlib
import re

import torch
from torch import nn
from torch.nn import functional

from inplace_abn.torch import convert

from .wider_resnet import WiderResNet38

#: The weight of the auxiliary classifier of torchvision's segmentation models in the loss.
AUXILIARY = 0.4


def classifier(name, classes):
    """Return a model for images (N, 3, H, W) with random weights; its result is (N, classes).

    `name` is "small", "wider_resnet38", "resnext152_64x4d", a model of torchvision or one of timm;
    "timm/NAME" if both have it.
    """
    if name in _OWN:
        return _OWN[name](classes)
    vision = _imported("torchvision")
    if vision is not None and (name == RESNEXT152 or name in vision.models.list_models(vision.models)):
        return _torchvision_classifier(vision, name, num_classes=classes)
    timm = _imported("timm")
    if timm is not None and timm.is_model(name.removeprefix("timm/")):
        return timm.create_model(name.removeprefix("timm/"), num_classes=classes)
    raise SystemExit(f"--model: neither torchvision nor timm has {name!r}, as far as they are installed")


def segmenter(name, classes, backbone_weights=None):
    """Return a model for images (N, 3, H, W) with random weights; `scores` takes the result apart.

    Parameters
    ----------
    name : str
        "small", a segmentation model of torchvision, or "deeplabv3_" and "wider_resnet38" or a ResNet of
        `classifier` with bottlenecks, from 50 layers on.
    classes : int
    backbone_weights : Path, optional
        A state dict for the backbone, such as weights.pt of imagenet.py; its classifier is not used.
    """
    if name == "small":
        model = Small(classes, per_pixel=True)
    else:
        vision = _imported("torchvision")
        if vision is None:
            raise SystemExit(f"--model: {name!r} needs torchvision")
        if name in vision.models.list_models(vision.models.segmentation):
            model = vision.models.get_model(name, weights=None, weights_backbone=None, num_classes=classes)
        else:
            model = _deeplabv3(vision, name, classes)
    if backbone_weights is not None:
        _load_backbone(model, backbone_weights)
    return model


def converted(model, options):
    """Convert a model as the options say; return it."""
    try:
        return convert(
            model, activation=options.activation, recompute_stem=options.recompute_stem,
            recompute_projections=options.recompute_projections,
        )  # fmt: skip
    except ValueError as error:
        raise SystemExit(f"--activation: {error}") from error


def scores(result, size):
    """Return (scores, weight) of each classifier in a segmentation model's result, at the labels' size."""
    pairs = [(result, 1.0)]
    if isinstance(result, dict):
        pairs = [(result[key], weight) for key, weight in (("out", 1.0), ("aux", AUXILIARY)) if key in result]
    return [
        (value if value.shape[-2:] == size else functional.interpolate(value, size, mode="bilinear"), weight)
        for value, weight in pairs
    ]


class Small(nn.Module):
    """A small residual network for small images; with `per_pixel` it keeps their size."""

    def __init__(self, classes, per_pixel, width=32):
        super().__init__()
        self.backbone = nn.Sequential(
            *_convolution(3, width, 1), _Block(width), *_convolution(width, width, 1 if per_pixel else 2),
            _Block(width, dilation=2), _Block(width, dilation=4 if per_pixel else 1),
        )  # fmt: skip
        self.pool = nn.Identity() if per_pixel else nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, x):
        """Return scores: (N, classes, H, W) per pixel, otherwise (N, classes)."""
        x = self.classifier(self.dropout(self.pool(self.backbone(x))))
        return x if isinstance(self.pool, nn.Identity) else x.flatten(1)


class _Block(nn.Module):
    def __init__(self, width, dilation=1):
        super().__init__()
        first, last = _convolution(width, width, 1, dilation), _convolution(width, width, 1)
        self.body = nn.Sequential(*first, *last[:2])
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.body(x) + x)


def _convolution(inputs, outputs, stride, dilation=1):
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=dilation, dilation=dilation, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU()


#: Classifiers that neither torchvision nor timm have.
_OWN = {"small": lambda classes: Small(classes, per_pixel=False), "wider_resnet38": WiderResNet38}
RESNEXT152 = "resnext152_64x4d"


def _imported(name):
    """Return a package, or None if it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return None


def _torchvision_classifier(vision, name, **options):
    if name == RESNEXT152:  # from the classes of which torchvision makes ResNeXt-101
        resnet = vision.models.resnet
        return resnet.ResNet(resnet.Bottleneck, [3, 8, 36, 3], groups=64, width_per_group=4, **options)
    if name in ("googlenet", "inception_v3"):  # with auxiliary ones they have several results
        options |= {"aux_logits": False, "init_weights": True}
    return vision.models.get_model(name, weights=None, **options)


def _deeplabv3(vision, name, classes):
    """Return DeepLabV3 (Chen et al. 2017, https://arxiv.org/abs/1706.05587), features at 1/8 of the size."""
    backbone = name.removeprefix("deeplabv3_")
    if backbone == "wider_resnet38":
        dilated = WiderResNet38(1, dilated=True)
        body, last = dilated.backbone, "relu"
    elif re.fullmatch(r"deeplabv3_(wide_)?resnex?t(50|101|152)\w*", name):
        body = dilated = _torchvision_classifier(
            vision, backbone, replace_stride_with_dilation=[False, True, True]
        )
        last = "layer4"
    else:
        raise SystemExit(
            "--model: expected small, a segmentation model of torchvision, or deeplabv3_ and wider_resnet38 "
            f"or a ResNet with bottlenecks, such as deeplabv3_resnext101_64x4d, got {name!r}"
        )
    features = vision.models._utils.IntermediateLayerGetter(body, {last: "out"})
    head = vision.models.segmentation.deeplabv3.DeepLabHead(dilated.fc.in_features, classes)
    return vision.models.segmentation.DeepLabV3(features, head)


def _load_backbone(model, path):
    state = torch.load(path, map_location="cpu", weights_only=True)
    state = {key.removeprefix("backbone."): value for key, value in state.items()}
    own = model.backbone.state_dict()
    missing = [key for key in own if key not in state]
    different = [key for key in own if key in state and own[key].shape != state[key].shape]
    if missing or different:
        raise SystemExit(f"--backbone: {path} does not fit: {', '.join((missing + different)[:5])}")
    model.backbone.load_state_dict({key: state[key] for key in own})
