"""Activations as layers, and checks of the arguments of activations."""

import numpy as np

from .._activations import ACTIVATIONS
from .._arguments import choice, finite, integer, layer_dtype
from ..ops import activation
from .base import Layer, Parameter
from .saved_arrays import refuse_if_saved

#: Other names of activations, for hints in error messages.
ALIASES = {
    "linear": "identity",
    "none": "identity",
    "swish": "silu",
    "lrelu": "leaky_relu",
    "leaky": "leaky_relu",
    "hard_sigmoid": "hardsigmoid",
    "hard_swish": "hardswish",
}


def activation_of(name):
    """Return `name` if it is an activation, else raise a ValueError that suggests a name."""
    return choice("activation", name, ACTIVATIONS, ALIASES)


def parameter_of(name, activation_param, num_slopes, dtype):
    """Return activation_param as a float, and the slope of prelu as a Parameter, or None.

    Raises
    ------
    TypeError, ValueError
        If activation_param or num_slopes does not fit the activation.
    """
    slopes = integer("num_slopes", num_slopes, least=1)
    found = finite("activation_param", activation_param)
    if ACTIVATIONS[name].param != "channel":
        if slopes != 1:
            raise ValueError(
                f"num_slopes: expected 1 for activation {name!r}, got {num_slopes!r}; only 'prelu' has slopes"
            )
        if ACTIVATIONS[name].param == "nonzero" and found == 0:
            raise ValueError(f"activation_param must not be 0 for activation {name!r}")
        return found, None
    return found, Parameter(np.full(slopes, found, layer_dtype(dtype)))


def refuse_in_place(name, param, strategy):
    """Raise a ValueError if an in-place strategy cannot invert this activation with this parameter."""
    if not ACTIVATIONS[name].invertible:
        raise ValueError(
            f"activation {name!r} has no inverse, which strategy {strategy!r} needs; use leaky_relu, silu or "
            "another one that has an inverse, or strategy 'standard', 'checkpoint', "
            "'checkpoint_xhat' or 'pre_activation'"
        )
    if not ACTIVATIONS[name].is_invertible(param):
        raise ValueError(
            f"activation_param must be positive and finite with strategy {strategy!r}, got {param!r}; "
            "strategies 'standard', 'checkpoint', 'checkpoint_xhat' and 'pre_activation' take any finite "
            "number"
        )


class Activation(Layer):
    """An activation, ``z = activation(x)``, which keeps one array for the backward.

    If the derivative is a function of z, it keeps the result z. Otherwise it keeps the input, and never
    overwrites it. This is the case for

    - silu, gelu, gelu_tanh, mish and hardswish, which have the same z on both sides of their minimum (an
      in-place `ABN` with one of the first four keeps z and one bit per element);
    - prelu, whose slopes may have any sign;
    - leaky_relu, elu and celu with a parameter that is not positive.

    Inputs are arrays of any shape, of float32, float64, float16 or bfloat16; prelu with a slope per channel
    takes (N, C, ...), or (N, ..., C) with ``channel_axis=-1``. The result has shape and dtype of the input.

    Parameters
    ----------
    activation : str
        As for `ABN`.
    activation_param : float
        As for `ABN`, of any sign.
    inplace : bool
        True overwrites the input with the result, unless the input is kept.
    num_slopes : int
        For prelu: 1, or the number of channels.
    channel_axis : {1, -1}
        For prelu with a slope per channel.
    dtype : {float32, float64}
        Of the slopes of prelu.

    Attributes
    ----------
    slope : Parameter of shape (num_slopes,), or None
        Of prelu, initially ``activation_param``.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above. In a call with ``inplace=True``, if the input is read-only or another
        layer keeps it for its backward.

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
    def overwrites_input(self):
        """True if `inplace` is True and the input is not kept."""
        return self.inplace and ACTIVATIONS[self.activation].has_slope_from_z(self.activation_param)

    @property
    def works_in_place(self):
        """True if the result is written over the input."""
        return self.overwrites_input

    def forward(self, ctx, x):
        """Return activation(x)."""
        if self.overwrites_input and isinstance(x, np.ndarray):
            refuse_if_saved(x, "inplace=True")
            if not x.flags.writeable:
                raise ValueError("x is read-only, and inplace=True overwrites it; pass a copy")
        param = self.activation_param if self.slope is None else self.slope.data
        return activation.forward(
            ctx, x, activation=self.activation, param=param, channel_axis=self.channel_axis,
            overwrite=self.overwrites_input,
        )  # fmt: skip

    def gradients(self, ctx, dz, *, overwrite=False):
        """Return dz times the derivative, and the gradient of the slope."""
        dx, dslope = activation.backward(ctx, dz, overwrite=overwrite)
        return dx if self.slope is None else (dx, dslope.astype(self.slope.data.dtype))

    def extra_repr(self):
        """Return the arguments."""
        slopes = "" if self.slope is None else f", num_slopes={len(self.slope.data)}"
        return (
            f"{self.activation!r}, activation_param={self.activation_param}{slopes}, inplace={self.inplace}"
        )
