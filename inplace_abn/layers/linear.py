"""Fully connected layers, flatten and dropout."""

import math

import numpy as np

from .._arguments import compatible_dtypes, fraction, integer
from ..ops import dropout, flatten, linear
from .base import OperationLayer
from .convolution import redraw, uniform


class Linear(OperationLayer):
    """Linear layer, ``z = x @ weight.T + bias``, as `torch.nn.Linear`.

    x has the shape (..., in_features), z the shape (..., out_features) and the dtype of x. x is kept for the
    backward unless the weight is frozen.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    dtype : {float32, float64, float16, bfloat16}
        Of the parameters. Half-precision inputs take float32 or their own dtype.
    rng : numpy.random.Generator or int, optional
        Draws the initial weight and bias, uniformly within 1 / sqrt(in_features).

    Attributes
    ----------
    weight : Parameter of shape (out_features, in_features)
    bias : Parameter of shape (out_features,), or None

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above. In a call, if shape or dtype of the input does not fit.

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
        """Draw new values of weight and bias, in place, from a generator or seed."""
        redraw(self, rng)

    def forward(self, ctx, x):
        """Return ``x @ weight.T + bias``."""
        compatible_dtypes(x, self.weight.data, half=True)
        bias = None if self.bias is None else self.bias.data
        return linear.forward(ctx, x, self.weight.data, bias, weight_gradient=self.weight.requires_grad)

    def gradients(self, ctx, dz, *, overwrite=False):
        """Return the gradients of x, weight and, if there is one, bias."""
        found = linear.backward(ctx, dz, overwrite=overwrite)
        return found if self.bias is not None else found[:2]

    def extra_repr(self):
        """Return the arguments."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )


class Flatten(OperationLayer):
    """Reshape (N, ...) to (N, M): a view of a C-contiguous input, else a copy.

    Raises
    ------
    TypeError, ValueError
        In a call, if the dtype of the input is not supported.

    Examples
    --------
    >>> import numpy as np
    >>> Flatten()(np.zeros((2, 3, 4, 4))).shape
    (2, 48)
    """

    operation = flatten
    returns_input = True

    def forward(self, ctx, x):
        """Return x with the shape (N, M)."""
        return flatten.forward(ctx, x)


class Dropout(OperationLayer):
    """Set each element to zero with probability p in training, and divide the others by 1 - p.

    In evaluation it returns its input. One bit per element is kept for the backward. See Srivastava et al.
    2014, https://jmlr.org/papers/v15/srivastava14a.html.

    Parameters
    ----------
    p : float in [0, 1]
    rng : numpy.random.Generator or int, optional
        Draws the random numbers.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above. In a call, if the dtype of the input is not supported.

    Examples
    --------
    >>> import numpy as np
    >>> layer, x = Dropout(0.5, rng=0), np.ones((2, 4))
    >>> sorted(set(layer(x).ravel().tolist()))
    [0.0, 2.0]
    >>> layer.eval()(x) is x
    True
    """

    operation = dropout

    def __init__(self, p=0.5, *, rng=None):
        self.p = fraction("p", p)
        self.rng = np.random.default_rng(rng)

    @property
    def returns_input(self):
        """True in evaluation, and for p = 0."""
        return not self.training or self.p == 0

    def forward(self, ctx, x):
        """Return x with elements set to zero in training, else x itself."""
        return dropout.forward(ctx, x, self.p, training=self.training, rng=self.rng)

    def extra_repr(self):
        """Return the arguments."""
        return f"p={self.p}"
