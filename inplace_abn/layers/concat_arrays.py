"""Concatenation along the channels; a tape records these functions if it is active."""

from itertools import pairwise

import numpy as np

from .. import _arguments as arguments
from .._arguments import integer
from ..ops._layout import layout_of, order_of
from .function_layer import FunctionLayer, apply, in_order
from .placing import place, same_place
from .recorded_arrays import share_memory
from .saved_arrays import refuse_if_saved


def concat(arrays, *, channel_axis=1, out=None):
    """Concatenate arrays along their channels.

    Each array becomes a slice of the joined array. With `out`, an array that a layer has already written to
    its slice, in place or by ``out=``, is not copied. If a layer keeps that array, no additional memory is
    used for it.

    Parameters
    ----------
    arrays : sequence of ndarray of shape (N, C, ...), or (N, ..., C) with ``channel_axis=-1``
        Of one floating-point dtype. All axes but that of the channels are equal.
    channel_axis : {1, -1}
    out : ndarray, optional
        The joined array. Arrays that are not in their slice are copied into it.

    Returns
    -------
    ndarray
        `out`, or a new array.

    Raises
    ------
    TypeError, ValueError
        If dtypes or shapes do not fit; if `out` overlaps an array outside of its slice; if a context keeps
        the memory of a slice that would be written.

    Examples
    --------
    >>> import numpy as np
    >>> from inplace_abn import layers
    >>> joined = np.ones((2, 5, 4, 4), np.float32)
    >>> left = layers.InPlaceABN(3)(joined[:, :3])
    >>> layers.concat([left, np.zeros((2, 2, 4, 4), np.float32)], out=joined) is joined
    True
    """
    arguments.channel_axis("channel_axis", channel_axis)
    arrays = list(arrays)
    slices = channel_slices(arrays, channel_axis)
    if out is None:
        return apply(_Concat(channel_axis), *arrays)
    _check_out(arrays, slices, out, channel_axis)
    views = [out[index] for index in slices]
    for i, (array, view) in enumerate(zip(arrays, views, strict=True)):
        if not same_place(array, view):
            refuse_if_saved(view, f"copying arrays[{i}] into out")
    placed = [
        array if same_place(array, view) else apply(_Copy(), array, out=view)
        for array, view in zip(arrays, views, strict=True)
    ]
    return apply(_Concat(channel_axis, out), *placed)


def joined_array(x, channels, *, channel_axis=1):
    """Allocate an array for the result of `concat`, and return it with its slices.

    Parameters
    ----------
    x : ndarray of shape (N, C, ...), or (N, ..., C) with ``channel_axis=-1``
        Its dtype, memory layout and shape, except for the channels, are those of the new array.
    channels : sequence of int
        Number of channels of each slice.
    channel_axis : {1, -1}

    Returns
    -------
    joined : ndarray
        Not initialized.
    parts : list of ndarray
        Views of `joined`: pass each as ``out=`` to a layer, and ``out=joined`` to `concat`.

    Raises
    ------
    TypeError, ValueError
        If `x` is not a batch, or `channels` are not integers of at least 1.

    Examples
    --------
    >>> import numpy as np
    >>> from inplace_abn import layers
    >>> conv, abn = layers.Conv2d(3, 8, 1), layers.InPlaceABN(8)
    >>> x = np.ones((2, 3, 4, 4), np.float32)
    >>> joined, (left, right) = layers.joined_array(x, (8, 3))
    >>> z = layers.concat([abn(conv(x, out=left)), x], out=joined)
    >>> z is joined, z.shape
    (True, (2, 11, 4, 4))
    """
    arguments.channel_batch("x", x, channel_axis)
    channels = [integer("channels", number, least=1) for number in channels]
    shape = list(x.shape)
    shape[channel_axis] = sum(channels)
    joined = layout_of(x, channel_axis).empty(tuple(shape), x.dtype)
    return joined, [joined[index] for index in _slices(channels, channel_axis)]


# ---- the operations, as layers -----------------------------------------------------------------------------


class _Copy(FunctionLayer):
    function = "concat"
    returns_input = True

    def forward(self, ctx, x, out):
        ctx.order = order_of(x)
        return place(x, out)

    def gradients(self, ctx, dz, *, overwrite=False):
        return in_order(dz, ctx.order)


class _Concat(FunctionLayer):
    function = "concat"

    def __init__(self, channel_axis, joined=None):
        self.channel_axis, self._joined = channel_axis, joined

    def forward(self, ctx, *arrays):
        ctx.slices = channel_slices(arrays, self.channel_axis)
        return np.concatenate(arrays, self.channel_axis) if self._joined is None else self._joined

    def gradients(self, ctx, dz, *, overwrite=False):
        return tuple(dz[index] for index in ctx.slices)


# ---- checks ------------------------------------------------------------------------------------------------


def channel_slices(arrays, channel_axis):
    """Check that arrays can be joined, and return the index of each in the joined array."""
    if not arrays:
        raise ValueError("arrays: expected at least one array, got none")
    for i, array in enumerate(arrays):
        arguments.channel_batch(f"arrays[{i}]", array, channel_axis)
    first = arrays[0]
    for i, array in enumerate(arrays):
        if array.dtype != first.dtype:
            raise TypeError(
                f"arrays[{i}]: expected dtype {first.dtype} as that of arrays[0], got {array.dtype}"
            )
        expected = list(first.shape)
        if array.ndim == first.ndim:
            expected[channel_axis] = array.shape[channel_axis]
        if array.shape != tuple(expected):
            raise ValueError(
                f"arrays[{i}]: expected the shape of arrays[0], {first.shape}, apart from axis "
                f"{channel_axis}, got {array.shape}"
            )
    return _slices([array.shape[channel_axis] for array in arrays], channel_axis)


def _slices(channels, channel_axis):
    """Return the indices of slices with these numbers of channels."""
    slices = [slice(*pair) for pair in pairwise(np.cumsum([0, *channels]).tolist())]
    return [(slice(None), part) if channel_axis == 1 else (..., part) for part in slices]


def _check_out(arrays, slices, out, channel_axis):
    """Check `out` before anything is written."""
    arguments.plain_array("out", out)
    shape = list(arrays[0].shape)
    shape[channel_axis] = sum(array.shape[channel_axis] for array in arrays)
    if out.shape != tuple(shape) or out.dtype != arrays[0].dtype:
        raise ValueError(
            f"out: expected shape {tuple(shape)} and dtype {arrays[0].dtype}, got {out.shape} and {out.dtype}"
        )
    for i, (array, index) in enumerate(zip(arrays, slices, strict=True)):
        if same_place(array, out[index]):
            continue
        if not out.flags.writeable:
            raise ValueError(
                f"out: expected a writeable array, since arrays[{i}] is copied into it; it is read-only"
            )
        if share_memory(array, out):
            raise ValueError(
                f"arrays[{i}] overlaps out, but is not its slice of channels {index[-1].start} to "
                f"{index[-1].stop}; write it to that slice, or call concat without out"
            )
