"""Synchronized statistics for whole models."""

from torch import nn

from .batch_norm import fuse, is_fused
from .conversion.batch_norms import is_batch_norm
from .modules import ABN


def convert_sync(model, group=None):
    """Give the batch norms of a model the statistics of all processes of a group, in training.

    All `ABN`, `InPlaceABN`, batch norms that `convert` has fused, and `torch.nn.BatchNorm1d`, 2d and 3d. Like
    `torch.nn.SyncBatchNorm.convert_sync_batchnorm`, which needs GPUs. `InPlaceABNSync` says how they work.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place: modules, parameters, buffers and the keys of the state remain. `revert` does not
        undo it.
    group : torch.distributed.ProcessGroup, optional
        None is the default group.

    Returns
    -------
    torch.nn.Module
        `model`.

    Examples
    --------
    >>> from torch import nn
    >>> from inplace_abn.torch import convert, convert_sync
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> model = convert_sync(convert(model))
    >>> model[1].synchronized
    True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        if not isinstance(module, ABN):
            if not is_batch_norm(module):
                continue
            if not is_fused(module):
                fuse(module, name)
        module.synchronized, module.group = True, group
    return model


def set_active_group(model, group):
    """Set the group of all synchronized batch norms of a model: a name of the reference implementation.

    Parameters
    ----------
    model : torch.nn.Module
    group : torch.distributed.ProcessGroup or None
        None is the default group.
    """
    for module in model.modules():
        if getattr(module, "synchronized", False):
            module.group = group
