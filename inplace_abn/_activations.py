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
    param : {None, "one", "channel"}
        Its parameter: none, one number above 0, or one number of any sign per channel.
    invertible : bool
        True if y can be recovered from z (and the branch mask, if there is a minimum). In-place strategies
        require it.
    minimum : float or None
        The y at which z is smallest; None if the activation is monotonic. z has one inverse on each side.
    slope_from_z : bool
        True if the derivative is a function of z alone: a layer with the activation alone keeps z, not x.
    """

    param: Literal["one", "channel"] | None = None
    invertible: bool = True
    minimum: float | None = None
    slope_from_z: bool = True


def _with_minimum(minimum):
    return Activation(minimum=minimum, slope_from_z=False)


#: In the order of ``csrc/abn.h``.
ACTIVATIONS = {
    "identity": Activation(),
    "leaky_relu": Activation("one"),
    "prelu": Activation("channel", slope_from_z=False),  # two y for a z if a slope is below 0
    "elu": Activation("one"),
    "celu": Activation("one"),
    "selu": Activation(),
    "softplus": Activation(),
    "sigmoid": Activation(),
    "tanh": Activation(),
    "silu": _with_minimum(-1.2784645427610737),
    "gelu": _with_minimum(-0.7517915246935645),
    "gelu_tanh": _with_minimum(-0.7524614220710163),
    "mish": _with_minimum(-1.1924312145154952),
    "relu": Activation(invertible=False),
}

#: strategy -> the array that it keeps for the backward (Fig. 2 of the paper)
KEEPS = {
    "standard": "x",
    "checkpoint": "x",
    "checkpoint_xhat": "xhat",
    "inplace_1": "z",
    "inplace_2": "z",
    "inplace": "z",  # another name of inplace_2
}
