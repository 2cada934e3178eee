"""An activation alone, as after the sum of a post-activation block."""

import numpy as np

from ..reference import ACTIVATIONS
from .base import Layer
from .checks import choice, positive
from .kept import claim

# Elements that are worked on at a time, so that temporaries stay small and in the cache.
CHUNK = 1 << 15


class Activation(Layer):
    """An activation that keeps its result z and nothing else: its derivative is known from z.

    Parameters
    ----------
    activation : {"leaky_relu", "elu", "identity", "relu"}
    activation_param : float > 0
        Slope of leaky_relu below zero, alpha of elu.
    inplace : bool
        True overwrites the input; it is refused if another layer needs that.

    Examples
    --------
    >>> import numpy as np
    >>> layer, x = Activation("relu", inplace=True), np.array([[-1.0, 2.0]])
    >>> layer(x) is x, x
    (True, array([[0., 2.]]))
    >>> layer.backward(np.ones((1, 2)))
    array([[0., 1.]])
    """

    def __init__(self, activation="leaky_relu", activation_param=0.01, inplace=False):
        self.activation = choice("activation", activation, ACTIVATIONS)
        self.activation_param = positive("activation_param", activation_param)
        self.inplace = bool(inplace)

    @property
    def overwrites_input(self):
        """As `inplace` says."""
        return self.inplace

    def forward(self, ctx, x):
        """Return activation(x)."""
        if not isinstance(x, np.ndarray):
            raise TypeError(f"x must be a numpy.ndarray, got {type(x).__name__}")
        if x.dtype.kind not in "fV":  # V: bfloat16
            raise TypeError(f"x must be of a floating dtype, got {x.dtype}")
        if self.inplace:
            claim(x, "inplace=True")
        z = x if self.inplace else np.empty_like(x)
        writeable = z.flags.writeable
        for rows in _chunks(x):
            z[rows] = ACTIVATIONS[self.activation].phi(x[rows], x.dtype.type(self.activation_param))
        ctx.keep("z", z, writeable)
        return z

    def gradients(self, ctx, dz, *, overwrite=False):
        """Return dz times the derivative."""
        z = ctx.saved["z"]
        dx = dz if overwrite else np.empty_like(dz)
        for rows in _chunks(z):
            np.multiply(dz[rows], self._derivative(z[rows]), out=dx[rows])
        return dx

    def _derivative(self, z):
        if self.activation == "relu":
            return (z > 0).astype(z.dtype)
        derivative = ACTIVATIONS[self.activation].derivative_from_z
        return derivative(z, z.dtype.type(self.activation_param)).astype(z.dtype)

    def extra_repr(self):
        """Return the arguments."""
        return f"{self.activation!r}, activation_param={self.activation_param}, inplace={self.inplace}"


def _chunks(array):
    """Go through the first axis in slices of about CHUNK elements."""
    step = max(1, CHUNK * len(array) // max(1, array.size))
    return (slice(first, first + step) for first in range(0, len(array), step))
