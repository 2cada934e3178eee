"""Checks of the arguments of operations, and their error messages."""

import numpy as np

from .. import _core
from .._numbers import number

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def plain(name, array):
    """Refuse objects that are no array, and subclasses of arrays.

    Operations read elements alone: masks and units would get lost, and a numpy.matrix multiplies differently.
    The compiled core takes the same types and has the same messages.
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} must be a numpy.ndarray, got {type(array).__name__}")
    if type(array) not in (np.ndarray, np.memmap):
        raise TypeError(
            f"{name} must be a plain numpy.ndarray or numpy.memmap, got '{type(array).__name__}'; pass "
            f"{name}.view(numpy.ndarray) if its data alone is meant"
        )


def _axes(name, array, axes, leading=False):
    names = [axis for axis in axes.strip("()").split(",") if axis.strip()]
    if array.ndim < len(names) - 1 if leading else array.ndim != len(names):
        raise ValueError(f"{name} must be of shape {axes}, got {array.shape}")


def is_half(dtype):
    """Return True for float16 and ml_dtypes.bfloat16."""
    return dtype == np.float16 or dtype.name == "bfloat16"


def arithmetic(dtype):
    """Return the dtype in which arrays of `dtype` are computed: float32 for half types, else `dtype`."""
    return np.dtype(np.float32) if is_half(dtype) else dtype


def batch(name, array, axes, leading=False):
    """Check that `array` is float32, float64, float16 or bfloat16, with the axes named.

    Parameters
    ----------
    name : str
        For messages.
    array : object
    axes : str
        Its shape as it is written, such as "(N, C, H, W)".
    leading : bool
        True if "..." in `axes` stands for any number of axes.
    """
    plain(name, array)
    if (array.dtype not in DTYPES and not is_half(array.dtype)) or not array.dtype.isnative:
        raise TypeError(
            f"{name} must be float32, float64, float16 or ml_dtypes.bfloat16 in native byte order, got "
            f"{array.dtype}; pass {cast(name, DTYPES[0])}"
        )
    _axes(name, array, axes, leading)


def parameter(name, array, axes, dtype):
    """Check that `array` may be a parameter for an x of `dtype`, with the axes named.

    It has x's dtype, or is float32 for an x of a half type.
    """
    plain(name, array)
    if array.dtype != dtype and array.dtype != arithmetic(dtype):
        if is_half(dtype):
            raise TypeError(f"{name} must be float32 or {dtype} for an x of {dtype}, got {array.dtype}")
        raise TypeError(
            f"{name} is {array.dtype} and x is {dtype}: both must be of one dtype; pass {cast(name, dtype)}"
        )
    _axes(name, array, axes)


def cast(name, dtype):
    """Return the code that converts the array `name` to a dtype, which may be ml_dtypes.bfloat16."""
    kind = np.dtype(dtype).type
    return f"{name}.astype({kind.__module__}.{kind.__name__})"


def same_shape(name, array, shape, reason):
    """Check that `array` has `shape`; `reason` says in the message where that comes from."""
    if array.shape != shape:
        raise ValueError(f"{name} must be of shape {shape}, {reason}, got {array.shape}")


def gradient(name, dz, shape, dtype):
    """Check that `dz` fits the result of the forward."""
    plain(name, dz)
    if dz.dtype != dtype:
        raise TypeError(
            f"{name} must be {dtype} as the result of the forward was, got {dz.dtype}; "
            f"pass {cast(name, dtype)}"
        )
    same_shape(name, dz, tuple(shape), "as the result of the forward was")


def loss_gradient(name, dz):
    """Return the gradient of a loss as a float."""
    if isinstance(dz, np.ndarray):
        plain(name, dz)
    if np.ndim(dz) != 0 or isinstance(dz, (str, bytes, type(None))):
        raise TypeError(f"{name} must be a number, the gradient of the loss, got {dz!r}")
    return number(name, dz)


def channel_axis_of(channel_axis):
    """Check `channel_axis` and return it."""
    if isinstance(channel_axis, bool) or channel_axis not in (1, -1):
        raise ValueError(
            f"channel_axis must be 1, for (N, C, ...), or -1, for (N, ..., C), got {channel_axis!r}"
        )
    return channel_axis


def elsewhere(shape, channels, channel_axis):
    """Return a hint for a message if the channels of a batch are at the other channel axis, else ""."""
    other = -channel_axis
    if shape[channel_axis] == channels or shape[other] != channels:
        return ""
    return f"; axis {other} of x has {channels}: channel_axis={other} is for channels there"


def images(channel_axis):
    """Return the names of the axes of a batch of images."""
    return "(N, C, H, W)" if channel_axis == 1 else "(N, H, W, C)"


def result(name, out, shape, dtype, inputs):
    """Check that a result of `shape` and `dtype` may be written to `out`.

    `inputs` are the arrays that it must not overlap, by name.
    """
    plain(name, out)
    if out.dtype != dtype:
        raise TypeError(f"{name} must be {dtype} as x is, got {out.dtype}; pass {cast(name, dtype)}")
    same_shape(name, out, tuple(shape), "as the result has")
    _core.refuse_if_saved(out, writer=f"{name}: the operation")
    if not out.flags.writeable:
        raise ValueError(f"{name} must be writeable, got a read-only array")
    if _overlaps_itself(out):
        raise ValueError(f"{name} overlaps itself, as a broadcast array does; pass an array of its own")
    for other, array in inputs.items():
        if array is not None and _share_memory(out, array):
            raise ValueError(f"{name} overlaps {other}; pass an array of its own")


def _share_memory(array, other):
    try:
        return np.shares_memory(array, other, max_work=10**6)
    except np.exceptions.TooHardError:
        return True


def _overlaps_itself(array):
    """Return whether two elements may share memory: a stride does not exceed what the smaller ones span."""
    span = array.itemsize
    for stride, length in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True)):
        if length > 1 and stride < span:
            return True
        span += stride * (length - 1)
    return False
