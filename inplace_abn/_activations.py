"""Properties of the activations and strategies that the Python layers need.

The kernels have their own table, ``ABN_EACH_ACTIVATION`` in ``csrc/abn.h``, and the specification has
`inplace_abn.reference.ACTIVATIONS`. The tests compare the three. The formulas that layers use are in
`inplace_abn.ops.activation`.
"""

from typing import Literal, NamedTuple

__all__ = ["ACTIVATIONS", "KEEPS", "Activation"]


class Activation(NamedTuple):
    """Properties of one activation.

    Attributes
    ----------
    param : {None, "one", "nonzero", "channel"}
        Its parameter: none, one finite number, one that is not 0, or one per channel.
    invertible : bool
        True if y can be recovered from z (and the branch mask, if there is a minimum). In-place strategies
        require it. If the parameter is one number, it must also be positive: see `is_invertible`.
    minimum : float or None
        The y at which z is smallest; None if the activation is monotonic. z has one inverse on each side.
    slope_from_z : bool
        True if the derivative is a function of z alone: an `Activation` layer then keeps z instead of x. If
        the parameter is one number, it must also be positive: see `has_slope_from_z`.
    """

    param: Literal["one", "nonzero", "channel"] | None = None
    invertible: bool = True
    minimum: float | None = None
    slope_from_z: bool = True

    def is_invertible(self, param):
        """Return `invertible` for this value of the parameter."""
        return self.invertible and self._accepts(param)

    def has_slope_from_z(self, param):
        """Return `slope_from_z` for this value of the parameter."""
        return self.slope_from_z and self._accepts(param)

    def _accepts(self, param):
        """Return False if the parameter is one number, and not positive: two y may then have the same z."""
        return self.param not in ("one", "nonzero") or param > 0


def _with_minimum(minimum):
    return Activation(minimum=minimum, slope_from_z=False)


#: In the order of ``csrc/abn.h``.
ACTIVATIONS = {
    "identity": Activation(),
    "leaky_relu": Activation("one"),
    "prelu": Activation("channel", slope_from_z=False),  # two y have the same z if a slope is negative
    "elu": Activation("one"),
    "celu": Activation("nonzero"),
    "selu": Activation(),
    "softplus": Activation(),
    "sigmoid": Activation(),
    "tanh": Activation(),
    "silu": _with_minimum(-1.2784645427610737),
    "gelu": _with_minimum(-0.7517915246935645),
    "gelu_tanh": _with_minimum(-0.7524614220710163),
    "mish": _with_minimum(-1.1924312145154952),
    "relu": Activation(invertible=False),
    "relu6": Activation(invertible=False),
    "hardsigmoid": Activation(invertible=False),
    "hardswish": Activation(invertible=False, slope_from_z=False),
}

#: strategy -> the array that it keeps for the backward (Fig. 2 of the paper; `pre_activation` is not in it)
KEEPS = {
    "standard": "x",
    "checkpoint": "x",
    "checkpoint_xhat": "xhat",
    "pre_activation": "y",
    "inplace_1": "z",
    "inplace_2": "z",
    "inplace": "z",  # another name of inplace_2
}
