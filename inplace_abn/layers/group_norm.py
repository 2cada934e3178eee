"""Group normalization as a layer."""

import numpy as np

from .._arguments import choice, compatible_dtypes, integer, layer_dtype, positive
from ..ops import group_norm
from .base import OperationLayer, Parameter


class GroupNorm(OperationLayer):
    """Normalization of each sample by mean and variance of groups of channels, as `torch.nn.GroupNorm`.

    Does not depend on the other samples of the batch, so it is for batches too small for batch normalization.
    Keeps its input for the backward; there is no strategy that overwrites it.

    Parameters
    ----------
    num_groups : int
        Divides num_channels. 1: all channels of a sample together. num_channels: instance normalization.
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
        Ones and zeros at first.

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
        """Normalize."""
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
        """Gradients of x and, if there are any, of weight and bias."""
        found = group_norm.backward(ctx, dz, overwrite=overwrite)
        return found if self.weight is not None else found[0]

    def extra_repr(self):
        """Return the arguments."""
        axis = ", channel_axis=-1" if self.channel_axis == -1 else ""
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}{axis}"
