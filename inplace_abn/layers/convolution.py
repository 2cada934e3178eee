"""Convolutions as layers."""

import math

import numpy as np

from .._arguments import choice, compatible_dtypes, integer, layer_dtype, pair
from ..ops import conv2d, conv_transpose2d
from .base import OperationLayer, Parameter


class _Convolution(OperationLayer):
    """Base of the convolutions."""

    def _configure(self, in_channels, out_channels, kernel_size, stride, dilation, groups, channel_axis):
        self.in_channels = integer("in_channels", in_channels, least=1)
        self.out_channels = integer("out_channels", out_channels, least=1)
        self.kernel_size = pair("kernel_size", kernel_size, least=1)
        self.stride = pair("stride", stride, least=1)
        self.dilation = pair("dilation", dilation, least=1)
        self.groups = integer("groups", groups, least=1)
        self.channel_axis = choice("channel_axis", channel_axis, (1, -1))
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups must divide in_channels={in_channels} and out_channels={out_channels}, got {groups}"
            )

    def _draw(self, channels, bias, dtype, rng):
        """Draw the parameters; the weight has the shape (*channels, *kernel_size)."""
        shape = (*channels, *self.kernel_size)
        rng, bound = np.random.default_rng(rng), 1 / math.sqrt(math.prod(shape[1:]))
        self.weight = uniform(rng, bound, shape, dtype)
        self.bias = uniform(rng, bound, (self.out_channels,), dtype) if bias else None

    def reset_parameters(self, rng=None):
        """Draw new values of weight and bias, in place, from a generator or seed."""
        redraw(self, rng)

    def _settings(self):
        """Return the attributes that are keyword arguments of the operation."""
        names = "stride", "padding", "dilation", "groups", "channel_axis"
        return {name: getattr(self, name) for name in names}

    def forward(self, ctx, x, *, out=None):
        """Return the convolution of x, written to `out` if that is given."""
        compatible_dtypes(x, self.weight.data, half=True)
        return self.operation.forward(
            ctx, x, self.weight.data, None if self.bias is None else self.bias.data, out=out,
            weight_gradient=_is_trained(self.weight), bias_gradient=_is_trained(self.bias),
            **self._settings(),
        )  # fmt: skip

    def gradients(self, ctx, dz, *, overwrite=False):
        """Return the gradients of x, weight and, if there is one, bias."""
        found = self.operation.backward(ctx, dz, overwrite=overwrite)
        return found if self.bias is not None else found[:2]

    def extra_repr(self):
        """Return the arguments that differ from their defaults."""
        defaults = {"padding": (0, 0), "output_padding": (0, 0), "dilation": (1, 1), "groups": 1}
        defaults["channel_axis"] = 1
        settings = self._settings()
        changed = [
            f", {name}={settings[name]!r}"
            for name, default in defaults.items() if settings.get(name, default) != default
        ]  # fmt: skip
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
            f"{''.join(changed)}{'' if self.bias is not None else ', bias=False'}"
        )


class Conv2d(_Convolution):
    """Convolution of images, as `torch.nn.Conv2d`: from (N, C, H, W) to (N, out_channels, H', W').

    Input, result and weight have one dtype; half-precision inputs may have a float32 weight.

    The input is kept for the backward, with two exceptions: the result of an `ABN` with a checkpoint strategy
    is recomputed, and with a frozen weight no input is needed. The weight is neither copied nor locked, and
    must not change before the backward. Scratch memory has the size of a few samples.

    A call takes ``out=``, the array to write the result to; see `inplace_abn.ops.conv2d.forward`.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : int or (int, int)
        Along H and W, here and below.
    stride, dilation : int or (int, int)
    padding : int, (int, int), "valid" or "same"
        Zeros around the images. "valid" is 0. "same" keeps their size and requires a stride of 1; of an odd
        number of zeros, the end gets one more.
    groups : int
        Divides both numbers of channels. Outputs of a group depend only on the inputs of that group.
    bias : bool
        Use False before an `ABN`, which subtracts the mean and adds its own bias.
    channel_axis : {1, -1}
        -1 for batches (N, H, W, C). The memory layout may be either one; results have that of x.
    dtype : {float32, float64, float16, bfloat16}
        Of the parameters. Half-precision inputs take float32 or their own dtype.
    rng : numpy.random.Generator or int, optional
        Draws the initial weight and bias, uniformly within 1 / sqrt(in_channels / groups * kernel area).

    Attributes
    ----------
    weight : Parameter of shape (out_channels, in_channels / groups, kernel height, kernel width)
        For both values of `channel_axis`.
    bias : Parameter of shape (out_channels,), or None

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above. In a call, if the shape or dtype of the input does not fit.

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
        self._configure(in_channels, out_channels, kernel_size, stride, dilation, groups, channel_axis)
        zeros, _ = conv2d.padding_of(padding, self.kernel_size, self.stride, self.dilation)
        self.padding = padding if isinstance(padding, str) else zeros
        self._draw((self.out_channels, self.in_channels // self.groups), bias, dtype, rng)


class ConvTranspose2d(_Convolution):
    """Transposed convolution of images, as `torch.nn.ConvTranspose2d`: enlarges images by the stride.

    It is the gradient of a convolution with respect to its input. Shapes, dtypes, memory and ``out=`` are as
    for `Conv2d`.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : int or (int, int)
        Along H and W, here and below.
    stride, dilation : int or (int, int)
    padding : int or (int, int)
        Rows and columns cut off the result at both ends.
    output_padding : int or (int, int)
        Rows and columns added to the end of the result. Less than stride or dilation.
    groups : int
        Divides both numbers of channels. Outputs of a group depend only on the inputs of that group.
    bias : bool
        Use False before an `ABN`, which subtracts the mean and adds its own bias.
    channel_axis : {1, -1}
        -1 for batches (N, H, W, C). The memory layout may be either one; results have that of x.
    dtype : {float32, float64, float16, bfloat16}
        Of the parameters. Half-precision inputs take float32 or their own dtype.
    rng : numpy.random.Generator or int, optional
        Draws the initial weight and bias, uniformly within 1 / sqrt(out_channels / groups * kernel area).

    Attributes
    ----------
    weight : Parameter of shape (in_channels, out_channels / groups, kernel height, kernel width)
        For both values of `channel_axis`.
    bias : Parameter of shape (out_channels,), or None

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above. In a call, if the shape or dtype of the input does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> layer = ConvTranspose2d(8, 3, kernel_size=2, stride=2)
    >>> layer(np.zeros((2, 8, 16, 16), np.float32)).shape
    (2, 3, 32, 32)
    """

    operation = conv_transpose2d

    def __init__(
        self, in_channels, out_channels, kernel_size, stride=1, padding=0, output_padding=0, groups=1,
        bias=True, dilation=1, *, channel_axis=1, dtype=np.float32, rng=None,
    ):  # fmt: skip
        self._configure(in_channels, out_channels, kernel_size, stride, dilation, groups, channel_axis)
        self.padding = pair("padding", padding, least=0)
        self.output_padding = conv_transpose2d.output_padding_of(output_padding, self.stride, self.dilation)
        self._draw((self.in_channels, self.out_channels // self.groups), bias, dtype, rng)

    def _settings(self):
        return super()._settings() | {"output_padding": self.output_padding}


def _is_trained(parameter):
    return parameter is not None and parameter.requires_grad


def redraw(layer, rng):
    """Draw the weight and bias of a layer uniformly within 1 / sqrt(inputs of each output)."""
    rng, bound = np.random.default_rng(rng), 1 / math.sqrt(math.prod(layer.weight.data.shape[1:]))
    for parameter in (layer.weight, layer.bias):
        if parameter is not None:
            parameter.data[...] = rng.uniform(-bound, bound, parameter.data.shape)


def uniform(rng, bound, shape, dtype):
    """Return a Parameter with values drawn uniformly from [-bound, bound)."""
    return Parameter(rng.uniform(-bound, bound, shape).astype(layer_dtype(dtype, half=True)))
