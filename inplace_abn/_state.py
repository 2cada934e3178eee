"""Conversion of arrays from files and other libraries when a state is loaded."""

from collections.abc import Mapping

import numpy as np


def check_mapping(name, state):
    """Raise a TypeError unless `state` maps names to arrays."""
    if not isinstance(state, Mapping):
        raise TypeError(
            f"{name} must be a mapping of names to arrays, such as a dict or numpy.load('file.npz'), "
            f"got {type(state).__name__}"
        )


def stored(value):
    """Return `value` as an array; dtype "V2" is converted to bfloat16.

    The .npy format has no name for bfloat16: NumPy writes it, and reads it, as raw data of two bytes.
    """
    array = np.asarray(value)
    if array.dtype == "V2":
        import ml_dtypes

        return array.view(ml_dtypes.bfloat16)
    return array


def mismatch(array, shape, dtype):
    """Return why an array does not fit a target of `shape` and `dtype`, as (kind, text), or None if it fits.

    As in PyTorch, floating dtypes are converted to each other, floats are truncated for an integer target,
    and shape (1,) fits shape ().
    """
    if array.shape != shape and (array.shape, shape) != ((1,), ()):
        return "size", f"expected shape {shape}, got {array.shape}"
    if np.can_cast(array.dtype, dtype, "same_kind"):
        return None
    if np.dtype(dtype).kind not in "iu" or not _is_real(array.dtype):
        return "dtype", f"{array.dtype} does not fit into {dtype}"
    if not np.isfinite(array).all():
        return "value", f"{array} does not fit into {dtype}"
    return None


def copy_into(target, array):
    """Copy an array that passed `mismatch` into `target`."""
    np.copyto(target, array.reshape(target.shape), casting="unsafe")


def converted(array, shape, dtype):
    """Return a copy of an array that passed `mismatch`, with `shape` and `dtype`."""
    target = np.empty(shape, dtype)
    copy_into(target, array)
    return target


def _is_real(dtype):
    return np.can_cast(dtype, np.float64, "same_kind")
