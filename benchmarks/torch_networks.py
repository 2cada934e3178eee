"""Networks of torchvision with random weights, and their training on one batch."""

from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from inplace_abn.torch import convert

FORMATS = {"channels-first": torch.contiguous_format, "channels-last": torch.channels_last}
CLASSES = 1000


def import_torchvision():
    """Import torchvision without the fake forms of its compiled operators.

    Its wheels are built for another build of PyTorch than that for CPUs: the operators do not load, and
    registering their fake forms fails. The models do not need them.
    """
    original = torch.library.register_fake

    def register_fake(name, *args, **kwargs):
        if isinstance(name, str) and name.startswith("torchvision::"):
            return lambda function: function
        return original(name, *args, **kwargs)

    torch.library.register_fake = register_fake
    try:
        import torchvision
    finally:
        torch.library.register_fake = original
    return torchvision


def vision(name, **options):
    """Return a model of torchvision with the random weights of seed 0."""
    torch.manual_seed(0)
    return getattr(import_torchvision().models, name)(weights=None, num_classes=CLASSES, **options)


def with_activation(model, make):
    """Return the model with ``make()`` in place of each ReLU."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, make())
    return model


def leaky_relu():
    """Return the leaky ReLU of the paper."""
    return nn.LeakyReLU(0.01, inplace=True)


def _small_images():
    """Return ResNet-18 for images of 32 x 32: a first convolution of 3 x 3 with stride 1, and no pooling."""
    model = vision("resnet18")
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return model


class Network(NamedTuple):
    """How a network of the tables is made. `options` are those of `convert`."""

    make: object
    options: MappingProxyType = MappingProxyType({})
    size: int = 224


#: By the names of `benchmarks.torch_tables.NAMES`.
NETWORKS = {
    "resnet50": Network(lambda: vision("resnet50")),
    "resnet50-leaky-relu": Network(lambda: with_activation(vision("resnet50"), leaky_relu)),
    "resnet50-silu": Network(lambda: with_activation(vision("resnet50"), lambda: nn.SiLU(inplace=True))),
    "mobilenet-v2": Network(lambda: vision("mobilenet_v2")),
    "regnet-y-400mf": Network(lambda: vision("regnet_y_400mf")),
    "efficientnet-b0": Network(lambda: vision("efficientnet_b0")),
    "mobilenet-v3-large": Network(lambda: vision("mobilenet_v3_large")),
    "densenet121": Network(lambda: vision("densenet121")),
    "resnet50-recompute": Network(
        lambda: vision("resnet50"), {"recompute_stem": True, "recompute_projections": True}
    ),
    "resnet18-32": Network(_small_images, size=32),
}


def make(network, who):
    """Return a network of `NETWORKS`: "original", as it is, or "converted"."""
    row = NETWORKS[network]
    return convert(row.make(), **row.options) if who == "converted" else row.make()


class Training:
    """A model with its optimizer and one batch."""

    def __init__(self, model, memory_format, images, size, device="cpu"):
        self.device = device
        self.model = model.to(device).to(memory_format=memory_format).train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self.x = torch.randn(images, 3, size, size, device=device).contiguous(memory_format=memory_format)
        self.labels = torch.randint(CLASSES, (images,), device=device)

    def forward(self):
        """Return the loss."""
        return F.cross_entropy(self.model(self.x), self.labels)

    def step(self):
        """Run one training step."""
        self.optimizer.zero_grad(set_to_none=True)
        self.forward().backward()
        self.optimizer.step()
