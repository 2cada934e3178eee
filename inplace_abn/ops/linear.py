"""A matrix product: every output a weighted sum of all features."""

import numpy as np

from . import _arguments as arguments


def forward(ctx, x, weight, bias=None):
    """Weighted sums of features: ``z = x @ weight.T + bias``.

    Parameters
    ----------
    ctx : LayerContext
    x : ndarray of shape (N, ..., features)
        float32 or float64; read only, and kept for the backward.
    weight : ndarray of shape (outputs, features)
        Of x's dtype. Read again by the backward.
    bias : ndarray of shape (outputs,), optional

    Returns
    -------
    z : ndarray of shape (N, ..., outputs)

    Raises
    ------
    TypeError, ValueError
        For arrays of other dtypes and shapes that do not fit together.

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
    arguments.floats("x", x, "(N, ..., features)", leading=True)
    arguments.floats("weight", weight, "(outputs, features)", x.dtype)
    if weight.shape[1] != x.shape[-1]:
        raise ValueError(
            f"weight of shape {weight.shape} is for {weight.shape[1]} features; x of shape {x.shape} has "
            f"{x.shape[-1]}"
        )
    if bias is not None:
        arguments.floats("bias", bias, "(outputs,)", x.dtype)
        arguments.same_shape("bias", bias, weight.shape[:1], f"one per output of weight {weight.shape}")
    ctx.save_for_backward(input=x)
    ctx.weight, ctx.has_bias, ctx.input_shape = weight, bias is not None, x.shape
    z = np.matmul(_rows(x), weight.T).reshape(*x.shape[:-1], len(weight))
    if bias is not None:
        z += bias
    return z


def backward(ctx, dz, *, overwrite=False):
    """Gradients of features, weight and bias.

    Parameters
    ----------
    ctx : LayerContext
        From `forward`.
    dz : ndarray
        Of z's shape and dtype; read only.
    overwrite : bool
        Makes no difference: dx is of another shape than dz.

    Returns
    -------
    dx, dweight, dbias : ndarray
        Fresh; dbias is None where there was no bias.

    Raises
    ------
    TypeError, ValueError
        For a dz that does not fit the result of the forward.
    """
    arguments.gradient("dz", dz, (*ctx.input_shape[:-1], len(ctx.weight)), ctx.weight.dtype)
    gradient = _rows(dz)
    dweight = np.matmul(gradient.T, _rows(ctx.saved["input"]))
    dx = np.matmul(gradient, ctx.weight).reshape(ctx.input_shape)
    return dx, dweight, gradient.sum(axis=0) if ctx.has_bias else None


def _rows(array):
    return array.reshape(-1 if array.size else int(np.prod(array.shape[:-1])), array.shape[-1])
