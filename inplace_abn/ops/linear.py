"""Fully connected layer: a matrix product."""

import math

import numpy as np

from .. import _arguments as arguments
from .._dtypes import compute_dtype, is_half
from ._blocks import widened
from ._layout import order_of

#: Number of elements in a block of rows of a half type, which is converted to float32.
BLOCK = 1 << 17


def forward(ctx, x, weight, bias=None, *, weight_gradient=True):
    """Linear map of the last axis: ``z = x @ weight.T + bias``.

    Parameters
    ----------
    ctx : LayerContext
    x : ndarray of shape (N, ..., features)
        float32, float64, float16 or bfloat16; read only, and kept for the gradient of the weight.
    weight : ndarray of shape (outputs, features)
        dtype of x, or float32 for a half type. Not copied: the backward reads the same array.
    bias : ndarray of shape (outputs,), optional
        dtype of x, or float32 for a half type.
    weight_gradient : bool
        False for a frozen weight: the backward returns None for its gradient, and x is not kept.

    Returns
    -------
    z : ndarray of shape (N, ..., outputs)
        A fresh array with dtype and memory layout of x. Half types are computed in float32 and rounded once.

    Raises
    ------
    TypeError, ValueError
        For other dtypes, and shapes that do not match.

    Examples
    --------
    >>> import numpy as np
    >>> from inplace_abn.layers import LayerContext
    >>> ctx = LayerContext()
    >>> forward(ctx, np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]]), np.array([0.5]))
    array([[11.5]])
    >>> backward(ctx, np.array([[1.0]]))
    (array([[3., 4.]]), array([[1., 2.]]), array([1.]))
    """
    arguments.batch("x", x, "(N, ..., features)", ellipsis=True)
    arguments.parameter("weight", weight, "(outputs, features)", x.dtype)
    if weight.shape[1] != x.shape[-1]:
        raise ValueError(
            f"weight of shape {weight.shape} requires {weight.shape[1]} features; x of shape {x.shape} has "
            f"{x.shape[-1]}"
        )
    if bias is not None:
        arguments.parameter("bias", bias, "(outputs,)", x.dtype)
        arguments.same_shape("bias", bias, weight.shape[:1], f"one per output of weight {weight.shape}")
    if weight_gradient:
        ctx.save_for_backward(input=x)
    ctx.weight, ctx.bias_dtype = weight, None if bias is None else bias.dtype
    ctx.input_shape, ctx.dtype, ctx.layout = x.shape, x.dtype, order_of(x)
    ctx.weight_gradient = weight_gradient
    z = _product(ctx, _rows(x), widened(weight).T, None if bias is None else widened(bias))
    return _in_layout(ctx, z, (*x.shape[:-1], len(weight)))


def backward(ctx, dz, *, overwrite=False):
    """Gradients of x, weight and bias.

    ``dx = dz @ weight``, ``dweight = dz.T @ x`` and ``dbias = sum(dz)``.

    Parameters
    ----------
    ctx : LayerContext
        From `forward`.
    dz : ndarray
        Shape and dtype of z; read only.
    overwrite : bool
        Ignored: dx has another shape than dz.

    Returns
    -------
    dx : ndarray
        A fresh array in the memory layout of x.
    dweight, dbias : ndarray or None
        Fresh arrays with the dtypes of the parameters. None with ``weight_gradient=False``, and for a missing
        bias.

    Raises
    ------
    TypeError, ValueError
        If dz does not have the shape and dtype of z.
    """
    arguments.gradient("dz", dz, (*ctx.input_shape[:-1], len(ctx.weight)), ctx.dtype)
    gradient = _rows(dz)
    dx = _in_layout(ctx, _product(ctx, gradient, widened(ctx.weight)), ctx.input_shape)
    dweight = dbias = None
    if ctx.weight_gradient:
        dweight = _weight_gradient(gradient, _rows(ctx.saved["input"])).astype(ctx.weight.dtype, copy=False)
    if ctx.bias_dtype is not None:
        dbias = gradient.sum(axis=0, dtype=compute_dtype(dz.dtype)).astype(ctx.bias_dtype, copy=False)
    return dx, dweight, dbias


def _product(ctx, rows, matrix, bias=None):
    """Return ``rows @ matrix + bias``, rounded to the dtype of the rows."""
    out = np.empty((len(rows), matrix.shape[1]), rows.dtype, like=rows)
    for block in _row_blocks(rows, matrix.shape[1]):
        product = np.matmul(
            widened(rows[block]), matrix, out=out[block] if matrix.dtype == out.dtype else None
        )
        if bias is not None:
            product += bias
        if product.dtype != out.dtype:
            out[block] = product
            ctx.temporary(product.nbytes + matrix.nbytes)
    return out


def _weight_gradient(gradient, rows):
    """Return ``gradient.T @ rows``, in float32 for half types."""
    blocks = _row_blocks(rows, gradient.shape[1])
    if len(blocks) == 1:
        return np.matmul(widened(gradient).T, widened(rows))
    total = np.zeros((gradient.shape[1], rows.shape[1]), compute_dtype(rows.dtype), like=rows)
    for block in blocks:
        total += np.matmul(widened(gradient[block]).T, widened(rows[block]))
    return total


def _row_blocks(rows, others):
    """Return slices of rows: one for all, or for half types blocks of about `BLOCK` elements."""
    if not is_half(rows.dtype):
        return [slice(0, len(rows))]
    step = max(64, BLOCK // max(1, rows.shape[1], others))
    return [slice(first, first + step) for first in range(0, len(rows), step)]


def _rows(array):
    """Return (N, ..., features) as (rows, features)."""
    return array.reshape(math.prod(array.shape[:-1]), array.shape[-1])


def _in_layout(ctx, rows, shape):
    """Reshape `rows` to `shape`, with the memory layout of x."""
    reshaped = rows.reshape(shape)
    if ctx.layout.has(reshaped):
        return reshaped
    fresh = ctx.layout.empty(shape, rows.dtype)
    fresh[...] = reshaped
    return fresh
