"""Checks of arguments that are arrays."""

import numpy as np

from .. import _core
from .._dtypes import FULL, cast_code, compute_dtype, is_half, is_supported
from .._shape_arrays import ShapeArray
from .choices import channel_axis as check_channel_axis
from .numbers import number


def plain_array(name, array):
    """Refuse objects that are not an array, and subclasses of arrays.

    The functions read the elements alone: a mask or unit would be dropped silently, and numpy.matrix defines
    another product. The C core accepts the same types and has the same messages.
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} must be a numpy.ndarray, got {type(array).__name__}")
    if type(array) not in (np.ndarray, np.memmap, ShapeArray):
        raise TypeError(
            f"{name} must be a plain numpy.ndarray or numpy.memmap, got '{type(array).__name__}'; pass "
            f"{name}.view(numpy.ndarray) if its data alone is meant"
        )


def batch(name, array, axes, ellipsis=False):
    """Check that `array` is float32, float64, float16 or bfloat16 and has the axes named.

    Parameters
    ----------
    name : str
        For messages.
    array : object
    axes : str
        The expected axes, such as "(N, C, H, W)".
    ellipsis : bool
        True if "..." in `axes` stands for any number of axes, including none.
    """
    plain_array(name, array)
    if not is_supported(array.dtype):
        raise TypeError(
            f"{name} must be float32, float64, float16 or ml_dtypes.bfloat16 in native byte order, got "
            f"{array.dtype}; pass {cast_code(name, FULL[0])}"
        )
    _check_axes(name, array, axes, ellipsis)


def _check_axes(name, array, axes, ellipsis=False):
    names = [axis for axis in axes.strip("()").split(",") if axis.strip()]
    if array.ndim < len(names) - 1 if ellipsis else array.ndim != len(names):
        raise ValueError(f"{name} must be of shape {axes}, got {array.shape}")


def image_batch(name, array, channel_axis):
    """Check that `array` is a batch of images, (N, C, H, W) or (N, H, W, C)."""
    axis = check_channel_axis("channel_axis", channel_axis)
    batch(name, array, "(N, C, H, W)" if axis == 1 else "(N, H, W, C)")


def channel_batch(name, array, channel_axis):
    """Check that `array` is a batch with channels, (N, C, ...) or (N, ..., C)."""
    axis = check_channel_axis("channel_axis", channel_axis)
    batch(name, array, "(N, C, ...)" if axis == 1 else "(N, ..., C)", ellipsis=True)


def channel_axis_hint(shape, channels, channel_axis):
    """Return a hint for an error message if the other axis of a batch has `channels` elements, else ""."""
    other = -channel_axis
    if shape[channel_axis] == channels or shape[other] != channels:
        return ""
    return f"; axis {other} of x has {channels}: pass channel_axis={other} if the channels are there"


def parameter(name, array, axes, dtype):
    """Check that a parameter has the axes named and the dtype of x, which is `dtype`.

    If `dtype` is a half type, float32 is accepted as well.
    """
    plain_array(name, array)
    if array.dtype != dtype and array.dtype != compute_dtype(dtype):
        if is_half(dtype):
            raise TypeError(f"{name} must be float32 or {dtype} for an x of {dtype}, got {array.dtype}")
        raise TypeError(
            f"{name} is {array.dtype} and x is {dtype}: both must have the same dtype; pass "
            f"{cast_code(name, dtype)}"
        )
    _check_axes(name, array, axes)


def same_shape(name, array, shape, reason):
    """Check that `array` has `shape`; the error message gives the `reason` for that shape."""
    if array.shape != shape:
        raise ValueError(f"{name} must be of shape {shape}, {reason}, got {array.shape}")


def gradient(name, dz, shape, dtype):
    """Check that `dz` has the shape and dtype of the result of the forward."""
    plain_array(name, dz)
    if dz.dtype != dtype:
        raise TypeError(
            f"{name} must be {dtype}, the dtype of the result of the forward, got {dz.dtype}; "
            f"pass {cast_code(name, dtype)}"
        )
    same_shape(name, dz, tuple(shape), "the shape of the result of the forward")


def loss_gradient(name, dz):
    """Return the gradient of a loss as a float."""
    if isinstance(dz, np.ndarray):
        plain_array(name, dz)
    if np.ndim(dz) != 0 or isinstance(dz, (str, bytes, type(None))):
        raise TypeError(f"{name} must be a number, the gradient of the loss, got {dz!r}")
    return number(name, dz)


def output(name, out, shape, dtype, inputs):
    """Check that a result of `shape` and `dtype` may be written to `out`.

    `inputs` is a dict of names to the arrays, or None, that `out` must not overlap.
    """
    plain_array(name, out)
    if out.dtype != dtype:
        raise TypeError(
            f"{name} must be {dtype}, the dtype of x, got {out.dtype}; pass {cast_code(name, dtype)}"
        )
    same_shape(name, out, tuple(shape), "the shape of the result")
    _core.refuse_if_saved(out, writer=f"{name}: the operation")
    if not out.flags.writeable:
        raise ValueError(f"{name} must be writeable, got a read-only array")
    if _overlaps_itself(out):
        raise ValueError(f"{name} overlaps itself, as a broadcast array does; pass a separate array")
    for other, array in inputs.items():
        if array is not None and _may_share_memory(out, array):
            raise ValueError(f"{name} overlaps {other}; pass a separate array")


def _may_share_memory(array, other):
    try:
        return np.shares_memory(array, other, max_work=10**6)
    except np.exceptions.TooHardError:
        return True


def _overlaps_itself(array):
    """Return True if two elements may share memory: a stride is less than the extent of the axes before."""
    extent = array.itemsize  # of one element, then of all axes with smaller strides
    for stride, length in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True)):
        if length > 1 and stride < extent:
            return True
        extent += stride * (length - 1)
    return False
