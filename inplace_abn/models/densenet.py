"""DenseNet, as in its paper."""

from ..layers import AvgPool2d, Graph, MaxPool2d, ModuleList, Sequential, concat, joined_array
from .blocks import Style


class DenseBlock(Graph):
    """Units that each take all features before them (Huang et al. 2017, https://arxiv.org/abs/1608.06993).

    All features are slices of one array, which the units keep instead of concatenated copies. The
    normalizations of features must not overwrite them. Their strategy is "standard" if `style` has that
    strategy, else "checkpoint".

    Parameters
    ----------
    channels : int
        Channels of the input.
    count : int
        Number of units.
    growth : int
        Channels that each unit adds.
    bottleneck : int
        Channels between the two convolutions of a unit, divided by `growth`.
    style : Style
    """

    def __init__(self, channels, count, growth, bottleneck, style):
        self.channels, self.growth, self.channel_axis = channels, growth, style.channel_axis
        self.units = ModuleList(
            _unit(channels + i * growth, growth, bottleneck * growth, style) for i in range(count)
        )

    def compute(self, x):
        """Return the input and the features of all units, concatenated."""
        widths = (self.channels, *[self.growth] * len(self.units))
        joined, parts = joined_array(x, widths, channel_axis=self.channel_axis)
        features = concat([x], channel_axis=self.channel_axis, out=parts[0])
        for i, unit in enumerate(self.units):
            new = unit(features, out=parts[i + 1])
            end = self.channels + (i + 1) * self.growth
            out = joined[:, :end] if self.channel_axis == 1 else joined[..., :end]
            features = concat([features, new], channel_axis=self.channel_axis, out=out)
        return features


def densenet(
    in_channels=3, num_classes=1000, blocks=(6, 12, 24, 16), *, growth=32, width=64, bottleneck=4, **style
):
    """Return a DenseNet, by default DenseNet-121. ``blocks=(6, 12, 64, 48)`` is DenseNet-264.

    Parameters
    ----------
    in_channels, num_classes : int
    blocks : sequence of int
        Number of units in each dense block.
    growth, bottleneck
        See `DenseBlock`.
    width : int
        Channels of the first convolution.
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
    >>> net = densenet(3, 10, (2, 2), growth=4, width=8, rng=0)
    >>> net(np.zeros((2, 3, 32, 32), np.float32)).shape
    (2, 10)
    """
    style = Style(**style)
    layers = {
        "conv": style.conv(in_channels, width, 7, stride=2),
        "abn": style.abn(width),
        "maxpool": MaxPool2d(3, 2, 1, channel_axis=style.channel_axis),
    }
    channels = width
    for number, count in enumerate(blocks, 1):
        layers[f"block{number}"] = DenseBlock(channels, count, growth, bottleneck, style)
        channels += count * growth
        if number < len(blocks):
            layers[f"transition{number}"] = Sequential(
                {
                    "abn": _abn_of_features(channels, style),
                    "conv": style.conv(channels, channels // 2, 1),
                    "pool": AvgPool2d(2, channel_axis=style.channel_axis),
                }
            )
            channels //= 2
    return Sequential(
        layers | {"last_abn": _abn_of_features(channels, style)} | style.scores(channels, num_classes)
    )


def _abn_of_features(channels, style):
    """Return a normalization that keeps its input: the features, which other layers keep in any case."""
    abn = style.abn(channels)
    if style.strategy != "standard":
        abn.strategy = "checkpoint"
    return abn


def _unit(channels, growth, middle, style):
    """Return a unit of a dense block: a 1 x 1 and a 3 x 3 convolution, each after a normalization."""
    return Sequential(
        {
            "abn1": _abn_of_features(channels, style),
            "conv1": style.conv(channels, middle, 1),
            "abn2": style.abn(middle),
            "conv2": style.conv(middle, growth, 3),
        }
    )
