"""MobileNetV2, as in its paper."""

from ..layers import Sequential
from .blocks import Style, inverted_residual

#: The stages of MobileNetV2: expansion, channels, number of blocks, stride of the first block.
STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip


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

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above.

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
