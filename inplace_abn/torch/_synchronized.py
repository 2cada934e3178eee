"""Statistics of the batches of all processes of `torch.distributed`: section 4 of Rota Bulò et al. 2018."""

import weakref
from typing import NamedTuple

import torch

from .. import _core
from ..distributed.exchange import Exchange, Step
from ._tensors import core_array, core_array_like, gradients_like, to_gradient


class TorchGroup:
    """The processes of a group of `torch.distributed`: a `Group` of `inplace_abn.distributed`.

    The time-out is that of the process group.
    """

    def __init__(self, group):
        self.process_group = group
        self.size, self.rank = torch.distributed.get_world_size(group), torch.distributed.get_rank(group)
        self._device = "cuda" if torch.distributed.get_backend(group) == "nccl" else "cpu"

    def all_gather(self, values):
        """Return the values of all processes, those of rank r in row r."""
        rows = torch.empty(self.size, values.size, dtype=torch.float64, device=self._device)
        own = torch.from_numpy(values).to(self._device)
        torch.distributed.all_gather(list(rows.unbind()), own, group=self.process_group)
        return rows.cpu().numpy()


class SynchronizedContext(NamedTuple):
    """A context of the core, the step of its forward, and which parameters the forward had."""

    context: _core.Context
    step: Step
    has_weight: bool
    has_bias: bool


#: Module -> its `Exchange`. An attribute would be pickled with the module.
_exchanges = weakref.WeakKeyDictionary()


def new_exchange(group):
    """Return an `Exchange` over a process group, the default one for None.

    None if it has one process, or if `torch.distributed` is not in use.
    """
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized():
        return None
    group = distributed.group.WORLD if group is None else group
    return Exchange(TorchGroup(group)) if distributed.get_world_size(group) > 1 else None


def exchange_of(module):
    """Return the `Exchange` of a module over its group, or None as `new_exchange`."""
    exchange = new_exchange(module.group)
    if exchange is None:
        return None
    known = _exchanges.setdefault(module, exchange)
    if known.group.process_group is not exchange.group.process_group:  # the module's group has changed
        known = _exchanges[module] = exchange
    return known


def begin(x, norm):
    """Return the `Step` of a forward, with the settings that all processes must share."""
    param = norm.param
    return norm.exchange.forward(
        x.size(1), dtype=str(x.dtype).removeprefix("torch."), eps=float(norm.eps),
        momentum=float(norm.momentum), activation=norm.activation,
        activation_param=tuple(map(float, param)) if isinstance(param, tuple) else float(param),
    )  # fmt: skip


def merged_statistics(step, x):
    """Return the arguments mean, var and count of `_core.normalize` for x, an array argument of the core."""
    mean, var, count = step.merged_statistics(*_core.statistics(x))
    return {"mean": mean, "var": var, "count": count}


def backward(synchronized, dz, kept, residual, overwrite):
    """Return the gradients of x, weight, bias, residual and slope; of parameters this process's share."""
    context, forward, has_weight, has_bias = synchronized
    main = core_array(kept)
    arrays = {"kept": main, "residual": core_array_like(main, residual)}
    with forward.backward() as step:
        dbias, dweight, dslope = _core.backward_reduce(context, core_array_like(main, dz), **arrays)
        sum_dy, sum_dy_xhat = step.total_sums((dbias, dweight))
    dx, dresidual = gradients_like(kept, dz, residual, overwrite)
    _core.backward_apply(
        context, core_array_like(main, dz), sum_dy=sum_dy, sum_dy_xhat=sum_dy_xhat, count=forward.count,
        overwrite=dx is dz, out=None if dx is dz else core_array_like(main, dx),
        residual_out=core_array_like(main, dresidual), keep=True, **arrays,
    )  # fmt: skip
    dweight, dbias = dweight if has_weight else None, dbias if has_bias else None
    return dx, to_gradient(dweight), to_gradient(dbias), dresidual, to_gradient(dslope)
