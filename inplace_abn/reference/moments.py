"""Mean and variance of every channel, of one batch and of several.

The reference moves the channels to the last axis, where an array of shape (C,) broadcasts.
"""

import numpy as np

from .._keyword_only import hides_others, too_many

#: NaN and infinity propagate within their channel; NumPy does not warn.
quiet = np.errstate(all="ignore")


def channels_last(array, channel_axis, dtype=None, mask=None):
    """Return the array as `dtype`, if one is given, with the channels as its last axis.

    With a mask of shape (N, *spatial), return the M valid positions as an array of shape (M, C).
    """
    array = np.moveaxis(np.asarray(array, dtype), channel_axis, -1)
    return array if mask is None else array[mask]


def restore_axes(array, channel_axis, mask=None):
    """Invert `channels_last`: move the channels back to `channel_axis`; with a mask, fill with zeros."""
    if mask is not None:
        valid, array = array, np.zeros((*mask.shape, array.shape[-1]), array.dtype)
        array[mask] = valid
    return np.moveaxis(array, -1, channel_axis)


def check_mask(mask, x, channel_axis):
    """Return the mask as an array; it must be bool and have the shape of x without its channels."""
    if mask is None:
        return None
    mask, shape = np.asarray(mask), np.moveaxis(np.asarray(x), channel_axis, -1).shape[:-1]
    if mask.dtype != bool:
        raise TypeError(f"mask must be bool, got {mask.dtype}; pass mask.astype(bool)")
    if mask.shape != shape:
        raise ValueError(f"mask must have shape {shape}, got {mask.shape}")
    return mask.copy()


def sum_per_channel(array):
    """Return the sums over all axes but the last."""
    return array.sum(axis=tuple(range(array.ndim - 1)))


def values_per_channel(array):
    """Return m, the number of values per channel of an array with the channels last."""
    return int(np.prod(array.shape[:-1]))


@quiet
@hides_others
def statistics(x, *others, channel_axis=1, mask=None, dtype=np.float64):
    """Mean and biased variance of every channel, and the number m of its values (section 3.1).

    The variance is computed in two passes, E[(x - mean)^2], because E[x^2] - E[x]^2 cancels all digits if the
    mean is much larger than the standard deviation. An empty batch gives zeros. With `mask`, a bool array of
    shape (N, *spatial), the statistics are those of the positions where it is True.

    >>> statistics([[1.0, 5.0], [3.0, 5.0]])
    (array([2., 5.]), array([1., 0.]), 2)
    """
    if others:
        raise too_many(statistics, others)
    x = channels_last(x, channel_axis, dtype, check_mask(mask, x, channel_axis))
    count = values_per_channel(x)
    mean = sum_per_channel(x) / max(count, 1)
    var = sum_per_channel((x - mean) ** 2) / max(count, 1)
    return mean, var, count


def merge_statistics(means, vars, counts, *, dtype=np.float64):
    """Statistics of the union of several batches, from those of each (section 4); zeros if all are empty.

    >>> merge_statistics([[0.0], [3.0]], [[1.0], [1.0]], [2, 1])
    (array([1.]), array([3.]), 3)
    """
    if not len(means) == len(vars) == len(counts) > 0 or any(n < 0 or n % 1 != 0 for n in counts):
        raise ValueError(
            "means, vars and counts must have the same length, and counts must be whole numbers of at least 0"
        )
    means, vars, shares = np.array(means, dtype), np.array(vars, dtype), np.array(counts, dtype)[:, None]
    means, vars, count = np.where(shares > 0, means, 0), np.where(shares > 0, vars, 0), int(sum(counts))
    mean = (shares * means).sum(axis=0) / max(count, 1)
    var = (shares * (vars + (means - mean) ** 2)).sum(axis=0) / max(count, 1)
    return mean, var, count


def update_running(running_mean, running_var, mean, var, count, momentum=0.1):
    """Return the updated running mean and variance: ``(1 - momentum) * running + momentum * batch``.

    The batch variance is the unbiased one, var * count / (count - 1).

    >>> update_running(np.zeros(1), np.ones(1), np.ones(1), np.ones(1), 2)
    (array([0.1]), array([1.1]))
    """
    unbiased = var * (count / (count - 1))
    return (1 - momentum) * running_mean + momentum * mean, (1 - momentum) * running_var + momentum * unbiased
