"""Tables of the arrays made by outermost calls, and of the gradients of these arrays.

With them, ``layer.backward(dz)`` finds its call from `dz`: if `dz` was returned by the backward of the next
layer, it belongs to the array which that layer took, and so to the call that made that array.

Arrays are found by identity. The tables keep no array and no call alive.
"""

import weakref

import numpy as np

_results = {}  # id of an array -> its _Entry, with a weak reference to the outermost call that made it
_gradients = {}  # id of a gradient -> its _Entry, with the call that made the array it is the gradient of


class _Entry(weakref.ref):
    """Weak reference to an array, and a weak reference to the call that it belongs to."""

    __slots__ = ("call", "key")


def _remove_result(reference):
    _results.pop(reference.key, None)


def _remove_gradient(reference):
    _gradients.pop(reference.key, None)


def note_result(array, call):
    """Enter an array that a call returned.

    Parameters
    ----------
    array : ndarray
    call : weakref.ref of Call

    Returns
    -------
    weakref.ref of the array
    """
    reference, key = _Entry(array, _remove_result), id(array)
    reference.key, reference.call = key, call
    _results[key] = reference
    return reference


def producer_of(array):
    """Return a weak reference to the outermost call that made an array, or None."""
    found = _results.get(id(array))
    return found.call if found is not None and found() is array else None


def note_gradients(gradients, producers):
    """Enter the gradients that a backward returned.

    Parameters
    ----------
    gradients : ndarray or tuple
    producers : sequence of weakref.ref of Call or None
        The calls that made the inputs which the gradients belong to.
    """
    if not isinstance(gradients, tuple):
        gradients = (gradients,)
    for gradient, producer in zip(gradients, producers, strict=False):
        if not isinstance(gradient, np.ndarray):
            continue
        if producer is not None:
            reference = _gradients[id(gradient)] = _Entry(gradient, _remove_gradient)
            reference.key, reference.call = id(gradient), producer
        elif _gradients:
            _gradients.pop(id(gradient), None)


def producer_of_input(gradient):
    """Return the call that made the array whose gradient this is, or None.

    Parameters
    ----------
    gradient : ndarray, or tuple of ndarray and None
        Only the first array of a tuple is looked up.
    """
    if isinstance(gradient, tuple):
        gradient = next((part for part in gradient if part is not None), None)
    found = _gradients.get(id(gradient))
    return found.call() if found is not None and found() is gradient else None
