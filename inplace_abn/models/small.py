"""Small residual networks that classify images or pixels."""

from .._arguments import choice, integer
from ..layers import Residual, Sequential, Upsample
from .blocks import Style, postactivation_block, preactivation_block

BLOCKS = {"preactivation": preactivation_block, "postactivation": postactivation_block}


def residual_network(
    in_channels, num_classes, widths=(16, 32, 64), blocks=2, *, block="preactivation", **style
):
    """Return a residual network that classifies images.

    A convolution, a stage of blocks for each width, the mean over the pixels, and a fully connected layer.
    All stages except the first one start with a stride of 2.

    Parameters
    ----------
    in_channels, num_classes : int
    widths : sequence of int
        Channels of the stages.
    blocks : int
        Number of blocks in each stage.
    block : {"preactivation", "postactivation"}
        See `preactivation_block` and `postactivation_block`.
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
    >>> net = residual_network(1, 10, widths=(8, 16), rng=0)
    >>> net(np.zeros((2, 1, 32, 32), np.float32)).shape
    (2, 10)
    """
    make, style = BLOCKS[choice("block", block, BLOCKS)], Style(**style)
    blocks, widths = integer("blocks", blocks, least=1), widths_of(widths)
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
    return Sequential(layers | style.scores(channels, num_classes))


def encoder_decoder(in_channels, num_classes, widths=(16, 32, 64), **style):
    """Return a network that classifies every pixel: an encoder and a decoder, with shortcuts between them.

    Each level consists of a `preactivation_block`, the next smaller level with an identity shortcut, and
    another block. The decoder interpolates after the convolution that reduces the channels, so that the
    convolution keeps its input at the small size.

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
        Takes (N, in_channels, H, W), returns scores (N, num_classes, H, W).

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above.

    Examples
    --------
    >>> import numpy as np
    >>> net = encoder_decoder(1, 11, widths=(8, 16), rng=0)
    >>> net(np.zeros((2, 1, 32, 32), np.float32)).shape
    (2, 11, 32, 32)
    """
    style, widths = Style(**style), widths_of(widths)
    return Sequential(
        {
            "stem": style.conv(in_channels, widths[0], 3),
            "body": _level(widths, style),
            "abn": style.abn(widths[0]),
            "scores": style.conv(widths[0], num_classes, 1, bias=True),
        }
    )


def _level(widths, style):
    """Return a level of `encoder_decoder` with all smaller levels inside."""
    width, *smaller = widths
    if not smaller:
        return preactivation_block(width, width, style=style)
    branch = {
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
            "across": Residual(Sequential(branch)),
            "decode": preactivation_block(width, width, style=style),
        }
    )


def widths_of(widths):
    """Check the numbers of channels; return them as a list."""
    widths = [integer("widths", width, least=1) for width in widths]
    if not widths:
        raise ValueError("widths must have at least one number of channels, got none")
    return widths
