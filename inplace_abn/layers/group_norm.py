"""Group normalization as a layer."""

import numpy as np

from .._arguments import choice, compatible_dtypes, integer, layer_dtype, positive
from ..ops import group_norm
from .base import OperationLayer, Parameter


class GroupNorm(OperationLayer):
    """Group normalization, ``z = weight * (x - mean) / sqrt(var + eps) + bias``, as `torch.nn.GroupNorm`.

    Mean and variance are those of a group of channels of one sample (Wu & He 2018,
    https://arxiv.org/abs/1803.08494). So a sample does not depend on the others of its batch, which may be
    small. The input, (N, C, ...) or (N, ..., C) with ``channel_axis=-1``, is kept for the backward and not
    overwritten. The result has its shape and dtype.

    Parameters
    ----------
    num_groups : int
        Divides num_channels. 1: all channels are one group. num_channels: instance normalization.
    num_channels : int
    eps : float > 0
    affine : bool
        False: no weight and bias.
    channel_axis : {1, -1}
        -1 for batches (N, ..., C).
    dtype : {float32, float64, float16, bfloat16}
        Of the parameters. Half-precision inputs take float32 or their own dtype.

    Attributes
    ----------
    weight, bias : Parameter of shape (num_channels,), or None
        Initially ones and zeros.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above. In a call, if shape or dtype of the input does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> GroupNorm(1, 2)(np.array([[1.0, 3.0]], np.float32)).round(2)
    array([[-1.,  1.]], dtype=float32)
    """

    operation = group_norm

    def __init__(self, num_groups, num_channels, eps=1e-5, affine=True, *, channel_axis=1, dtype=np.float32):
        self.num_groups = integer("num_groups", num_groups, least=1)
        self.num_channels = integer("num_channels", num_channels, least=1)
        if num_channels % num_groups:
            raise ValueError(f"num_groups must divide num_channels={num_channels}, got {num_groups}")
        self.eps, self.affine = positive("eps", eps), bool(affine)
        self.channel_axis = choice("channel_axis", channel_axis, (1, -1))
        dtype = layer_dtype(dtype, half=True)
        self.weight = Parameter(np.ones(num_channels, dtype)) if affine else None
        self.bias = Parameter(np.zeros(num_channels, dtype)) if affine else None

    def reset_parameters(self):
        """Set the weight to 1 and the bias to 0."""
        if self.affine:
            self.weight.data[...], self.bias.data[...] = 1, 0

    def forward(self, ctx, x):
        """Return the normalized input."""
        weight, bias = (self.weight.data, self.bias.data) if self.weight is not None else (None, None)
        compatible_dtypes(x, weight, bias, half=True)
        if isinstance(x, np.ndarray) and x.ndim > 1 and x.shape[self.channel_axis] != self.num_channels:
            raise ValueError(
                f"num_channels={self.num_channels} takes x with as many channels, got shape {x.shape} with "
                f"channel_axis={self.channel_axis}"
            )
        return group_norm.forward(
            ctx, x, weight, bias, num_groups=self.num_groups, eps=self.eps, channel_axis=self.channel_axis
        )

    def gradients(self, ctx, dz, *, overwrite=False):
        """Return the gradients of x and, if there are any, of weight and bias."""
        found = group_norm.backward(ctx, dz, overwrite=overwrite)
        return found if self.weight is not None else found[0]

    def extra_repr(self):
        """Return the arguments."""
        axis = ", channel_axis=-1" if self.channel_axis == -1 else ""
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}{axis}"
