"""Batch norm over the batches of all processes of a group: section 4 of Rota Bulò et al. 2018."""

from typing import NamedTuple

import numpy as np
import torch

from .. import functional
from ._tensors import to_array, to_tensor


class SynchronizedContext(NamedTuple):
    """A context of the core, with what its backward needs to know of the other processes.

    Attributes
    ----------
    context : Context
    group : torch.distributed.ProcessGroup
    count : int
        Elements per channel of all batches.
    arguments : set of str
        The optional arguments of the forward that were given: weight, bias, residual.
    """

    context: functional.Context
    group: object
    count: int
    arguments: set[str]


def group_of_several(group):
    """Return the group, the default one for None, if it has more than one process; else None."""
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized():
        return None
    group = distributed.group.WORLD if group is None else group
    return group if distributed.get_world_size(group) > 1 else None


def forward(x, weight, bias, slope, running_mean, running_var, residual, norm):
    """Write z over the tensor x, normalized by the statistics of all processes, and return the context."""
    tensors = {
        "weight": weight, "bias": bias, "slope": slope, "running_mean": running_mean,
        "running_var": running_var, "residual": residual,
    }  # fmt: skip
    arrays = {name: to_array(tensor) for name, tensor in tensors.items()}
    x = to_array(x)
    mean, var, count = functional.statistics(x)
    means, variances, counts = zip(*_gather(mean, var, count, norm.group), strict=True)
    mean, var, count = functional.merge_statistics(means, variances, [int(n) for n in counts])
    if 0 < count < 2:
        raise ValueError(
            f"x must have more than 1 value per channel in all processes together, got shape {x.shape} here"
        )
    _, context = functional.normalize(
        x, mean=mean, var=var, count=count, momentum=norm.momentum, eps=norm.eps,
        activation=norm.activation, activation_param=norm.param, **arrays,
    )  # fmt: skip
    given = {name for name, array in arrays.items() if array is not None}
    return SynchronizedContext(context, norm.group, count, given)


def backward(synchronized, dz, overwrite):
    """Return the gradients of x, weight, bias, residual and slope; of parameters this process's share."""
    context, group, count, given = synchronized
    sums = functional.backward_reduce(context, dz)
    totals = torch.from_numpy(np.concatenate(sums))
    torch.distributed.all_reduce(totals, group=group)
    sum_dy, sum_dy_xhat = totals.numpy().reshape(2, -1)
    dresidual = np.zeros_like(dz) if "residual" in given else None
    dx = functional.backward_apply(
        context, dz, sum_dy=sum_dy, sum_dy_xhat=sum_dy_xhat, count=count, overwrite=overwrite,
        residual_grad=dresidual,
    )  # fmt: skip
    dbias, dweight = (s if name in given else None for name, s in zip(("bias", "weight"), sums, strict=True))
    return tuple(map(to_tensor, (dx, dweight, dbias, dresidual, sums.dslope)))


def _gather(mean, var, count, group):
    """Return (mean, var, count) of every process."""
    row = torch.from_numpy(np.concatenate([mean, var, [count]]))
    rows = [torch.empty_like(row) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(rows, row, group=group)
    return [(r[: len(mean)], r[len(mean) : -1], r[-1]) for r in (row.numpy() for row in rows)]
