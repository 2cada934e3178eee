"""How far scores are from labels, per sample or per pixel."""

import math

import numpy as np

from .._numbers import integer, number
from . import _arguments as arguments
from ._select import select
from ._windows import some_samples


def forward(ctx, x, target, *, ignore_index=-100, channel_axis=1):
    """Mean of ``log(sum over c of exp(x[c])) - x[label]`` over all labels.

    As `torch.nn.functional.cross_entropy`.

    Parameters
    ----------
    ctx : LayerContext
    x : ndarray of shape (N, C, ...), or (N, ..., C) with ``channel_axis=-1``
        Scores of C classes, float32 or float64; read only, and kept for the backward.
    target : ndarray of shape (N, ...)
        A label from 0 to C - 1 for each sample or pixel, of any integer dtype. Kept for the backward.
    ignore_index : int
        Label of what does not count, neither for the mean nor for the gradient.
    channel_axis : {1, -1}

    Returns
    -------
    loss : float
        NaN if nothing counts.

    Raises
    ------
    TypeError, ValueError
        For arrays of other dtypes, shapes that do not fit together, labels out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from inplace_abn.layers import LayerContext
    >>> ctx = LayerContext()
    >>> loss = forward(ctx, np.log([[1.0, 3.0], [1.0, 1.0]]), np.array([1, -100]))
    >>> bool(np.isclose(loss, -np.log(0.75)))
    True
    >>> backward(ctx)[0].round(2)
    array([[ 0.25, -0.25],
           [ 0.  ,  0.  ]])
    """
    arguments.channel_axis_of(channel_axis)
    arguments.floats("x", x, "(N, C, ...)" if channel_axis == 1 else "(N, ..., C)", leading=True)
    scores = np.moveaxis(x, channel_axis, 1)
    counted = _check(x, scores, target, ignore_index, channel_axis)
    ctx.count, ctx.ignore_index, ctx.channel_axis = int(counted.sum()), ignore_index, channel_axis
    logs = np.empty(target.shape, x.dtype)
    total = 0.0
    for some in some_samples(x.shape):
        labels = np.where(counted[some], target[some], 0)[:, None].astype(np.intp)
        logs[some] = _log_sum_exp(scores[some])
        chosen = np.take_along_axis(scores[some], labels, 1)[:, 0]
        total += float(np.subtract(logs[some], chosen).sum(where=counted[some], dtype=np.float64))
        ctx.temporary(scores[some].nbytes)
    ctx.save_for_backward(input=x, target=target, log_sum_exp=logs)
    return total / ctx.count if ctx.count else math.nan


def backward(ctx, dz=1.0, *, overwrite=False):
    """Gradient of the scores: probabilities less the labels', divided by how many labels count.

    Parameters
    ----------
    ctx : LayerContext
        From `forward`.
    dz : float
        Gradient of the loss.
    overwrite : bool
        Makes no difference.

    Returns
    -------
    tuple of ndarray
        dx alone, fresh: the scores are left alone.

    Raises
    ------
    TypeError
        For a dz that is no number.
    """
    if isinstance(dz, np.ndarray):
        arguments.plain("dz", dz)
    if np.ndim(dz) != 0 or isinstance(dz, (str, bytes, type(None))):
        raise TypeError(f"dz must be a number, the gradient of the loss, got {dz!r}")
    saved = ctx.saved
    x, target, logs = saved["input"], saved["target"], saved["log_sum_exp"]
    dx = np.empty_like(x)
    scores, gradients = np.moveaxis(x, ctx.channel_axis, 1), np.moveaxis(dx, ctx.channel_axis, 1)
    scale = number("dz", dz) / max(1, ctx.count)
    for some in some_samples(x.shape):
        gradient, counted = gradients[some], (target[some] != ctx.ignore_index)[:, None]
        labels = np.where(counted, target[some][:, None], 0).astype(np.intp)
        np.exp(np.subtract(scores[some], logs[some][:, None], out=gradient), out=gradient)
        np.put_along_axis(gradient, labels, np.take_along_axis(gradient, labels, 1) - 1, 1)
        gradient *= scale
        select(gradient, counted, gradient)
    return (dx,)


def _check(x, scores, target, ignore_index, channel_axis):
    """Refuse labels that do not fit; return which of them count."""
    if getattr(target, "shape", None) == x.shape:
        raise ValueError(
            f"target must be a label for each sample or pixel, got the shape of x, {x.shape}; if that is "
            f"one-hot, pass target.argmax({channel_axis})"
        )
    if not isinstance(target, np.ndarray) or not np.issubdtype(target.dtype, np.integer):
        got = target.dtype if isinstance(target, np.ndarray) else type(target).__name__
        raise TypeError(f"target must be a numpy.ndarray of integers, got {got}")
    arguments.plain("target", target)
    shape = scores.shape[:1] + scores.shape[2:]
    arguments.same_shape("target", target, shape, f"a label for x of shape {x.shape} with {channel_axis=}")
    counted = target != integer("ignore_index", ignore_index, -(1 << 62))
    wrong = counted & ((target < 0) | (target >= scores.shape[1]))
    if wrong.any():
        index = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(
            f"target{list(index)} is {target[index]}: labels must be from 0 to {scores.shape[1] - 1}, for "
            f"{scores.shape[1]} classes, or ignore_index ({ignore_index})"
        )
    return counted


def _log_sum_exp(scores):
    """Return log(sum(exp(scores))) over the classes, safe for scores of any size."""
    most = scores.max(axis=1)
    # Where the largest score is infinite, the difference would be NaN; there the sum is as infinite.
    shift = np.where(np.isfinite(most), most, 0)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        terms = np.subtract(scores, shift[:, None])
        return np.log(np.exp(terms, out=terms).sum(axis=1)) + shift
