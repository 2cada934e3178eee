"""Sums, products and joined channels of arrays: recorded while a tape is on, plain functions otherwise."""

import numbers
from itertools import pairwise

import numpy as np

from ..ops import _arguments as arguments
from ..ops._layout import order_of
from .base import Layer
from .context import no_grad
from .recorded_arrays import share_memory
from .recorder import active
from .saved_arrays import refuse_if_saved

#: Elements that are multiplied at a time where products are summed, so that temporaries stay small.
CHUNK = 1 << 15


def add(a, b):
    """Return ``a + b``, in a fresh array. Its backward keeps nothing.

    Parameters
    ----------
    a, b : ndarray
        Of one floating dtype, and of shapes that broadcast. One of them may be a number.

    Returns
    -------
    ndarray

    Raises
    ------
    TypeError, ValueError
        For other dtypes or shapes.

    Examples
    --------
    >>> import numpy as np
    >>> from inplace_abn import layers
    >>> a, b = np.ones((2, 3)), np.full((2, 1), 5.0)
    >>> with layers.record(a, b) as tape:
    ...     z = layers.add(a, b)
    >>> da, db = tape.backward(np.ones((2, 3)))
    >>> db
    array([[3.],
           [3.]])
    """
    return _apply(_Add(), a, b)


def mul(a, b):
    """Return ``a * b``, in a fresh array. Both are kept for the backward.

    Parameters
    ----------
    a, b : ndarray
        Of one floating dtype, and of shapes that broadcast, such as (N, C, H, W) and a gate (N, C, 1, 1).
        One of them may be a number.

    Returns
    -------
    ndarray

    Raises
    ------
    TypeError, ValueError
        For other dtypes or shapes.

    Examples
    --------
    >>> import numpy as np
    >>> from inplace_abn import layers
    >>> a, b = np.ones((2, 3)), np.full((2, 1), 5.0)
    >>> with layers.record(a, b) as tape:
    ...     z = layers.mul(a, b)
    >>> da, db = tape.backward(np.ones((2, 3)))
    >>> da[0], db[0]
    (array([5., 5., 5.]), array([3.]))
    """
    return _apply(_Mul(), a, b)


def concat(arrays, *, channel_axis=1, out=None):
    """Return arrays joined along their channels.

    Joined arrays have the channels of each as a slice. With `out`, an array that is such a slice of `out`
    already is not copied: a layer wrote it there, in place or by ``out=``. So an array that a layer keeps
    is not kept twice, in itself and in the joined array.

    Parameters
    ----------
    arrays : sequence of ndarray
        Of one floating dtype, and of equal shapes but for the channels.
    channel_axis : {1, -1}
    out : ndarray, optional
        The joined array. What is not in it yet is copied into it.

    Returns
    -------
    ndarray
        `out`, or a fresh array.

    Raises
    ------
    TypeError, ValueError
        For dtypes or shapes that do not fit together; for an `out` that overlaps an array elsewhere than in
        its slice, or that a context keeps where something is to be copied to.

    Examples
    --------
    >>> import numpy as np
    >>> from inplace_abn import layers
    >>> joined = np.ones((2, 5, 4, 4), np.float32)
    >>> left = layers.InPlaceABN(3)(joined[:, :3])
    >>> layers.concat([left, np.zeros((2, 2, 4, 4), np.float32)], out=joined) is joined
    True
    """
    arguments.channel_axis_of(channel_axis)
    arrays = list(arrays)
    slices = _channel_slices(arrays, channel_axis)
    if out is None:
        return _apply(_Concat(channel_axis), *arrays)
    _check_out(arrays, slices, out, channel_axis)
    views = [out[index] for index in slices]
    for i, (array, view) in enumerate(zip(arrays, views, strict=True)):
        if not same_place(array, view):
            refuse_if_saved(view, f"arrays[{i}] of layers.concat, copied into out,")
    placed = [
        array if same_place(array, view) else _apply(_Copy(), array, out=view)
        for array, view in zip(arrays, views, strict=True)
    ]
    return _apply(_Concat(channel_axis, out), *placed)


def _apply(operation, *arrays, **options):
    """Call an operation: recorded while a tape is on, otherwise without keeping anything."""
    if active.tape is not None:
        return operation(*arrays, **options)
    with no_grad():
        return operation(*arrays, **options)


# ---- the operations, as layers -----------------------------------------------------------------------------


class _Operation(Layer):
    """A layer for one call of a function."""

    function = ""

    @property
    def label(self):
        return f"layers.{self.function}"


class _Elementwise(_Operation):
    """An operation on two arrays, one of which may be a number."""

    def _checked(self, ctx, a, b):
        """Return both as arrays, and note what the backward needs to know of them."""
        found = [value for value in (a, b) if not isinstance(value, numbers.Real)]
        for name, value in (("a", a), ("b", b)):
            if len(found) == 0 or not isinstance(value, numbers.Real):
                arguments.batch(name, value, "(...)", leading=True)
        if len(found) == 2 and a.dtype != b.dtype:
            raise TypeError(
                f"a is {a.dtype} and b is {b.dtype}: both must be of one dtype; pass "
                f"{arguments.cast('b', a.dtype)}"
            )
        ctx.numbers = [isinstance(value, numbers.Real) for value in (a, b)]
        a, b = (np.asarray(value, found[0].dtype) for value in (a, b))
        try:
            np.broadcast_shapes(a.shape, b.shape)
        except ValueError:
            raise ValueError(
                f"b: expected a shape that broadcasts with that of a, {a.shape}, got {b.shape}"
            ) from None
        ctx.orders = [order_of(value) for value in (a, b)]
        ctx.shapes = a.shape, b.shape
        return a, b

    def _of_arrays(self, ctx, gradients):
        """Leave out what belongs to numbers."""
        return tuple(one for one, number in zip(gradients, ctx.numbers, strict=True) if not number)


class _Add(_Elementwise):
    function = "add"

    def forward(self, ctx, a, b):
        a, b = self._checked(ctx, a, b)
        return a + b

    def gradients(self, ctx, dz, *, overwrite=False):
        found = [
            _ordered(_reduced(dz, shape), order) for shape, order in zip(ctx.shapes, ctx.orders, strict=True)
        ]
        return self._of_arrays(ctx, found)


class _Mul(_Elementwise):
    function = "mul"

    def forward(self, ctx, a, b):
        a, b = self._checked(ctx, a, b)
        ctx.save_for_backward(a=a, b=b)
        return a * b

    def gradients(self, ctx, dz, *, overwrite=False):
        others = ctx.saved["b"], ctx.saved["a"]
        found = [None, None]
        # What is summed comes first: the last product may be written over dz.
        for i in sorted((0, 1), key=lambda i: ctx.shapes[i] == dz.shape):
            if ctx.shapes[i] != dz.shape:
                found[i] = _sum_of_products(dz, others[i], ctx.shapes[i])
                continue
            last = overwrite and (found[1 - i] is not None or ctx.shapes[1 - i] != dz.shape)
            fits = last and dz.flags.writeable and ctx.orders[i].has(dz)
            out = dz if fits else ctx.orders[i].empty(dz.shape, dz.dtype)
            found[i] = np.multiply(dz, others[i], out=out)
        return self._of_arrays(ctx, found)


class _Copy(_Operation):
    function = "concat"
    returns_input = True

    def forward(self, ctx, x, out):
        ctx.order = order_of(x)
        out[...] = x
        return out

    def gradients(self, ctx, dz, *, overwrite=False):
        return _ordered(dz, ctx.order)


class _Concat(_Operation):
    function = "concat"

    def __init__(self, channel_axis, joined=None):
        self._axis, self._joined = channel_axis, joined

    def forward(self, ctx, *arrays):
        ctx.slices = _channel_slices(arrays, self._axis)
        return np.concatenate(arrays, self._axis) if self._joined is None else self._joined

    def gradients(self, ctx, dz, *, overwrite=False):
        return tuple(dz[index] for index in ctx.slices)


# ---- gradients ---------------------------------------------------------------------------------------------


def _reduced(dz, shape):
    """Sum a gradient over the axes along which an array of `shape` was broadcast."""
    if dz.shape == shape:
        return dz
    lead = dz.ndim - len(shape)
    axes = tuple(i for i in range(dz.ndim) if i < lead or shape[i - lead] != dz.shape[i])
    return dz.sum(axis=axes, dtype=np.float64).reshape(shape).astype(dz.dtype)


def _sum_of_products(dz, other, shape):
    """Return dz * other, summed to `shape`, without an array of the size of dz."""
    padded = (1,) * (dz.ndim - len(shape)) + shape
    total = np.zeros(padded, np.float64)
    other = np.broadcast_to(other, dz.shape)
    axes = tuple(i for i in range(1, dz.ndim) if padded[i] != dz.shape[i])
    step = max(1, CHUNK * len(dz) // max(1, dz.size))
    for first in range(0, len(dz), step):
        rows = slice(first, first + step)
        wide = arguments.arithmetic(dz.dtype)
        products = np.multiply(dz[rows], other[rows], dtype=wide).sum(
            axis=axes, keepdims=True, dtype=np.float64
        )
        if padded[0] == len(dz):
            total[rows] += products
        else:
            total += products.sum(axis=0, keepdims=True)
    return total.reshape(shape).astype(dz.dtype)


def _ordered(gradient, order):
    """Return a gradient in a memory order: itself if it has that."""
    if order.has(gradient):
        return gradient
    result = order.empty(gradient.shape, gradient.dtype)
    result[...] = gradient
    return result


# ---- channels ----------------------------------------------------------------------------------------------


def _channel_slices(arrays, channel_axis):
    """Return the index of each array in the joined one, having checked that they fit together."""
    if not arrays:
        raise ValueError("arrays: expected at least one array, got none")
    for i, array in enumerate(arrays):
        arguments.batch(
            f"arrays[{i}]", array, "(N, C, ...)" if channel_axis == 1 else "(N, ..., C)", leading=True
        )
        if array.ndim < 2:
            raise ValueError(f"arrays[{i}]: expected at least 2 dimensions, got shape {array.shape}")
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
    ends = np.cumsum([0, *(array.shape[channel_axis] for array in arrays)]).tolist()
    slices = [slice(*pair) for pair in pairwise(ends)]
    return [(slice(None), index) if channel_axis == 1 else (..., index) for index in slices]


def _check_out(arrays, slices, out, channel_axis):
    """Refuse an `out` that is not an array for the joined channels, before anything is written."""
    arguments.plain("out", out)
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


def same_place(array, view):
    """Return whether two arrays are the same memory, seen in the same way."""
    return (
        array.shape == view.shape
        and array.strides == view.strides
        and array.__array_interface__["data"][0] == view.__array_interface__["data"][0]
    )
