"""Batch norm over the batches of all processes of a group: section 4 of Rota Bulò et al. 2018."""

from typing import NamedTuple

import numpy as np
import torch

from .. import _core, functional
from ._tensors import described, described_vector, gradients_like, like, to_gradient


class SynchronizedContext(NamedTuple):
    """A context of the core, with what its backward needs to know of the other processes.

    Attributes
    ----------
    context : Context
    group : torch.distributed.ProcessGroup
    count : int
        Elements per channel of all batches.
    has_weight, has_bias : bool
    """

    context: functional.Context
    group: object
    count: int
    has_weight: bool
    has_bias: bool


def group_of_several(group):
    """Return the group, the default one for None, if it has more than one process; else None."""
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized():
        return None
    group = distributed.group.WORLD if group is None else group
    return group if distributed.get_world_size(group) > 1 else None


def forward(x, weight, bias, slope, running_mean, running_var, residual, norm):
    """Write z over the tensor x, normalized by the statistics of all processes, and return the context."""
    main = described(x)
    means, variances, counts = zip(*_gather(*_core.statistics(main), norm.group), strict=True)
    mean, var, count = functional.merge_statistics(means, variances, [int(n) for n in counts])
    if 0 < count < 2:
        raise ValueError(
            "x must have more than 1 value per channel in all processes together, "
            f"got shape {tuple(x.shape)} here"
        )
    vectors = {
        "weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var,
        "slope": slope,
    }  # fmt: skip
    _, context = _core.normalize(
        main, mean=mean, var=var, count=count, momentum=norm.momentum, eps=norm.eps,
        activation=norm.activation, activation_param=norm.param, residual=like(main, residual), hold=False,
        **{name: described_vector(tensor) for name, tensor in vectors.items()},
    )  # fmt: skip
    return SynchronizedContext(context, norm.group, count, weight is not None, bias is not None)


def backward(synchronized, dz, kept, residual, overwrite):
    """Return the gradients of x, weight, bias, residual and slope; of parameters this process's share."""
    context, group, count, has_weight, has_bias = synchronized
    main = described(kept)
    arrays = {"kept": main, "residual": like(main, residual)}
    sum_dy, sum_dy_xhat, dslope = _core.backward_reduce(context, like(main, dz), **arrays)
    totals = torch.from_numpy(np.stack([sum_dy, sum_dy_xhat]))
    torch.distributed.all_reduce(totals, group=group)
    dx, dresidual = gradients_like(kept, dz, residual, overwrite)
    _core.backward_apply(
        context, like(main, dz), sum_dy=totals[0].numpy(), sum_dy_xhat=totals[1].numpy(), count=count,
        overwrite=dx is dz, out=None if dx is dz else like(main, dx), residual_out=like(main, dresidual),
        keep=True, **arrays,
    )  # fmt: skip
    dweight, dbias = sum_dy_xhat if has_weight else None, sum_dy if has_bias else None
    return dx, to_gradient(dweight), to_gradient(dbias), dresidual, to_gradient(dslope)


def _gather(mean, var, count, group):
    """Return (mean, var, count) of every process."""
    row = torch.from_numpy(np.concatenate([mean, var, [count]]))
    rows = [torch.empty_like(row) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(rows, row, group=group)
    return [(r[: len(mean)], r[len(mean) : -1], r[-1]) for r in (row.numpy() for row in rows)]
