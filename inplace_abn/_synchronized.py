"""Several batches normalized as one (section 4 of the paper): forward and backward, each in two halves.

Statistics and sums of the halves are plain arrays: how they travel between processes is the caller's.
"""

from collections.abc import Sequence

import numpy as np

from . import _core
from ._core import Context
from ._keyword_only import lists_keywords
from ._results import ChannelSums
from ._types import Activation, Batch, ChannelAxis, Mask, Number, Rows, Strategy, Sums, Threads, Vector


@lists_keywords
def statistics(
    x: Batch, *, channel_axis: ChannelAxis = 1, mask: Mask | None = None, threads: Threads = None,
) -> tuple[Sums, Sums, int]:  # fmt: skip
    """Mean and biased variance of every channel, the first step of synchronized batch normalization.

    Parameters
    ----------
    x : ndarray of shape (N, C, ...), or (N, ..., C) with ``channel_axis=-1``
        Read only.
    channel_axis : {1, -1}
    mask : bool ndarray of shape (N, ...), optional
        As for `forward`: only positions where it is True count.
    threads : int, optional

    Returns
    -------
    mean, var : float64 ndarray of shape (C,)
        Zeros for an empty batch.
    count : int
        Elements per channel, of valid positions.

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
    return _core.statistics(x, channel_axis=channel_axis, mask=mask, threads=threads)


def merge_statistics(means: Rows, vars: Rows, counts: Sequence[int]) -> tuple[Sums, Sums, int]:
    """Statistics of several batches as if they were one (section 4 of the paper), to rounding.

    Parameters
    ----------
    means, vars : sequence of array_like of shape (C,)
        Mean and biased variance of each batch, as `statistics` gives them.
    counts : sequence of int
        Elements per channel of each batch; batches of none are skipped.

    Returns
    -------
    mean, var : float64 ndarray of shape (C,)
        Zeros if all batches are empty.
    count : int

    Raises
    ------
    ValueError
        For sequences that are empty or do not match, and counts that are negative or no whole numbers.

    Examples
    --------
    >>> merge_statistics([[0.0], [3.0]], [[1.0], [1.0]], [2, 1])
    (array([1.]), array([3.]), 3)
    """
    part_means, part_vars = np.array(means, np.float64), np.array(vars, np.float64)
    shares = np.array(counts, np.float64)
    shape = part_means.shape
    if len(shape) != 2 or shape != part_vars.shape or shares.shape != shape[:1] or not shares.size:
        raise ValueError(
            "means and vars must be equally many arrays of shape (C,), and counts as many numbers, at least "
            f"one of each; got them stacked to shapes {shape}, {part_vars.shape} and {shares.shape}"
        )
    if not (np.isfinite(shares) & (shares >= 0) & (shares == np.floor(shares))).all():
        raise ValueError(f"counts must be whole numbers from 0 on, got {counts}")
    count = int(shares.sum())
    if count == 0:
        return np.zeros(shape[1]), np.zeros(shape[1]), 0
    full = shares > 0
    part_means, part_vars, shares = part_means[full], part_vars[full], shares[full, None] / count
    # From one of the means on: what they have in common would cost digits of what they differ in.
    mean = part_means[0] + (shares * (part_means - part_means[0])).sum(axis=0)
    var = (shares * (part_vars + (part_means - mean) ** 2)).sum(axis=0)
    return mean, var, count


@lists_keywords
def normalize(
    x: Batch, *, mean: Sums, var: Sums, count: int, weight: Vector | None = None, bias: Vector | None = None,
    running_mean: Vector | None = None, running_var: Vector | None = None,
    momentum: Number = 0.1, eps: Number = 1e-05, activation: Activation = "leaky_relu",
    activation_param: Number = 0.01, strategy: Strategy = "inplace", channel_axis: ChannelAxis = 1,
    residual: Batch | None = None, slope: Vector | None = None, mask: Mask | None = None,
    threads: Threads = None,
) -> tuple[Batch, Context]:  # fmt: skip
    """`functional.forward` in training with the statistics of several batches (section 4 of the paper).

    Parameters
    ----------
    x : ndarray
        One of the batches behind the statistics. It may be empty, and may have one value per channel.
    mean, var : float64 ndarray of shape (C,)
        Mean and biased variance, as `merge_statistics` gives them. Read only.
    count : int
        Elements per channel behind them; more than one.
    weight, bias, running_mean, running_var, momentum, eps
        As for `forward`. The running variance is updated with ``var * count / (count - 1)``.
    activation, activation_param, strategy, channel_axis, residual, slope, mask, threads
        As for `forward`.

    Returns
    -------
    z : ndarray
    ctx : Context
        As from `forward`; for `backward_reduce` and `backward_apply`.

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
    return _core.normalize(
        x, mean=mean, var=var, count=count, weight=weight, bias=bias, running_mean=running_mean,
        running_var=running_var, momentum=momentum, eps=eps, activation=activation,
        activation_param=activation_param, strategy=strategy,
        channel_axis=channel_axis, residual=residual, slope=slope, mask=mask, threads=threads,
    )  # fmt: skip


@lists_keywords
def backward_reduce(ctx: Context, dz: Batch, *, threads: Threads = None) -> ChannelSums:
    """First half of `backward`: the sums over each channel that dx needs (section 3.2 of the paper).

    With ``dy = dz * activation'(y)``. Added up over all batches behind the statistics they go to
    `backward_apply`; there they are the gradients of bias and weight as well.

    Parameters
    ----------
    ctx : Context
        Stays as it is.
    dz : ndarray
        Of the shape, dtype and memory layout of x; read only.
    threads : int, optional

    Returns
    -------
    sum_dy, sum_dy_xhat : float64 ndarray of shape (C,)
        Zeros for an empty batch. With prelu, the gradient of the slope is an attribute beside the two,
        ``dslope``, a float64 array of the slope's shape, that is added up in the same way.

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
    return ChannelSums(*_core.backward_reduce(ctx, dz, threads=threads))


@lists_keywords
def backward_apply(
    ctx: Context, dz: Batch, *, sum_dy: Sums, sum_dy_xhat: Sums, count: int,
    overwrite: bool = False, residual_grad: Batch | None = None, threads: Threads = None,
) -> Batch:  # fmt: skip
    """Second half of `backward`: dx, from sums over all batches behind the statistics.

    Parameters
    ----------
    ctx : Context
        It is freed, as by `backward`.
    dz : ndarray
        Of the shape, dtype and memory layout of x.
    sum_dy, sum_dy_xhat : float64 ndarray of shape (C,)
        Sums of what `backward_reduce` gave for each batch; read only.
    count : int
        Elements per channel behind the sums, as for `normalize`; ignored unless forward was in training.
    overwrite : bool
        True writes dx over dz.
    residual_grad : ndarray, optional
        As for `backward`, and needed after a forward with residual: its gradient is added to it.
    threads : int, optional

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
    return _core.backward_apply(
        ctx, dz, sum_dy=sum_dy, sum_dy_xhat=sum_dy_xhat, count=count, overwrite=overwrite,
        residual_grad=residual_grad, threads=threads,
    )  # fmt: skip
