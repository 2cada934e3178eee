"""Run layers so that the result is written to a given array, such as a slice of a joined array.

A layer that works in place returns its input array, and keeps it. If that array is a slice of a joined array
which the next layer keeps, both keep the same memory. So the input of the in-place layers at the end of a
container is written to the slice: by the convolution before them, or by a copy.
"""

import inspect
from functools import cache

import numpy as np

from .. import _arguments as arguments


def run_into(layers, inputs, options, out):
    """Run layers in sequence, with the result in `out`.

    Parameters
    ----------
    layers : list of Layer
    inputs : tuple
        The inputs of the first layer.
    options : list of dict
        The keyword arguments of each layer.
    out : ndarray or function
        A function maps an array to the array that it is copied to.

    Returns
    -------
    ndarray
        `out`, or the result of that function.
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
    """Return (layers up to the last one that does not work in place, the in-place layers after it)."""
    end = len(layers)
    while end > 0 and layers[end - 1].works_in_place:
        end -= 1
    return layers[:end], layers[end:]


def takes_out(layer, out):
    """Return True if a call of a layer takes this ``out=``."""
    return _has_out(type(layer)) and (layer.places_result or isinstance(out, np.ndarray))


@cache
def _has_out(kind):
    return "out" in inspect.signature(kind.forward).parameters


def place(z, out):
    """Return z in `out`: copy it there unless both are the same memory.

    Raises
    ------
    TypeError, ValueError
        If `out` has another shape or dtype than z, is read-only, or is saved by a context.
    """
    if not isinstance(out, np.ndarray):
        out = out(z)
    if same_place(z, out):
        return out
    arguments.output("out", out, z.shape, z.dtype, {"the array that is copied into it": z})
    out[...] = z
    return out


def same_place(array, view):
    """Return True if two arrays have the same memory, shape, strides and dtype."""
    return (
        array.shape == view.shape
        and array.strides == view.strides
        and array.dtype == view.dtype
        and array.__array_interface__["data"][0] == view.__array_interface__["data"][0]
    )


def copy_if_shared(result, inputs):
    """Return a result, copied if it shares memory with an input."""
    if isinstance(result, np.ndarray) and any(np.may_share_memory(result, array) for array in inputs):
        return result.copy(order="K")
    return result
