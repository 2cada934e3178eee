"""Small residual networks: for classes of images, and for classes of pixels.

>>> import numpy as np
>>> from inplace_abn import models
>>> net = models.residual_network(1, 10, widths=(8, 16), rng=0)
>>> net(np.zeros((2, 1, 32, 32), np.float32)).shape
(2, 10)
>>> net = models.encoder_decoder(1, 11, widths=(8, 16), rng=0)
>>> net(np.zeros((2, 1, 32, 32), np.float32)).shape
(2, 11, 32, 32)

All normalizations follow `strategy`; from the same `rng` the networks start with the same weights, whatever
the strategy. The blocks to build others from are `preactivation_block` and `postactivation_block`.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from .layers import ABN, Activation, Conv2d, GlobalAvgPool2d, Linear, Residual, Sequential, Upsample
from .layers.checks import choice, whole

__all__ = ["Style", "encoder_decoder", "postactivation_block", "preactivation_block", "residual_network"]


@dataclass(frozen=True)
class Style:
    """What all layers of a network have in common.

    Parameters
    ----------
    strategy, activation, activation_param
        Of `inplace_abn.layers.ABN`.
    channel_axis : {1, -1}
    dtype : {float32, float64}
    rng : numpy.random.Generator or int, optional
        Draws the weights, one layer after the other.
    """

    strategy: str = "inplace"
    activation: str = "leaky_relu"
    activation_param: float = 0.01
    channel_axis: int = 1
    dtype: type = np.float32
    rng: np.random.Generator = field(default=None)

    def __post_init__(self):
        object.__setattr__(self, "rng", np.random.default_rng(self.rng))

    def abn(self, features):
        """Return a normalization with activation."""
        return ABN(
            features, activation=self.activation, activation_param=self.activation_param,
            strategy=self.strategy, channel_axis=self.channel_axis, dtype=self.dtype,
        )  # fmt: skip

    def norm(self, features):
        """Return a normalization without activation."""
        return replace(self, activation="identity").abn(features)

    def conv(self, inputs, outputs, kernel_size, stride=1, bias=False):
        """Return a convolution that keeps the size of the image, but for the stride."""
        return Conv2d(
            inputs, outputs, kernel_size, stride, padding=kernel_size // 2, bias=bias,
            channel_axis=self.channel_axis, dtype=self.dtype, rng=self.rng,
        )  # fmt: skip


def preactivation_block(inputs, outputs, stride=1, kernel_sizes=(3, 3), style=None):
    """Return a residual block of normalizations, each before its convolution, around an identity mapping.

    Per convolution it keeps two arrays with the strategy "standard", one with all others. Where the shape
    changes, the shortcut is a convolution of 1 x 1, of what the first normalization gives.

    Parameters
    ----------
    inputs, outputs : int
        Channels.
    stride : int
        Of the first convolution.
    kernel_sizes : tuple of int
        One for each convolution.
    style : Style, optional

    Returns
    -------
    Residual
    """
    style = Style() if style is None else style
    layers, channels = {}, inputs
    for i, kernel_size in enumerate(kernel_sizes, 1):
        layers[f"abn{i}"] = style.abn(channels)
        layers[f"conv{i}"] = style.conv(channels, outputs, kernel_size, stride if i == 1 else 1)
        channels = outputs
    if inputs == outputs and stride == 1:
        return Residual(Sequential(layers))
    first = layers.pop("abn1")
    return Residual(Sequential(layers), style.conv(inputs, outputs, 1, stride), preactivation=first)


def postactivation_block(inputs, outputs, stride=1, kernel_sizes=(3, 3), style=None):
    """Return a residual block of convolutions, each before its normalization, with an activation of the sum.

    The activation works in place on the sum. Where the shape changes, the shortcut is a convolution of 1 x 1
    with a normalization.

    Parameters
    ----------
    inputs, outputs, stride, kernel_sizes, style
        As for `preactivation_block`.

    Returns
    -------
    Residual
    """
    style = Style() if style is None else style
    layers, channels = {}, inputs
    for i, kernel_size in enumerate(kernel_sizes, 1):
        layers[f"conv{i}"] = style.conv(channels, outputs, kernel_size, stride if i == 1 else 1)
        layers[f"abn{i}"] = style.norm(outputs) if i == len(kernel_sizes) else style.abn(outputs)
        channels = outputs
    shortcut = None
    if inputs != outputs or stride != 1:
        shortcut = Sequential({"conv": style.conv(inputs, outputs, 1, stride), "abn": style.norm(outputs)})
    activation = Activation(style.activation, style.activation_param, inplace=True)
    return Residual(Sequential(layers), shortcut, activation=activation)


BLOCKS = {"preactivation": preactivation_block, "postactivation": postactivation_block}


def residual_network(
    in_channels, num_classes, widths=(16, 32, 64), blocks=2, *, block="preactivation", **style
):
    """Return a residual network that classifies images.

    A convolution, a stage of blocks for each width, each but the first beginning with a stride of 2, the mean
    over the pixels, and a fully connected layer.

    Parameters
    ----------
    in_channels, num_classes : int
    widths : sequence of int
        Channels of the stages.
    blocks : int
        In each stage.
    block : {"preactivation", "postactivation"}
    **style
        See `Style`: strategy, activation, activation_param, channel_axis, dtype, rng.

    Returns
    -------
    Sequential
        Takes (N, in_channels, H, W), gives scores (N, num_classes).
    """
    make, style = BLOCKS[choice("block", block, BLOCKS)], Style(**style)
    blocks, widths = whole("blocks", blocks, least=1), _widths(widths)
    layers = {"stem": style.conv(in_channels, widths[0], 3)}
    if make is postactivation_block:
        layers["abn"] = style.abn(widths[0])
    channels = widths[0]
    for stage, width in enumerate(widths):
        parts = []
        for i in range(blocks):
            parts.append(make(channels, width, 2 if stage > 0 and i == 0 else 1, style=style))
            channels = width
        layers[f"stage{stage + 1}"] = Sequential(*parts)
    if make is preactivation_block:
        layers["abn"] = style.abn(channels)
    layers["pool"] = GlobalAvgPool2d(channel_axis=style.channel_axis)
    layers["scores"] = Linear(channels, num_classes, dtype=style.dtype, rng=style.rng)
    return Sequential(layers)


def encoder_decoder(in_channels, num_classes, widths=(16, 32, 64), **style):
    """Return a network that classifies every pixel: down to smaller images and back, with shortcuts across.

    Every level is a `preactivation_block`, a way through the next smaller level with an identity shortcut
    around it, and another block. Up again leads bilinear interpolation, after a convolution that so keeps its
    input at the small size.

    Parameters
    ----------
    in_channels, num_classes : int
    widths : sequence of int
        Channels of the levels. H and W must be multiples of 2 ** (levels - 1).
    **style
        See `Style`: strategy, activation, activation_param, channel_axis, dtype, rng.

    Returns
    -------
    Sequential
        Takes (N, in_channels, H, W), gives scores (N, num_classes, H, W).
    """
    style, widths = Style(**style), _widths(widths)
    return Sequential(
        {
            "stem": style.conv(in_channels, widths[0], 3),
            "body": _level(widths, style),
            "abn": style.abn(widths[0]),
            "scores": style.conv(widths[0], num_classes, 1, bias=True),
        }
    )


def _level(widths, style):
    width, *smaller = widths
    if not smaller:
        return preactivation_block(width, width, style=style)
    way = {
        "abn1": style.abn(width),
        "down": style.conv(width, smaller[0], 3, stride=2),
        "level": _level(smaller, style),
        "abn2": style.abn(smaller[0]),
        "conv": style.conv(smaller[0], width, 1),
        "up": Upsample(scale_factor=2, channel_axis=style.channel_axis),
    }
    return Sequential(
        {
            "encode": preactivation_block(width, width, style=style),
            "across": Residual(Sequential(way)),
            "decode": preactivation_block(width, width, style=style),
        }
    )


def _widths(widths):
    widths = [whole("widths", width, least=1) for width in widths]
    if not widths:
        raise ValueError("widths must be at least one number of channels, got none")
    return widths
