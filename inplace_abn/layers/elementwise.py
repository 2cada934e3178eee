"""Sums and products of arrays; a tape records these functions if it is active."""

import numbers

import numpy as np

from .. import _arguments as arguments
from .._dtypes import cast_code, compute_dtype
from ..ops._layout import order_of
from .function_layer import FunctionLayer, apply, in_order

#: Elements per block in sums of products: bounds the size of temporary arrays.
BLOCK = 1 << 15


def add(a, b):
    """Return ``a + b`` in a new array. Nothing is kept for the backward.

    Parameters
    ----------
    a, b : ndarray
        Of the same floating-point dtype, and of shapes that broadcast. One of them may be a number.

    Returns
    -------
    ndarray of the broadcast shape

    Raises
    ------
    TypeError, ValueError
        If dtypes differ or shapes do not broadcast.

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
    return apply(_Add(), a, b)


def mul(a, b):
    """Return ``a * b`` in a new array. Both inputs are kept for the backward.

    Parameters
    ----------
    a, b : ndarray
        Of the same floating-point dtype, and of shapes that broadcast, such as (N, C, H, W) and a gate
        (N, C, 1, 1). One of them may be a number.

    Returns
    -------
    ndarray of the broadcast shape

    Raises
    ------
    TypeError, ValueError
        If dtypes differ or shapes do not broadcast.

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
    return apply(_Mul(), a, b)


class _Elementwise(FunctionLayer):
    """An operation on two arrays, one of which may be a number."""

    def _checked(self, ctx, a, b):
        """Return both as arrays; store shapes and memory orders on ctx."""
        arrays = [value for value in (a, b) if not isinstance(value, numbers.Real)]
        for name, value in (("a", a), ("b", b)):
            if not arrays or not isinstance(value, numbers.Real):
                arguments.batch(name, value, "(...)", ellipsis=True)
        if len(arrays) == 2 and a.dtype != b.dtype:
            raise TypeError(
                f"a is {a.dtype} and b is {b.dtype}: both must have the same dtype; pass "
                f"{cast_code('b', a.dtype)}"
            )
        ctx.numbers = [isinstance(value, numbers.Real) for value in (a, b)]
        a, b = (np.asarray(value, arrays[0].dtype) for value in (a, b))
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
        """Return the gradients without those of numbers."""
        pairs = zip(gradients, ctx.numbers, strict=True)
        return tuple(gradient for gradient, is_number in pairs if not is_number)


class _Add(_Elementwise):
    function = "add"

    def forward(self, ctx, a, b):
        a, b = self._checked(ctx, a, b)
        return a + b

    def gradients(self, ctx, dz, *, overwrite=False):
        gradients = [
            in_order(_reduced(dz, shape), order) for shape, order in zip(ctx.shapes, ctx.orders, strict=True)
        ]
        return self._of_arrays(ctx, gradients)


class _Mul(_Elementwise):
    function = "mul"

    def forward(self, ctx, a, b):
        a, b = self._checked(ctx, a, b)
        ctx.save_for_backward(a=a, b=b)
        return a * b

    def gradients(self, ctx, dz, *, overwrite=False):
        others = ctx.saved["b"], ctx.saved["a"]
        gradients = [None, None]
        # Products that are summed come first, since the last product may be written over dz.
        for i in sorted((0, 1), key=lambda i: ctx.shapes[i] == dz.shape):
            if ctx.shapes[i] != dz.shape:
                gradients[i] = _sum_of_products(dz, others[i], ctx.shapes[i])
                continue
            is_last_use = gradients[1 - i] is not None or ctx.shapes[1 - i] != dz.shape
            may_overwrite = overwrite and is_last_use and dz.flags.writeable and ctx.orders[i].has(dz)
            out = dz if may_overwrite else ctx.orders[i].empty(dz.shape, dz.dtype)
            gradients[i] = np.multiply(dz, others[i], out=out)
        return self._of_arrays(ctx, gradients)


def _reduced(dz, shape):
    """Sum a gradient over the axes along which an array of `shape` was broadcast."""
    if dz.shape == shape:
        return dz
    added = dz.ndim - len(shape)  # axes that broadcasting has put before those of the array
    axes = tuple(i for i in range(dz.ndim) if i < added or shape[i - added] != dz.shape[i])
    return dz.sum(axis=axes, dtype=np.float64).reshape(shape).astype(dz.dtype)


def _sum_of_products(dz, other, shape):
    """Return ``dz * other`` summed to `shape`, in blocks of rows: no temporary array of the size of dz."""
    padded = (1,) * (dz.ndim - len(shape)) + shape
    total = np.zeros(padded, np.float64)
    other = np.broadcast_to(other, dz.shape)
    axes = tuple(i for i in range(1, dz.ndim) if padded[i] != dz.shape[i])
    step = max(1, BLOCK * len(dz) // max(1, dz.size))
    for first in range(0, len(dz), step):
        rows = slice(first, first + step)
        products = np.multiply(dz[rows], other[rows], dtype=compute_dtype(dz.dtype))
        products = products.sum(axis=axes, keepdims=True, dtype=np.float64)
        if padded[0] == len(dz):
            total[rows] += products
        else:
            total += products.sum(axis=0, keepdims=True)
    return total.reshape(shape).astype(dz.dtype)
