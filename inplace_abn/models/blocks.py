"""Building blocks of networks, and the options that all layers of a network share."""

from dataclasses import dataclass, field, replace

import numpy as np

from ..layers import ABN, Activation, Conv2d, GlobalAvgPool2d, Linear, Residual, Sequential


@dataclass(frozen=True)
class Style:
    """Options that all layers of a network share, and functions that make its layers.

    Parameters
    ----------
    strategy, activation, activation_param
        As for `inplace_abn.layers.ABN`.
    channel_axis : {1, -1}
    dtype : {float32, float64}
    rng : numpy.random.Generator or int, optional
        Source of the initial weights, drawn layer by layer.

    Examples
    --------
    >>> style = Style(strategy="standard", rng=0)
    >>> style.abn(8).strategy
    'standard'
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

    def activate(self):
        """Return the activation as a layer that works in place if possible."""
        return Activation(
            self.activation, self.activation_param, inplace=True, channel_axis=self.channel_axis,
            dtype=self.dtype,
        )  # fmt: skip

    def conv(self, inputs, outputs, kernel_size, stride=1, bias=False, groups=1, dilation=1):
        """Return a convolution with a padding that preserves the size of images if the stride is 1."""
        return Conv2d(
            inputs, outputs, kernel_size, stride, padding=kernel_size // 2 * dilation, dilation=dilation,
            groups=groups, bias=bias, channel_axis=self.channel_axis, dtype=self.dtype, rng=self.rng,
        )  # fmt: skip

    def scores(self, channels, num_classes):
        """Return the last layers of a classifier of images: a dict of names to layers."""
        return {
            "pool": GlobalAvgPool2d(channel_axis=self.channel_axis),
            "scores": Linear(channels, num_classes, dtype=self.dtype, rng=self.rng),
        }


def preactivation_block(
    inputs, outputs, stride=1, kernel_sizes=(3, 3), style=None, *, widths=None, dilation=1
):
    """Return a residual block in which a normalization precedes each convolution.

    He et al. 2016, https://arxiv.org/abs/1603.05027. For each convolution it keeps two arrays with the
    strategy "standard", and one with all others. If the shape changes, the shortcut is a 1 x 1 convolution of
    the result of the first normalization.

    Parameters
    ----------
    inputs, outputs : int
        Channels of input and result.
    stride : int
        Stride of the first convolution.
    kernel_sizes : tuple of int
        Kernel size of each convolution.
    style : Style, optional
    widths : tuple of int, optional
        Channels of the result of each convolution but the last; `outputs` by default.
    dilation : int
        Dilation of the convolutions larger than 1 x 1.

    Returns
    -------
    Residual

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above.

    Examples
    --------
    >>> block = preactivation_block(8, 16, stride=2)
    >>> block(np.zeros((2, 8, 4, 4), np.float32)).shape
    (2, 16, 2, 2)
    """
    style = Style() if style is None else style
    widths = (*(widths or [outputs] * (len(kernel_sizes) - 1)), outputs)
    layers, channels = {}, inputs
    for i, (kernel_size, width) in enumerate(zip(kernel_sizes, widths, strict=True), 1):
        layers[f"abn{i}"] = style.abn(channels)
        layers[f"conv{i}"] = style.conv(
            channels, width, kernel_size, stride if i == 1 else 1, dilation=dilation if kernel_size > 1 else 1
        )
        channels = width
    if inputs == outputs and stride == 1:
        return Residual(Sequential(layers))
    first = layers.pop("abn1")
    return Residual(Sequential(layers), style.conv(inputs, outputs, 1, stride), preactivation=first)


def postactivation_block(
    inputs, outputs, stride=1, kernel_sizes=(3, 3), style=None, *, middle=None, groups=1, dilation=1
):
    """Return a residual block in which a normalization follows each convolution, and an activation the sum.

    He et al. 2016, https://arxiv.org/abs/1512.03385. With an in-place strategy the last normalization adds
    the shortcut and applies the activation: see `Residual`. If the shape changes, the shortcut is a 1 x 1
    convolution with a normalization.

    Parameters
    ----------
    inputs, outputs : int
        Channels of input and result.
    stride : int
        Stride of the first convolution larger than 1 x 1.
    kernel_sizes : tuple of int
        Kernel size of each convolution; (1, 3, 1) is a bottleneck.
    style : Style, optional
    middle : int, optional
        Channels between the convolutions; `outputs` by default.
    groups, dilation : int
        Of the convolutions larger than 1 x 1. ResNeXt has groups (Xie et al. 2017,
        https://arxiv.org/abs/1611.05431).

    Returns
    -------
    Residual

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above.

    Examples
    --------
    >>> block = postactivation_block(8, 16, stride=2)
    >>> block(np.zeros((2, 8, 4, 4), np.float32)).shape
    (2, 16, 2, 2)
    """
    style = Style() if style is None else style
    last, strided = len(kernel_sizes), _first_larger_than_one(kernel_sizes)
    layers, channels = {}, inputs
    for i, kernel_size in enumerate(kernel_sizes, 1):
        width = outputs if i == last or middle is None else middle
        options = {"groups": groups, "dilation": dilation} if kernel_size > 1 else {}
        layers[f"conv{i}"] = style.conv(
            channels, width, kernel_size, stride if i == strided else 1, **options
        )
        layers[f"abn{i}"] = style.norm(width) if i == last else style.abn(width)
        channels = width
    shortcut = None
    if inputs != outputs or stride != 1:
        shortcut = Sequential({"conv": style.conv(inputs, outputs, 1, stride), "abn": style.norm(outputs)})
    return Residual(Sequential(layers), shortcut, activation=style.activate())


def _first_larger_than_one(kernel_sizes):
    """Return the number, from 1, of the first convolution larger than 1 x 1; 1 if there is none."""
    return next((i for i, size in enumerate(kernel_sizes, 1) if size > 1), 1)


def inverted_residual(inputs, outputs, stride=1, expansion=6, style=None):
    """Return a block of MobileNetV2 (Sandler et al. 2018, https://arxiv.org/abs/1801.04381).

    A 1 x 1 convolution to `expansion` times the channels, a depthwise 3 x 3 convolution, and a 1 x 1
    convolution to `outputs` channels, whose normalization has no activation. If the shape does not change,
    this normalization adds the input.

    Parameters
    ----------
    inputs, outputs : int
        Channels of input and result.
    stride : int
        Stride of the 3 x 3 convolution.
    expansion : int
        Factor of the channels; 1 omits the first convolution.
    style : Style, optional

    Returns
    -------
    Residual or Sequential

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above.

    Examples
    --------
    >>> block = inverted_residual(8, 16, stride=2)
    >>> block(np.zeros((2, 8, 4, 4), np.float32)).shape
    (2, 16, 2, 2)
    """
    style = Style() if style is None else style
    hidden, layers = inputs * expansion, {}
    if expansion != 1:
        layers = {"expand": style.conv(inputs, hidden, 1), "abn1": style.abn(hidden)}
    layers |= {
        "depthwise": style.conv(hidden, hidden, 3, stride, groups=hidden),
        "abn2": style.abn(hidden),
        "project": style.conv(hidden, outputs, 1),
        "abn3": style.norm(outputs),
    }
    branch = Sequential(layers)
    return Residual(branch) if inputs == outputs and stride == 1 else branch
