"""U-Net: an encoder and a decoder, whose features are concatenated at each level."""

from itertools import pairwise

from ..layers import Graph, MaxPool2d, ModuleList, Sequential, Upsample, concat, joined_array
from .blocks import Style
from .small import widths_of


class UNet(Graph):
    """A U-Net that classifies every pixel (Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597).

    Each level of the encoder has two convolutions with normalizations. Its result is pooled for the next
    level and concatenated with the upsampled result of the next level in the decoder. With an in-place
    strategy both results are written to slices of the concatenated array, which the next convolution keeps,
    so that no separate array is kept for either of them.

    Parameters
    ----------
    in_channels, num_classes : int
    widths : sequence of int
        Channels of the levels. H and W must be multiples of 2 ** (levels - 1).
    **style
        See `Style`: strategy, activation, activation_param, channel_axis, dtype, rng.

    Examples
    --------
    >>> import numpy as np
    >>> from inplace_abn import memory, models
    >>> def kept(strategy):
    ...     net = models.UNet(1, 2, widths=(16, 32, 64), strategy=strategy, rng=0)
    ...     with memory.ledger() as ledger:
    ...         z = net(np.zeros((1, 1, 32, 32), np.float32))
    ...     return ledger.kept
    >>> round(kept("inplace") / kept("standard"), 2)
    0.57
    """

    def __init__(self, in_channels, num_classes, widths=(16, 32, 64), **style):
        style, self.widths = Style(**style), tuple(widths_of(widths))
        self.channel_axis = style.channel_axis
        inputs = (in_channels, *self.widths)
        self.encode = ModuleList(_block(*sizes, style) for sizes in pairwise(inputs))
        self.pool = MaxPool2d(2, channel_axis=style.channel_axis)
        levels = list(pairwise(self.widths))
        self.up = ModuleList(_up(below, width, style) for width, below in levels)
        self.decode = ModuleList(_block(2 * width, width, style) for width, _ in levels)
        self.scores = style.conv(self.widths[0], num_classes, 1, bias=True)

    def compute(self, x):
        """Return the scores of every pixel."""
        self._check_size(x)
        shortcuts = []
        *levels, last = self.encode
        for encode, width in zip(levels, self.widths, strict=False):
            joined, (skip, below) = joined_array(x, (width, width), channel_axis=self.channel_axis)
            skip = encode(x, out=skip)
            shortcuts.append((joined, skip, below))
            x = self.pool(skip)
        x = last(x)
        for up, decode in zip(reversed(list(self.up)), reversed(list(self.decode)), strict=True):
            joined, skip, below = shortcuts.pop()
            below = up(x, out=below)
            x = decode(concat([skip, below], channel_axis=self.channel_axis, out=joined))
        return self.scores(x)

    def _check_size(self, x):
        if getattr(x, "ndim", None) != 4:
            return  # the first convolution raises the error
        factor = 2 ** (len(self.widths) - 1)
        height, width = x.shape[2:] if self.channel_axis == 1 else x.shape[1:3]
        if height % factor or width % factor:
            raise ValueError(
                f"x: height and width must be multiples of {factor} for {len(self.widths)} levels, got shape "
                f"{x.shape}; pad or crop the images"
            )


def _block(inputs, outputs, style):
    """Return two convolutions with normalizations."""
    return Sequential(
        {
            "conv1": style.conv(inputs, outputs, 3),
            "abn1": style.abn(outputs),
            "conv2": style.conv(outputs, outputs, 3),
            "abn2": style.abn(outputs),
        }
    )


def _up(inputs, outputs, style):
    """Return a 1 x 1 convolution, and interpolation to twice the size."""
    return Sequential(
        {
            "conv": style.conv(inputs, outputs, 1, bias=True),
            "up": Upsample(scale_factor=2, channel_axis=style.channel_axis),
        }
    )
