"""WiderResNet-38, the network of the paper's segmentation experiments."""

from ..layers import MaxPool2d, Sequential
from .blocks import Style, preactivation_block

#: Channels of the convolutions of a block, by stage. The first two stages begin with a pooling.
WIDTHS = (
    (128, 128), (256, 256), (512, 512), (512, 1024), (512, 1024, 2048), (1024, 2048, 4096),
)  # fmt: skip
KERNEL_SIZES = {2: (3, 3), 3: (1, 3, 1)}


def wider_resnet(
    in_channels=3, num_classes=1000, blocks=(3, 3, 6, 3, 1, 1), *, width=1.0, output_stride=32, **style
):
    """Return WiderResNet-38 (Wu et al. 2016, https://arxiv.org/abs/1611.10080).

    A 3 x 3 convolution and six stages of pre-activation blocks; the first two stages follow a pooling, the
    last two have bottlenecks.

    Parameters
    ----------
    in_channels, num_classes : int
    blocks : sequence of int
        Number of blocks in each stage.
    width : float
        Factor of all numbers of channels.
    output_stride : {32, 8}
        Height of the images / height of the last features. 8 replaces the strides of the fourth and the fifth
        stage by dilations, for segmentation.
    **style
        See `Style`: strategy, activation, activation_param, channel_axis, dtype, rng.

    Returns
    -------
    Sequential
        Takes (N, in_channels, H, W), returns scores (N, num_classes).

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above.

    Examples
    --------
    >>> import numpy as np
    >>> net = wider_resnet(3, 10, (1,) * 6, width=1 / 32, rng=0)
    >>> net(np.zeros((2, 3, 64, 64), np.float32)).shape
    (2, 10)
    """
    style = Style(**style)
    layers, channels = wider_resnet_features(style, in_channels, blocks, width, output_stride)
    return Sequential(layers | style.scores(channels, num_classes))


def wider_resnet_features(style, in_channels, blocks=(3, 3, 6, 3, 1, 1), width=1.0, output_stride=32):
    """Return the layers of `wider_resnet` before its scores, by name, and the channels of its result."""
    if output_stride not in (32, 8):
        raise ValueError(f"output_stride must be 32 or 8, got {output_stride!r}")
    channels = _scaled(64, width)
    layers = {"stem": style.conv(in_channels, channels, 3)}
    for stage, (count, widths) in enumerate(zip(blocks, WIDTHS, strict=True)):
        if stage < 2:
            layers[f"pool{stage + 1}"] = MaxPool2d(3, 2, 1, channel_axis=style.channel_axis)
        widths = [_scaled(size, width) for size in widths]
        stride, dilation = _stride_and_dilation(stage, output_stride)
        parts = []
        for i in range(count):
            parts.append(
                preactivation_block(
                    channels,
                    widths[-1],
                    stride if i == 0 else 1,
                    KERNEL_SIZES[len(widths)],
                    style,
                    widths=widths[:-1],
                    dilation=dilation,
                )
            )
            channels = widths[-1]
        layers[f"stage{stage + 1}"] = Sequential(*parts)
    return layers | {"abn": style.abn(channels)}, channels


def _stride_and_dilation(stage, output_stride):
    """Return stride and dilation of the first block of a stage."""
    if output_stride == 32:
        return (2 if stage in (2, 3, 4) else 1), 1
    return (2 if stage == 2 else 1), {3: 2, 4: 4, 5: 4}.get(stage, 1)


def _scaled(channels, width):
    return max(1, round(channels * width))
