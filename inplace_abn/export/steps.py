"""The computation of a network in evaluation: steps, and the arrays that they take and return."""

from typing import NamedTuple

import numpy as np

from ..layers import Layer


class Value:
    """An array that a network computes, known by its identity.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy.dtype
    constant : ndarray or None
        The contents, if they do not depend on the input.
    name : str
        Of a constant: the path of the parameter.
    """

    def __init__(self, array, constant=None, name=""):
        self.shape, self.dtype = array.shape, array.dtype
        self.constant, self.name = constant, name

    def zeros(self):
        """Return an array of this shape and dtype."""
        return np.zeros(self.shape, self.dtype)


class Step(NamedTuple):
    """One step of the computation.

    Attributes
    ----------
    op : str
        "ABN" (without activation), "Activation", "Add", "Mul", "Concat", "Expand" (to the height and width of
        the second input), the name of another class of `inplace_abn.layers`, or "" for an unknown layer.
    layer : Layer
        Has the settings and parameters of the step.
    path : str
        Of the layer in the network.
    inputs, outputs : tuple of Value
    has_options : bool
        True if the layer was called with keyword arguments.
    """

    op: str
    layer: Layer
    path: str
    inputs: tuple
    outputs: tuple
    has_options: bool = False


class Trace(NamedTuple):
    """The steps of a network, in the order of the calls; their layers belong to `network`, a copy."""

    network: Layer
    steps: list
    inputs: tuple
    outputs: tuple
