"""Convolutions as layers."""

import math

import numpy as np

from .._numbers import integer, pair
from ..ops import conv2d
from .base import OperationLayer, Parameter
from .checks import choice, goes_with, precision


class Conv2d(OperationLayer):
    """Convolution of images, as `torch.nn.Conv2d`.

    Keeps its input for the backward. If that comes from an `ABN` with a checkpoint strategy, it is recomputed
    instead; for a frozen weight it is not kept. The weight is neither copied nor locked: change it after the
    backward. Scratch memory is for a few samples, never for the batch.

    A call takes ``out=``, an array that the result is written to, as `inplace_abn.ops.conv2d.forward` does.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : int or (int, int)
        Along H and W, here and below.
    stride, dilation : int or (int, int)
    padding : int, (int, int), "valid" or "same"
        Zeros around the images. "valid" is 0. "same" keeps their size and needs a stride of 1; of an odd
        number of zeros, the end gets one more.
    groups : int
        Divides both numbers of channels; outputs of a group see only the inputs of that group.
    bias : bool
        False if an `ABN` follows: its own bias makes this one useless.
    channel_axis : {1, -1}
        -1 for batches (N, H, W, C). Batches may have either memory layout, and results have that of x.
    dtype : {float32, float64}
    rng : numpy.random.Generator or int, optional
        Draws the first weight and bias, uniformly within 1 / sqrt(in_channels / groups * kernel area).

    Attributes
    ----------
    weight : Parameter of shape (out_channels, in_channels / groups, kernel height, kernel width)
        For both values of `channel_axis`.
    bias : Parameter of shape (out_channels,), or None

    Examples
    --------
    >>> import numpy as np
    >>> layer = Conv2d(3, 8, kernel_size=3, stride=2, padding=1)
    >>> layer(np.zeros((2, 3, 32, 32), np.float32)).shape
    (2, 8, 16, 16)
    """

    operation = conv2d

    def __init__(
        self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True, *,
        channel_axis=1, dtype=np.float32, rng=None,
    ):  # fmt: skip
        self.in_channels = integer("in_channels", in_channels, least=1)
        self.out_channels = integer("out_channels", out_channels, least=1)
        self.kernel_size = pair("kernel_size", kernel_size, least=1)
        self.stride = pair("stride", stride, least=1)
        self.dilation = pair("dilation", dilation, least=1)
        zeros, _ = conv2d.padding_of(padding, self.kernel_size, self.stride, self.dilation)
        self.padding = padding if isinstance(padding, str) else zeros
        self.groups = integer("groups", groups, least=1)
        self.channel_axis = choice("channel_axis", channel_axis, (1, -1))
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups must divide in_channels={in_channels} and out_channels={out_channels}, got {groups}"
            )
        shape = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        rng, bound = np.random.default_rng(rng), 1 / math.sqrt(math.prod(shape[1:]))
        self.weight = uniform(rng, bound, shape, dtype)
        self.bias = uniform(rng, bound, shape[:1], dtype) if bias else None

    def forward(self, ctx, x, *, out=None):
        """Convolve."""
        goes_with(x, self.weight.data)
        return conv2d.forward(
            ctx, x, self.weight.data, None if self.bias is None else self.bias.data, stride=self.stride,
            padding=self.padding, dilation=self.dilation, groups=self.groups, channel_axis=self.channel_axis,
            out=out, weight_gradient=getattr(self.weight, "requires_grad", True),
        )  # fmt: skip

    def gradients(self, ctx, dz, *, overwrite=False):
        """Gradients of x, weight and, if there is one, bias."""
        found = conv2d.backward(ctx, dz, overwrite=overwrite)
        return found if self.bias is not None else found[:2]

    def extra_repr(self):
        """Return the arguments, without those that have their defaults."""
        defaults = {"padding": (0, 0), "dilation": (1, 1), "groups": 1, "channel_axis": 1}
        changed = [
            f", {name}={getattr(self, name)!r}"
            for name, default in defaults.items() if getattr(self, name) != default
        ]  # fmt: skip
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
            f"{''.join(changed)}{'' if self.bias is not None else ', bias=False'}"
        )


def uniform(rng, bound, shape, dtype):
    """Return a Parameter with numbers from [-bound, bound)."""
    return Parameter(rng.uniform(-bound, bound, shape).astype(precision(dtype, half=True)))
