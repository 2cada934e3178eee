"""Cross-entropy loss of scores and labels, per sample or per pixel."""

import numpy as np

from .. import _arguments as arguments
from .._arguments import fraction, integer
from .._dtypes import compute_dtype
from ._blocks import rounded_into, widened
from ._layout import layout_of
from ._select import select
from ._windows import sample_slices


def forward(ctx, x, target, *, weight=None, ignore_index=-100, label_smoothing=0.0, channel_axis=1):
    """Mean of ``-log(softmax(x)[label])`` over all labels.

    As `torch.nn.functional.cross_entropy` with ``reduction="mean"``, but 0 if all labels equal
    `ignore_index`. With class weights and label smoothing the loss is
    ``sum(weight[c] * q[c] * -log(softmax(x)[c])) / sum(weight[label])`` with
    ``q[c] = (1 - label_smoothing) * (c == label) + label_smoothing / C``. The first sum is over all labels
    and classes c, the second one over all labels.

    Parameters
    ----------
    ctx : LayerContext
    x : ndarray of shape (N, C, ...), or (N, ..., C) with ``channel_axis=-1``
        Scores of C classes; float32, float64, float16 or bfloat16. Read only, and kept for the backward.
    target : ndarray of shape (N, ...)
        A label in [0, C) for each sample or pixel, any integer dtype. Kept for the backward.
    weight : ndarray of shape (C,), optional
        Weights of the classes, at least 0; dtype of x, or float32 for a half type. None means 1 for all.
    ignore_index : int
        Samples or pixels with this label are excluded from the mean; their gradient is 0.
    label_smoothing : float in [0, 1]
    channel_axis : {1, -1}

    Returns
    -------
    loss : float
        Half types are computed in float32. 0 if all labels equal `ignore_index` or have the weight 0.

    Raises
    ------
    TypeError, ValueError
        For other dtypes, shapes that do not match, and labels out of range.

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
    arguments.channel_batch("x", x, channel_axis)
    scores = np.moveaxis(x, channel_axis, 1)
    ctx.ignore_index = integer("ignore_index", ignore_index, -(1 << 62))
    ctx.smoothing = fraction("label_smoothing", label_smoothing)
    ctx.class_weight = _class_weight(weight, scores, x.dtype)
    counted = _check_target(x, scores, target, ignore_index, channel_axis)
    ctx.channel_axis, ctx.layout = channel_axis, layout_of(x, channel_axis)
    logs = np.empty(target.shape, compute_dtype(x.dtype), like=x)
    total = ctx.divisor = 0.0
    for samples in sample_slices(x.shape):
        is_counted = counted[samples]
        values, labels = (
            widened(scores[samples]),
            np.where(is_counted, target[samples], 0)[:, None].astype(np.intp),
        )
        logs[samples] = _log_sum_exp(values)
        loss, weights = _losses(ctx, values, logs[samples], labels)
        total += float(loss.sum(where=is_counted, dtype=np.float64))
        weights = np.broadcast_to(weights, is_counted.shape)
        ctx.divisor += float(weights.sum(where=is_counted, dtype=np.float64))
        ctx.temporary(values.nbytes)
    ctx.save_for_backward(input=x, target=target, log_sum_exp=logs)
    return total / ctx.divisor if ctx.divisor else 0.0


def backward(ctx, dz=1.0, *, overwrite=False):
    """Gradient of the scores: ``dz * weight[label] * (softmax(x) - onehot(label)) / sum(weight[label])``.

    This is the formula without label smoothing.

    Parameters
    ----------
    ctx : LayerContext
        From `forward`.
    dz : float
        Gradient of the loss.
    overwrite : bool
        Ignored.

    Returns
    -------
    tuple of ndarray
        (dx,): a fresh array in the memory layout and dtype of x. It is 0 where the label equals
        `ignore_index`.

    Raises
    ------
    TypeError
        If dz is not a number.
    """
    scale = arguments.loss_gradient("dz", dz)
    saved = ctx.saved
    x, target, logs = saved["input"], saved["target"], saved["log_sum_exp"]
    dx = ctx.layout.empty(x.shape, x.dtype)
    scores, gradients = np.moveaxis(x, ctx.channel_axis, 1), np.moveaxis(dx, ctx.channel_axis, 1)
    scale = scale / ctx.divisor if ctx.divisor else 0 * scale
    for samples in sample_slices(x.shape):
        counted = (target[samples] != ctx.ignore_index)[:, None]
        labels = np.where(counted, target[samples][:, None], 0).astype(np.intp)
        with rounded_into(ctx, gradients[samples]) as gradient:
            np.exp(np.subtract(widened(scores[samples]), logs[samples][:, None], out=gradient), out=gradient)
            _subtract_targets(ctx, gradient, labels)
            gradient *= scale
            select(gradient, counted, gradient)
    return (dx,)


def _losses(ctx, scores, logs, labels):
    """Return the loss of each label before the division, and the weight of each label."""
    chosen = np.take_along_axis(scores, labels, 1)[:, 0]
    weights = 1.0 if ctx.class_weight is None else ctx.class_weight[labels[:, 0]]
    losses = np.subtract(logs, chosen) * weights
    if ctx.smoothing:
        by_class = _along_classes(ctx, scores)
        classes = scores.shape[1]
        total = classes if by_class is None else float(ctx.class_weight.sum(dtype=np.float64))
        weighted = scores.sum(axis=1) if by_class is None else (scores * by_class).sum(axis=1)
        losses = (1 - ctx.smoothing) * losses + ctx.smoothing / classes * (total * logs - weighted)
    return losses, weights


def _subtract_targets(ctx, gradient, labels):
    """Replace probabilities p by the gradient per label, ``sum(weight * q) * p[c] - weight[c] * q[c]``."""
    by_class, rest = _along_classes(ctx, gradient), 1 - ctx.smoothing
    weights = 1.0 if by_class is None else ctx.class_weight[labels]
    if ctx.smoothing:
        classes = gradient.shape[1]
        share = ctx.smoothing / classes
        total = classes if by_class is None else float(ctx.class_weight.sum(dtype=np.float64))
        gradient *= rest * weights + share * total
        gradient -= share if by_class is None else share * by_class
    elif by_class is not None:
        gradient *= weights
    np.put_along_axis(gradient, labels, np.take_along_axis(gradient, labels, 1) - rest * weights, 1)


def _along_classes(ctx, like):
    """Return the class weights in a shape that broadcasts along axis 1; None for None."""
    return None if ctx.class_weight is None else ctx.class_weight.reshape(-1, *[1] * (like.ndim - 2))


def _class_weight(weight, scores, dtype):
    """Check the class weights; return a copy for the backward."""
    if weight is None:
        return None
    arguments.parameter("weight", weight, "(C,)", dtype)
    arguments.same_shape("weight", weight, scores.shape[1:2], "one per class of x")
    if not (weight >= 0).all():
        raise ValueError(f"weight must be at least 0 for every class, got {weight.min()}")
    return weight.astype(compute_dtype(dtype))


def _check_target(x, scores, target, ignore_index, channel_axis):
    """Check the labels; return an array of bool: True if a label does not equal `ignore_index`."""
    if getattr(target, "shape", None) == x.shape:
        raise ValueError(
            f"target must be a label for each sample or pixel, got the shape of x, {x.shape}; if that is "
            f"one-hot, pass target.argmax({channel_axis})"
        )
    if not isinstance(target, np.ndarray) or not np.issubdtype(target.dtype, np.integer):
        got = target.dtype if isinstance(target, np.ndarray) else type(target).__name__
        raise TypeError(f"target must be a numpy.ndarray of integers, got {got}")
    arguments.plain_array("target", target)
    shape = scores.shape[:1] + scores.shape[2:]
    arguments.same_shape("target", target, shape, f"a label for x of shape {x.shape} with {channel_axis=}")
    counted = target != ignore_index
    wrong = counted & ((target < 0) | (target >= scores.shape[1]))
    if wrong.any():
        index = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(
            f"target{list(index)} is {target[index]}: labels must be from 0 to {scores.shape[1] - 1}, for "
            f"{scores.shape[1]} classes, or ignore_index ({ignore_index})"
        )
    return counted


def _log_sum_exp(scores):
    """Return log(sum(exp(scores))) over the classes, without overflow."""
    maximum = scores.max(axis=1)
    # Do not subtract an infinite maximum: inf - inf is NaN, while the result is infinite.
    shift = np.where(np.isfinite(maximum), maximum, 0)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        terms = np.subtract(scores, shift[:, None])
        return np.log(np.exp(terms, out=terms).sum(axis=1)) + shift
