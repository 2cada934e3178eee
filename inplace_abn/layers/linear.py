"""Fully connected layers, flatten and dropout."""

import math

import numpy as np

from .._arguments import compatible_dtypes, fraction, integer
from ..ops import dropout, flatten, linear
from .base import OperationLayer
from .convolution import draw_again, uniform


class Linear(OperationLayer):
    """Weighted sums of features, ``x @ weight.T + bias``, as `torch.nn.Linear`.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    dtype : {float32, float64, float16, bfloat16}
        Of the parameters. Half-precision inputs take float32 or their own dtype.
    rng : numpy.random.Generator or int, optional
        Draws the first weight and bias, uniformly within 1 / sqrt(in_features).

    Attributes
    ----------
    weight : Parameter of shape (out_features, in_features)
    bias : Parameter of shape (out_features,), or None

    Examples
    --------
    >>> import numpy as np
    >>> Linear(64, 10)(np.zeros((2, 64), np.float32)).shape
    (2, 10)
    """

    operation = linear

    def __init__(self, in_features, out_features, bias=True, *, dtype=np.float32, rng=None):
        self.in_features = integer("in_features", in_features, least=1)
        self.out_features = integer("out_features", out_features, least=1)
        rng, bound = np.random.default_rng(rng), 1 / math.sqrt(in_features)
        self.weight = uniform(rng, bound, (self.out_features, self.in_features), dtype)
        self.bias = uniform(rng, bound, (self.out_features,), dtype) if bias else None

    def reset_parameters(self, rng=None):
        """Draw weight and bias anew, as for a new layer, from a generator or seed."""
        draw_again(self, rng)

    def forward(self, ctx, x):
        """Multiply by the weight and add the bias."""
        compatible_dtypes(x, self.weight.data, half=True)
        bias = None if self.bias is None else self.bias.data
        return linear.forward(ctx, x, self.weight.data, bias, weight_gradient=self.weight.requires_grad)

    def gradients(self, ctx, dz, *, overwrite=False):
        """Gradients of x, weight and, if there is one, bias."""
        found = linear.backward(ctx, dz, overwrite=overwrite)
        return found if self.bias is not None else found[:2]

    def extra_repr(self):
        """Return the arguments."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )


class Flatten(OperationLayer):
    """All axes but the first in one: a view of a C-contiguous input, else a copy."""

    operation = flatten
    returns_input = True

    def forward(self, ctx, x):
        """Reshape to (N, everything else)."""
        return flatten.forward(ctx, x)


class Dropout(OperationLayer):
    """Elements set to zero at random in training, the others divided by 1 - p.

    One bit per element is kept for the backward.

    Parameters
    ----------
    p : float in [0, 1]
        The probability that an element is set to zero.
    rng : numpy.random.Generator or int, optional
        Draws the random numbers.
    """

    operation = dropout

    def __init__(self, p=0.5, *, rng=None):
        self.p = fraction("p", p)
        self.rng = np.random.default_rng(rng)

    @property
    def returns_input(self):
        """True in evaluation."""
        return not self.training or self.p == 0

    def forward(self, ctx, x):
        """Set elements to zero, or in evaluation return x."""
        return dropout.forward(ctx, x, self.p, training=self.training, rng=self.rng)

    def extra_repr(self):
        """Return the arguments."""
        return f"p={self.p}"
