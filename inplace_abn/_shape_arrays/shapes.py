"""Arithmetic of shapes: what NumPy decides from shapes and strides alone."""

import math

import numpy as np


def completed(shape, size):
    """Return a shape with -1 replaced by the number that is left."""
    known = math.prod(length for length in shape if length != -1)
    return tuple(size // max(1, known) if length == -1 else length for length in shape)


def has_view(array, shape):
    """Return True if an array can be reshaped without a copy.

    Axes of the array and of the result are taken together until their lengths agree. The axes of the array in
    such a group must follow each other in memory. NumPy 2.0 would copy in order to find out.
    """
    if array.flags.c_contiguous or array.size == 0:
        return True
    old = [(n, stride) for n, stride in zip(array.shape, array.strides, strict=True) if n != 1]
    new = iter([n for n in shape if n != 1])
    while old:
        (length, stride), wanted = old.pop(0), next(new)
        while length != wanted:
            if length > wanted:
                wanted *= next(new)
                continue
            n, following = old.pop(0)
            if stride != n * following:
                return False
            length, stride = length * n, following
    return True


def is_advanced(index):
    """Return True for an index that contains arrays or lists, whose result is no view."""
    return any(isinstance(part, (np.ndarray, list)) for part in _parts(index))


def selected_shape(shape, index):
    """Return the shape of what an index of integer arrays selects from an array.

    Raises
    ------
    TypeError
        For an array of bools, since the size of the result depends on its values.
    """
    if any(np.asarray(part).dtype == bool for part in _parts(index) if isinstance(part, (np.ndarray, list))):
        raise TypeError("a plan has shapes alone, and the size of a result depends on a mask of bools")
    # The index is applied to an array of one byte per element, whose result alone takes memory.
    return np.broadcast_to(np.zeros((), np.int8), shape)[index].shape


def _parts(index):
    return index if isinstance(index, tuple) else (index,)
