"""Networks for the classification of images or of pixels: those of the paper, and small ones.

>>> import numpy as np
>>> from inplace_abn import layers, models
>>> net = models.residual_network(1, 10, widths=(8, 16), rng=0)
>>> net(np.zeros((2, 1, 32, 32), np.float32)).shape
(2, 10)
>>> net = models.encoder_decoder(1, 11, widths=(8, 16), rng=0)
>>> net(np.zeros((2, 1, 32, 32), np.float32)).shape
(2, 11, 32, 32)
>>> net = models.resnet(3, 10, width=4, rng=0)
>>> sum(isinstance(layer, layers.Conv2d) for _, layer in net.named_layers())
53

All normalizations of a network have the same `strategy`. The initial weights depend on `rng` alone. The
building blocks are `preactivation_block`, `postactivation_block` and `inverted_residual`.
"""

from .blocks import Style, inverted_residual, postactivation_block, preactivation_block
from .deeplab import deeplabv3
from .densenet import DenseBlock, densenet
from .mobilenet import mobilenet_v2
from .resnet import resnet, resnet34, resnet50, resnet101, resnet152, resnext101, resnext152
from .small import encoder_decoder, residual_network
from .unet import UNet
from .wider_resnet import wider_resnet

__all__ = [
    "DenseBlock",
    "Style",
    "UNet",
    "deeplabv3",
    "densenet",
    "encoder_decoder",
    "inverted_residual",
    "mobilenet_v2",
    "postactivation_block",
    "preactivation_block",
    "residual_network",
    "resnet",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext101",
    "resnext152",
    "wider_resnet",
]
