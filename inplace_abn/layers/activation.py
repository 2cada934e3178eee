"""An activation alone, as after a sum, and its parameter."""

import numpy as np

from .._numbers import finite, integer, positive
from ..ops import _arguments as arguments
from ..reference import ACTIVATIONS
from ..reference.moments import quiet
from .base import Layer, Parameter
from .checks import choice, precision
from .kept import claim

# Elements that are worked on at a time, so that temporaries stay small and in the cache.
CHUNK = 1 << 15


#: What others call some of the activations.
ALIASES = {
    "linear": "identity",
    "none": "identity",
    "swish": "silu",
    "lrelu": "leaky_relu",
    "leaky": "leaky_relu",
}


def activation_of(name):
    """Return the name of an activation, if it is one; a name that others use is answered by its own."""
    return choice("activation", name, ACTIVATIONS, ALIASES)


def parameter_of(activation, activation_param, num_slopes, dtype):
    """Return what an activation takes: activation_param as a float, and the slope of prelu or None.

    Raises
    ------
    TypeError, ValueError
        For an activation_param or a num_slopes that does not fit.
    """
    slopes = integer("num_slopes", num_slopes, least=1)
    if ACTIVATIONS[activation].param != "channel":
        if slopes != 1:
            raise ValueError(
                f"num_slopes goes with activation 'prelu', got {num_slopes!r} with {activation!r}; leave it "
                "out, or 1"
            )
        return positive("activation_param", activation_param), None
    first = finite("activation_param", activation_param)
    return first, Parameter(np.full(slopes, first, precision(dtype)))


class Activation(Layer):
    """An activation that keeps one array: its result z, where the derivative is known from z.

    That is not so for silu, gelu, gelu_tanh and mish, which come to the same z from both sides of their
    minimum, and for prelu, whose slopes may have any sign. These keep their input, and never overwrite it.
    (An in-place `ABN` with these activations keeps z and a bit per element, also at the end of a `Residual`.)

    Parameters
    ----------
    activation : str
        As for `ABN`, and relu.
    activation_param : float
        As for `ABN`.
    inplace : bool
        True overwrites the input, where that is not kept; it is refused if another layer needs the input.
    num_slopes : int
        Of prelu alone: 1, or the number of channels.
    channel_axis : {1, -1}
        Of prelu's slopes.
    dtype : {float32, float64}
        Of prelu's slopes.

    Attributes
    ----------
    slope : Parameter of shape (num_slopes,), or None
        Of prelu; ``activation_param`` at first.

    Examples
    --------
    >>> import numpy as np
    >>> layer, x = Activation("relu", inplace=True), np.array([[-1.0, 2.0]])
    >>> layer(x) is x, x
    (True, array([[0., 2.]]))
    >>> layer.backward(np.ones((1, 2)))
    array([[0., 1.]])
    """

    def __init__(
        self, activation="leaky_relu", activation_param=0.01, inplace=False, *, num_slopes=1, channel_axis=1,
        dtype=np.float32,
    ):  # fmt: skip
        self.activation = activation_of(activation)
        self.activation_param, self.slope = parameter_of(activation, activation_param, num_slopes, dtype)
        self.channel_axis = choice("channel_axis", channel_axis, (1, -1))
        self.inplace = bool(inplace)

    @property
    def _keeps_input(self):
        return self.slope is not None or ACTIVATIONS[self.activation].minimum is not None

    @property
    def overwrites_input(self):
        """As `inplace` says, where the input is not kept."""
        return self.inplace and not self._keeps_input

    @quiet
    def forward(self, ctx, x):
        """Return activation(x)."""
        arguments.plain("x", x)
        if x.dtype.kind not in "fV":  # V: bfloat16
            raise TypeError(f"x must be of a floating dtype, got {x.dtype}")
        param = self._param(x)
        if self.overwrites_input:
            claim(x, "inplace=True")
        if self._keeps_input:
            ctx.save_for_backward(input=x)
        z = x if self.overwrites_input else np.empty_like(x)
        writeable = z.flags.writeable
        for rows in _chunks(x):
            z[rows] = ACTIVATIONS[self.activation].phi(_wide(x[rows]), param)
        if not self._keeps_input:
            ctx.keep("z", z, writeable)
        return z

    @quiet
    def gradients(self, ctx, dz, *, overwrite=False):
        """Return dz times the derivative, and the gradient of the slope."""
        (kept,) = ctx.saved.values()
        param, dslope = self._param(kept), 0
        dx = dz if overwrite else np.empty_like(dz)
        for rows in _chunks(kept):
            part, gradient = _wide(kept[rows]), _wide(dz[rows])
            if self.slope is not None:
                dslope = dslope + self._sums(gradient * np.minimum(part, 0))
            dx[rows] = gradient * self._derivative(part, param)
        return dx if self.slope is None else (dx, dslope.astype(self.slope.data.dtype))

    def _param(self, x):
        """Return activation_param, or the slopes in a shape that goes with x."""
        if self.slope is None:
            return self.activation_param
        slope = self.slope.data
        if len(slope) == 1:
            return slope
        axis = self.channel_axis
        if x.ndim < 2 or x.shape[axis] != len(slope):
            raise ValueError(f"num_slopes={len(slope)} takes x with as many channels, got shape {x.shape}")
        return slope.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])

    def _sums(self, products):
        """Add up what belongs to each slope, in float64."""
        axis = self.channel_axis % products.ndim
        others = tuple(i for i in range(products.ndim) if i != axis or len(self.slope.data) == 1)
        return np.atleast_1d(products.sum(axis=others, dtype=np.float64))

    def _derivative(self, kept, param):
        activation = ACTIVATIONS[self.activation]
        if self.activation == "relu":
            return kept > 0
        found = activation.derivative if self._keeps_input else activation.derivative_from_z
        return found(kept, param).astype(kept.dtype)

    def extra_repr(self):
        """Return the arguments."""
        slopes = "" if self.slope is None else f", num_slopes={len(self.slope.data)}"
        return (
            f"{self.activation!r}, activation_param={self.activation_param}{slopes}, inplace={self.inplace}"
        )


def _wide(array):
    """Return the array, or a float32 copy of a half type."""
    return array.astype(np.float32) if array.itemsize == 2 else array


def _chunks(array):
    """Go through the first axis in slices of about CHUNK elements."""
    step = max(1, CHUNK * len(array) // max(1, array.size))
    return (slice(first, first + step) for first in range(0, len(array), step))
