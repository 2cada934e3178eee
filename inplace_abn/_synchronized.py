"""Synchronized batch normalization: several batches normalized as one (section 4 of the paper).

Forward and backward have two steps each. Between the steps, the caller exchanges statistics or sums between
processes; they are plain arrays.
"""

from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from . import _core
from ._core import Context
from ._keyword_only import hides_others, too_many
from ._results import ChannelSums
from ._types import Activation, Batch, ChannelAxis, Mask, Number, Rows, Strategy, Sums, Threads, Vector


@hides_others
def statistics(
    x: Batch, *others: NoReturn, channel_axis: ChannelAxis = 1, mask: Mask | None = None,
    threads: Threads = None,
) -> tuple[Sums, Sums, int]:  # fmt: skip
    """Mean and biased variance of each channel: the first step of a synchronized forward.

    Parameters
    ----------
    x : ndarray of shape (N, C, ...), or (N, ..., C) with ``channel_axis=-1``
        Read only.
    channel_axis : {1, -1}
    mask : bool ndarray of shape (N, ...), optional
        As for `forward`: the statistics are those of the positions where it is True.
    threads : int, optional
        Number of threads, as for `forward`.

    Returns
    -------
    mean, var : float64 ndarray of shape (C,)
        Zeros for an empty batch.
    count : int
        Elements per channel at valid positions.

    Raises
    ------
    TypeError, ValueError
        See the top of `inplace_abn.functional`.

    Examples
    --------
    >>> import numpy as np
    >>> statistics(np.array([[1.0, 5.0], [3.0, 5.0]]))
    (array([2., 5.]), array([1., 0.]), 2)
    """
    if others:
        raise too_many(statistics, others)
    return _core.statistics(x, channel_axis=channel_axis, mask=mask, threads=threads)


def merge_statistics(means: Rows, vars: Rows, counts: Sequence[int]) -> tuple[Sums, Sums, int]:
    """Statistics of the union of several batches, from those of each (section 4 of the paper).

    With the shares ``p = counts / sum(counts)``: ``mean = sum(p * means)`` and
    ``var = sum(p * (vars + (means - mean)**2))``.

    Parameters
    ----------
    means, vars : sequence of array_like of shape (C,)
        Mean and biased variance of each batch, from `statistics`.
    counts : sequence of int
        Elements per channel of each batch; batches without elements are ignored.

    Returns
    -------
    mean, var : float64 ndarray of shape (C,)
        Zeros if all batches are empty.
    count : int
        The sum of `counts`.

    Raises
    ------
    ValueError
        For empty sequences, different lengths or shapes, and counts that are negative or not whole numbers.

    Examples
    --------
    >>> merge_statistics([[0.0], [3.0]], [[1.0], [1.0]], [2, 1])
    (array([1.]), array([3.]), 3)
    """
    batch_means, batch_vars = np.array(means, np.float64), np.array(vars, np.float64)
    shares = np.array(counts, np.float64)
    shape = batch_means.shape
    if len(shape) != 2 or shape != batch_vars.shape or shares.shape != shape[:1] or not shares.size:
        raise ValueError(
            "means, vars and counts must have the same length, at least 1: arrays of shape (C,) and numbers; "
            f"got arrays of shapes {shape}, {batch_vars.shape} and {shares.shape}"
        )
    if not (np.isfinite(shares) & (shares >= 0) & (shares == np.floor(shares))).all():
        raise ValueError(f"counts must be whole numbers of at least 0, got {counts}")
    count = int(shares.sum())
    if count == 0:
        return np.zeros(shape[1]), np.zeros(shape[1]), 0
    nonempty = shares > 0
    batch_means, batch_vars = batch_means[nonempty], batch_vars[nonempty]
    shares = shares[nonempty, None] / count
    # Sum the differences to the first mean: a large common offset would cancel digits.
    mean = batch_means[0] + (shares * (batch_means - batch_means[0])).sum(axis=0)
    var = (shares * (batch_vars + (batch_means - mean) ** 2)).sum(axis=0)
    return mean, var, count


@hides_others
def normalize(
    x: Batch, *others: NoReturn, mean: Sums, var: Sums, count: int,
    weight: Vector | None = None, bias: Vector | None = None,
    running_mean: Vector | None = None, running_var: Vector | None = None,
    momentum: Number = 0.1, eps: Number = 1e-05, activation: Activation = "leaky_relu",
    activation_param: Number = 0.01, strategy: Strategy = "inplace", channel_axis: ChannelAxis = 1,
    residual: Batch | None = None, slope: Vector | None = None, mask: Mask | None = None,
    out: Batch | None = None, hold: bool = True, threads: Threads = None,
) -> tuple[Batch, Context]:  # fmt: skip
    """`functional.forward` in training with given statistics of several batches (section 4 of the paper).

    Parameters
    ----------
    x : ndarray
        One of the batches that the statistics are of. It may be empty or have one value per channel.
    mean, var : float64 ndarray of shape (C,)
        Mean and biased variance of all batches, from `merge_statistics`. Read only.
    count : int
        Elements per channel of all batches; more than 1.
    weight, bias, running_mean, running_var, momentum, eps
        As for `forward`. The batch statistics of the update are `mean` and ``var * count / (count - 1)``.
    activation, activation_param, strategy, channel_axis, residual, slope, mask, out, hold, threads
        As for `forward`.

    Returns
    -------
    z : ndarray
        As from `forward`.
    ctx : Context
        For `backward_reduce` and `backward_apply`.

    Raises
    ------
    TypeError, ValueError
        See the top of `inplace_abn.functional`.

    Examples
    --------
    Two batches normalized as one:

    >>> import numpy as np
    >>> batches = np.array([[1.0]]), np.array([[3.0]])
    >>> mean, var, count = merge_statistics(*zip(*map(statistics, batches)))
    >>> settings = {"mean": mean, "var": var, "count": count, "activation": "identity"}
    >>> contexts = [normalize(x, **settings)[1] for x in batches]
    >>> np.concatenate(batches).round(3).ravel()
    array([-1.,  1.])

    and their gradients, with the sums over both:

    >>> dzs = np.array([[1.0]]), np.array([[0.0]])
    >>> sum_dy, sum_dy_xhat = np.sum([backward_reduce(ctx, dz) for ctx, dz in zip(contexts, dzs)], axis=0)
    >>> sums = {"sum_dy": sum_dy, "sum_dy_xhat": sum_dy_xhat, "count": count}
    >>> dxs = [backward_apply(ctx, dz, **sums) for ctx, dz in zip(contexts, dzs)]
    >>> bool(np.allclose(dxs, 0, atol=1e-4))
    True
    """
    if others:
        raise too_many(normalize, others)
    return _core.normalize(
        x, mean=mean, var=var, count=count, weight=weight, bias=bias, running_mean=running_mean,
        running_var=running_var, momentum=momentum, eps=eps, activation=activation,
        activation_param=activation_param, strategy=strategy,
        channel_axis=channel_axis, residual=residual, slope=slope, mask=mask, out=out, hold=hold,
        threads=threads,
    )  # fmt: skip


@hides_others
def backward_reduce(
    ctx: Context, dz: Batch, *others: NoReturn, kept: Batch | None = None, residual: Batch | None = None,
    residual_activation: Activation = "identity", residual_activation_param: Number = 0.01,
    threads: Threads = None,
) -> ChannelSums:  # fmt: skip
    """First step of a synchronized backward: the sums over each channel of this batch.

    ``sum_dy = sum(dy)`` and ``sum_dy_xhat = sum(dy * xhat)`` with ``dy = dz * activation'(y)`` (section 3.2
    of the paper). Add them up over all batches and pass the totals to `backward_apply`. The totals are the
    gradients of bias and weight.

    Parameters
    ----------
    ctx : Context
        From `normalize`; not changed.
    dz : ndarray
        Shape, dtype and memory layout of x; read only.
    kept, residual, residual_activation, residual_activation_param
        As for `backward`.
    threads : int, optional
        Number of threads, as for `forward`.

    Returns
    -------
    ChannelSums
        A tuple of sum_dy and sum_dy_xhat, float64 arrays of shape (C,); zeros for an empty batch. For prelu,
        its attribute ``dslope`` is the gradient of the slope, a float64 array of the slope's shape, which is
        added up over all batches as well.

    Raises
    ------
    RuntimeError, TypeError, ValueError
        As for `backward`.

    Examples
    --------
    >>> import numpy as np
    >>> from inplace_abn.functional import forward
    >>> z, ctx = forward(np.array([[1.0], [3.0]]), activation="identity")
    >>> sum_dy, sum_dy_xhat = backward_reduce(ctx, np.array([[1.0], [2.0]]))
    >>> sum_dy, sum_dy_xhat.round(3)
    (array([3.]), array([1.]))
    """
    if others:
        raise too_many(backward_reduce, others)
    return ChannelSums(
        *_core.backward_reduce(
            ctx, dz, kept=kept, residual=residual, residual_activation=residual_activation,
            residual_activation_param=residual_activation_param, threads=threads,
        )
    )  # fmt: skip


@hides_others
def backward_apply(
    ctx: Context, dz: Batch, *others: NoReturn, sum_dy: Sums, sum_dy_xhat: Sums, count: int,
    overwrite: bool = False, out: Batch | None = None, residual_grad: Batch | None = None,
    residual_out: Batch | None = None, keep: bool = False,
    kept: Batch | None = None, residual: Batch | None = None,
    residual_activation: Activation = "identity", residual_activation_param: Number = 0.01,
    threads: Threads = None,
) -> Batch:  # fmt: skip
    """Second step of a synchronized backward: dx of this batch from the sums over all batches.

    ``dx = weight / sqrt(var + eps) * (dy - sum_dy / count - xhat * sum_dy_xhat / count)`` (section 3.2 of the
    paper).

    Parameters
    ----------
    ctx : Context
        From `normalize`. It is freed, as by `backward`.
    dz : ndarray
        Shape, dtype and memory layout of x.
    sum_dy, sum_dy_xhat : float64 ndarray of shape (C,)
        The totals over all batches of the results of `backward_reduce`; read only.
    count : int
        Elements per channel of all batches, as for `normalize`; ignored if the forward was not in training.
    overwrite : bool
        True writes dx over dz.
    residual_grad : ndarray, optional
        Required after a forward with residual, unless `residual_out` is given: the gradient of the residual
        is added to it.
    out, residual_out, keep, kept, residual, residual_activation, residual_activation_param
        As for `backward`.
    threads : int, optional
        Number of threads, as for `forward`.

    Returns
    -------
    dx : ndarray
        A fresh array with the memory layout of x, or dz itself.

    Raises
    ------
    RuntimeError, TypeError, ValueError
        As for `backward`.

    Examples
    --------
    >>> import numpy as np
    >>> from inplace_abn.functional import forward
    >>> dz = np.array([[1.0], [2.0]])
    >>> z, ctx = forward(np.array([[1.0], [3.0]]), activation="identity")
    >>> sums = backward_reduce(ctx, dz)
    >>> dx = backward_apply(ctx, dz, **sums._asdict(), count=2, overwrite=True)
    >>> dx is dz, bool(np.allclose(dx, 0, atol=1e-4))
    (True, True)
    """
    if others:
        raise too_many(backward_apply, others)
    return _core.backward_apply(
        ctx, dz, sum_dy=sum_dy, sum_dy_xhat=sum_dy_xhat, count=count, overwrite=overwrite, out=out,
        residual_grad=residual_grad, residual_out=residual_out, keep=keep, kept=kept, residual=residual,
        residual_activation=residual_activation, residual_activation_param=residual_activation_param,
        threads=threads,
    )  # fmt: skip
