"""ResNet and MobileNetV2, as in their papers."""

from functools import partial

from .._arguments import choice, integer
from ..layers import MaxPool2d, Recompute, Sequential
from .blocks import Style, inverted_residual, postactivation_block

#: block -> (channels of the result / channels in the middle, kernel sizes of the convolutions)
RESNET_BLOCKS = {"bottleneck": (4, (1, 3, 1)), "basic": (1, (3, 3))}

#: The stages of MobileNetV2: expansion, channels, number of blocks, stride of the first block.
STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip


def resnet(
    in_channels, num_classes, blocks=(3, 4, 6, 3), *, block="bottleneck", width=64, recompute_stem=False,
    **style,
):  # fmt: skip
    """Return a residual network (He et al. 2016, https://arxiv.org/abs/1512.03385), by default ResNet-50.

    With ``block="basic"`` it is ResNet-34. The stride of a block is applied by its 3 x 3 convolution. With an
    in-place strategy the network keeps the inputs of the convolutions, each once, the result of the first
    normalization, one byte per value of the pooling, and the results of the projections. With
    `recompute_stem` it does not keep the result of the first normalization, which is the largest array.

    Parameters
    ----------
    in_channels, num_classes : int
    blocks : sequence of int
        Number of blocks in each stage.
    block : {"bottleneck", "basic"}
        1 x 1, 3 x 3 and 1 x 1 convolutions, the last one with four times the channels; or two 3 x 3
        convolutions.
    width : int
        Channels of the first convolution; doubled in each stage after the first.
    recompute_stem : bool
        True: the first convolution, normalization and pooling keep only their input, the images, and run
        again in the backward. See `inplace_abn.layers.Recompute`.
    **style
        See `Style`: strategy, activation, activation_param, channel_axis, dtype, rng.

    Returns
    -------
    Sequential
        Takes (N, in_channels, H, W), returns scores (N, num_classes).

    Examples
    --------
    >>> import numpy as np
    >>> net = resnet(3, 10, blocks=(1, 1), width=4, rng=0)
    >>> net(np.zeros((2, 3, 32, 32), np.float32)).shape
    (2, 10)
    """
    expansion, kernel_sizes = RESNET_BLOCKS[choice("block", block, RESNET_BLOCKS)]
    style, width = Style(**style), integer("width", width, least=1)
    stem = {
        "conv": style.conv(in_channels, width, 7, stride=2),
        "abn": style.abn(width),
        "maxpool": MaxPool2d(3, 2, 1, channel_axis=style.channel_axis),
    }
    layers, channels = {"stem": Recompute(stem) if recompute_stem else Sequential(stem)}, width
    for stage, count in enumerate(blocks):
        middle = width * 2**stage
        make = partial(postactivation_block, kernel_sizes=kernel_sizes, style=style, middle=middle)
        strides = [2 if stage > 0 and i == 0 else 1 for i in range(integer("blocks", count, least=1))]
        parts = []
        for stride in strides:
            parts.append(make(channels, expansion * middle, stride))
            channels = expansion * middle
        layers[f"stage{stage + 1}"] = Sequential(*parts)
    return Sequential(layers | style.scores(channels, num_classes))


def mobilenet_v2(in_channels, num_classes, *, width=1.0, stages=STAGES, **style):
    """Return MobileNetV2 (Sandler et al. 2018, https://arxiv.org/abs/1801.04381), without dropout.

    Parameters
    ----------
    in_channels, num_classes : int
    width : float
        Factor of the numbers of channels, which are rounded to multiples of 8.
    stages : sequence of (int, int, int, int)
        Expansion, channels, number of blocks and stride of the first block, for each stage.
    **style
        See `Style`: strategy, activation, activation_param, channel_axis, dtype, rng.

    Returns
    -------
    Sequential
        Takes (N, in_channels, H, W), returns scores (N, num_classes).

    Examples
    --------
    >>> import numpy as np
    >>> net = mobilenet_v2(3, 10, width=0.25, stages=((1, 16, 1, 1), (6, 24, 2, 2)), rng=0)
    >>> net(np.zeros((2, 3, 32, 32), np.float32)).shape
    (2, 10)
    """
    style, channels = Style(**style), _rounded(32 * width)
    layers = {"stem": style.conv(in_channels, channels, 3, stride=2), "abn": style.abn(channels)}
    for stage, (expansion, features, count, stride) in enumerate(stages, 1):
        parts, features = [], _rounded(features * width)
        for i in range(count):
            parts.append(inverted_residual(channels, features, stride if i == 0 else 1, expansion, style))
            channels = features
        layers[f"stage{stage}"] = Sequential(*parts)
    last = _rounded(1280 * max(1.0, width))
    layers |= {"head": style.conv(channels, last, 1), "head_abn": style.abn(last)}
    return Sequential(layers | style.scores(last, num_classes))


def _rounded(channels):
    """Return the nearest multiple of 8 that is at least 0.9 * channels, and at least 8."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8
