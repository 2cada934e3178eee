"""ResNet and ResNeXt, as in their papers."""

from .._arguments import choice, integer
from ..layers import MaxPool2d, Recompute, Sequential
from .blocks import Style, postactivation_block

#: block -> (channels of the result / channels in the middle, kernel sizes of the convolutions)
RESNET_BLOCKS = {"bottleneck": (4, (1, 3, 1)), "basic": (1, (3, 3))}


def resnet(
    in_channels, num_classes, blocks=(3, 4, 6, 3), *, block="bottleneck", width=64, groups=1,
    group_width=None, output_stride=32, recompute_stem=False, **style,
):  # fmt: skip
    """Return a residual network (He et al. 2016, https://arxiv.org/abs/1512.03385), by default ResNet-50.

    With ``block="basic"`` it is ResNet-34, with ``blocks=(3, 4, 23, 3)`` ResNet-101, with `groups` ResNeXt
    (Xie et al. 2017, https://arxiv.org/abs/1611.05431); see `resnet34` and the others. The stride of a block
    is applied by its 3 x 3 convolution. With an in-place strategy the network keeps the inputs of the
    convolutions, each once, the result of the first normalization, one byte per value of the pooling, and the
    results of the projections. With `recompute_stem` it does not keep the result of the first normalization,
    which is the largest array.

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
    groups : int
        Groups of the 3 x 3 convolutions of bottlenecks.
    group_width : int, optional
        Channels of each group in the first stage; doubled in each stage after it. Default: width / groups.
    output_stride : {32, 16, 8}
        Height of the images / height of the last features. 16 and 8 replace the strides of the last stages by
        dilations, for segmentation.
    recompute_stem : bool
        True: the first convolution, normalization and pooling keep only their input, the images, and run
        again in the backward. See `inplace_abn.layers.Recompute`.
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
    >>> net = resnet(3, 10, blocks=(1, 1), width=4, rng=0)
    >>> net(np.zeros((2, 3, 32, 32), np.float32)).shape
    (2, 10)
    """
    style = Style(**style)
    layers, channels = resnet_features(
        style, in_channels, blocks, block=block, width=width, groups=groups, group_width=group_width,
        output_stride=output_stride, recompute_stem=recompute_stem,
    )  # fmt: skip
    return Sequential(layers | style.scores(channels, num_classes))


def resnet_features(
    style, in_channels, blocks=(3, 4, 6, 3), *, block="bottleneck", width=64, groups=1, group_width=None,
    output_stride=32, recompute_stem=False,
):  # fmt: skip
    """Return the layers of `resnet` before its scores, by name, and the channels of their result."""
    expansion, kernel_sizes = RESNET_BLOCKS[choice("block", block, RESNET_BLOCKS)]
    width, groups = integer("width", width, least=1), integer("groups", groups, least=1)
    if block == "basic" and (groups, group_width) != (1, None):
        raise ValueError(f"groups: expected 1 for block 'basic', got {groups} and {group_width=}")
    inner = width if group_width is None else groups * integer("group_width", group_width, least=1)
    stem = {
        "conv": style.conv(in_channels, width, 7, stride=2),
        "abn": style.abn(width),
        "maxpool": MaxPool2d(3, 2, 1, channel_axis=style.channel_axis),
    }
    layers, channels = {"stem": Recompute(stem) if recompute_stem else Sequential(stem)}, width
    for stage, (count, (stride, dilations)) in enumerate(
        zip(blocks, strides_of_stages(len(blocks), output_stride), strict=True)
    ):
        outputs, parts = expansion * width * 2**stage, []
        for i in range(integer("blocks", count, least=1)):
            parts.append(
                postactivation_block(
                    channels,
                    outputs,
                    stride if i == 0 else 1,
                    kernel_sizes,
                    style,
                    middle=inner * 2**stage,
                    groups=groups,
                    dilation=dilations[min(i, 1)],
                )
            )
            channels = outputs
        layers[f"stage{stage + 1}"] = Sequential(*parts)
    return layers, channels


def strides_of_stages(count, output_stride):
    """Return (stride, (dilation of the first block, dilation of the others)) for each stage.

    A stage whose stride would exceed the output stride has stride 1. Its stride multiplies the dilation of
    all later blocks instead.

    >>> strides_of_stages(4, 8)
    [(1, (1, 1)), (2, (1, 1)), (1, (1, 2)), (1, (2, 4))]
    """
    reached, dilation, stages = 4, 1, []
    for stage in range(count):
        stride = 1 if stage == 0 else 2
        if reached * stride > choice("output_stride", output_stride, (32, 16, 8)):
            stages.append((1, (dilation, dilation * stride)))
            dilation *= stride
        else:
            reached *= stride
            stages.append((stride, (dilation, dilation)))
    return stages


def resnet34(in_channels=3, num_classes=1000, **options):
    """Return ResNet-34: `resnet` of basic blocks; `options` are its other arguments."""
    return resnet(in_channels, num_classes, (3, 4, 6, 3), block="basic", **options)


def resnet50(in_channels=3, num_classes=1000, **options):
    """Return ResNet-50: `resnet` with its defaults; `options` are its other arguments."""
    return resnet(in_channels, num_classes, (3, 4, 6, 3), **options)


def resnet101(in_channels=3, num_classes=1000, **options):
    """Return ResNet-101: `resnet` with 23 blocks in the third stage; `options` are its other arguments."""
    return resnet(in_channels, num_classes, (3, 4, 23, 3), **options)


def resnet152(in_channels=3, num_classes=1000, **options):
    """Return ResNet-152: `resnet` with 8 and 36 blocks in two stages; `options` are its other arguments."""
    return resnet(in_channels, num_classes, (3, 8, 36, 3), **options)


def resnext101(in_channels=3, num_classes=1000, *, groups=64, group_width=4, **options):
    """Return ResNeXt-101 64x4d; ``groups=32, group_width=8`` for 32x8d; `options` as for `resnet`."""
    return resnet(in_channels, num_classes, (3, 4, 23, 3), groups=groups, group_width=group_width, **options)


def resnext152(in_channels=3, num_classes=1000, *, groups=64, group_width=4, **options):
    """Return ResNeXt-152 64x4d; `options` as for `resnet`."""
    return resnet(in_channels, num_classes, (3, 8, 36, 3), groups=groups, group_width=group_width, **options)
