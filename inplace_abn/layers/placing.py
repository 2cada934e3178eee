"""Results that lie where they are needed: in a slice of a joined array.

A layer that works in place keeps its result in the array that it is given. If that is a slice of a joined
array, the layer and whoever keeps the joined array keep the same memory. So the array is moved into the slice
before the layers at the end of a container that work in place: by the convolution before them, or by a copy.
"""

import inspect
from functools import cache

import numpy as np

from .. import _arguments as arguments


def run_into(layers, inputs, options, out):
    """Run layers one after the other, and return the result, which lies in `out`.

    Parameters
    ----------
    layers : list of Layer
    inputs : tuple
        Of the first layer.
    options : list of dict
        Of each layer.
    out : ndarray or function
        A function is called with an array and returns the one to put it into.
    """
    head, tail = _split(layers)
    for i, layer in enumerate(head, 1):
        placed = {"out": out} if i == len(head) and takes_out(layer, out) else {}
        result = layer(*inputs, **options[i - 1], **placed)
        inputs = result if isinstance(result, tuple) else (result,)
    x = place(inputs[0], out)
    for layer, own in zip(tail, options[len(head) :], strict=True):
        x = layer(x, **own)
    return x


def _split(layers):
    """Return the layers up to the last that does not work in place, and those after it."""
    end = len(layers)
    while end > 0 and layers[end - 1].works_in_place:
        end -= 1
    return layers[:end], layers[end:]


def takes_out(layer, out):
    """Return whether a call of a layer takes this ``out=``."""
    return _has_out(type(layer)) and (layer.places_result or isinstance(out, np.ndarray))


@cache
def _has_out(kind):
    return "out" in inspect.signature(kind.forward).parameters


def place(z, out):
    """Return z in `out`, copied there if it does not lie there.

    Raises
    ------
    TypeError, ValueError
        For an `out` of another shape or dtype than z, or that is read-only or saved by a context.
    """
    if not isinstance(out, np.ndarray):
        out = out(z)
    if same_place(z, out):
        return out
    arguments.output("out", out, z.shape, z.dtype, {"the array that is copied into it": z})
    out[...] = z
    return out


def same_place(array, view):
    """Return whether two arrays are the same memory, seen in the same way."""
    return (
        array.shape == view.shape
        and array.strides == view.strides
        and array.dtype == view.dtype
        and array.__array_interface__["data"][0] == view.__array_interface__["data"][0]
    )
