"""DeepLabV3: a head for segmentation over a network with dilations."""

import numpy as np

from .._arguments import choice
from ..layers import Concat, Dropout, GlobalAvgPool2d, Layer, Sequential, Upsample
from ..ops._layout import order_of
from .blocks import Style
from .resnet import resnet_features
from .wider_resnet import wider_resnet_features

#: Body -> (function that makes its layers, its arguments)
BODIES = {
    "resnet50": (resnet_features, {}),
    "resnet101": (resnet_features, {"blocks": (3, 4, 23, 3)}),
    "resnext101": (resnet_features, {"blocks": (3, 4, 23, 3), "groups": 64, "group_width": 4}),
    "wider_resnet38": (wider_resnet_features, {}),
}


class ImagePooling(Layer):
    """The global branch of DeepLabV3: layers applied to the mean over all pixels, repeated at every pixel.

    Parameters
    ----------
    layers : Sequential
        Takes and returns batches of one pixel.
    channel_axis : {1, -1}
    """

    def __init__(self, layers, channel_axis=1):
        self.channel_axis = channel_axis
        self.pool, self.layers = GlobalAvgPool2d(keepdims=True, channel_axis=channel_axis), layers

    def forward(self, ctx, x):
        """Return an array of the height and width of x."""
        z = self.layers(self.pool(x))
        ctx.axes = (2, 3) if self.channel_axis == 1 else (1, 2)
        shape = [x.shape[i] if i in ctx.axes else length for i, length in enumerate(z.shape)]
        repeated = order_of(x).empty(shape, z.dtype)
        repeated[...] = z
        return repeated

    def gradients(self, ctx, dz, *, overwrite=False):
        """Return the gradient of the input."""
        total = dz.sum(axis=ctx.axes, keepdims=True, dtype=np.float64).astype(dz.dtype)
        return self.pool.backward(self.layers.backward(total))


def deeplabv3(
    in_channels=3, num_classes=21, body="resnet50", *, output_stride=8, channels=256, rates=None, dropout=0.5,
    body_options=None, **style,
):  # fmt: skip
    """Return DeepLabV3, a network that classifies every pixel.

    Chen et al. 2017, https://arxiv.org/abs/1706.05587. A body with dilations; side by side a 1 x 1
    convolution, three dilated 3 x 3 convolutions and image pooling; two convolutions; scores, interpolated to
    the size of the images.

    Parameters
    ----------
    in_channels, num_classes : int
    body : {"resnet50", "resnet101", "resnext101", "wider_resnet38"}
    output_stride : {8, 16}
        Height of the images / height of the features. H and W must be multiples of it. 16 only with bodies
        of `resnet`.
    channels : int
        Channels of each branch.
    rates : (int, int, int), optional
        Dilations of the branches. Default: (12, 24, 36) for output stride 8, (6, 12, 18) for 16.
    dropout : float
        Probability of the dropout before the last 3 x 3 convolution.
    body_options : dict, optional
        Arguments of the body, such as ``{"width": 8}``.
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
    >>> small = {"blocks": (1, 1, 1, 1), "width": 4}
    >>> net = deeplabv3(3, 5, channels=8, body_options=small, rng=0)
    >>> net(np.zeros((2, 3, 32, 32), np.float32)).shape
    (2, 5, 32, 32)
    """
    style = Style(**style)
    make, options = BODIES[choice("body", body, BODIES)]
    stride = choice("output_stride", output_stride, (8, 16))
    rates = tuple(rates or ((12, 24, 36) if stride == 8 else (6, 12, 18)))
    options = options | {"output_stride": stride} | (body_options or {})
    layers, inputs = make(style, in_channels, **options)
    head = {
        "aspp": _aspp(inputs, channels, rates, style),
        "project": style.conv((len(rates) + 2) * channels, channels, 1),
        "project_abn": style.abn(channels),
        "dropout": Dropout(dropout, rng=style.rng),
        "conv": style.conv(channels, channels, 3),
        "abn": style.abn(channels),
        "scores": style.conv(channels, num_classes, 1, bias=True),
        "upsample": Upsample(scale_factor=stride, channel_axis=style.channel_axis),
    }
    return Sequential({"body": Sequential(layers)} | head)


def _aspp(inputs, channels, rates, style):
    """Return the branches of different dilation ("atrous spatial pyramid pooling")."""

    def branch(kernel_size, dilation=1):
        conv = style.conv(inputs, channels, kernel_size, dilation=dilation)
        return Sequential({"conv": conv, "abn": style.abn(channels)})

    branches = {"0": branch(1)}
    branches |= {str(i): branch(3, rate) for i, rate in enumerate(rates, 1)}
    branches[str(len(rates) + 1)] = ImagePooling(branch(1), style.channel_axis)
    return Concat(branches, channel_axis=style.channel_axis)
