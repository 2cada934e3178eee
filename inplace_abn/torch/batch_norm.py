"""Batch norms of `torch.nn` that also add a residual and apply an activation, without keeping x."""

from functools import cache

import torch
from torch import nn

from ._activations import ACTIVATIONS, default_param, has_inverse
from ._arguments import Normalization
from ._compiled_gpu import forget
from ._dispatch import batch_norm
from ._synchronized import exchange_of

__all__ = ["ACTIVATIONS", "fuse", "has_inverse", "is_fused", "unfuse"]

_BASES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fuse(module, name=None):
    """Give a batch norm the call ``module(x, activation=..., residual=...)``; returns the same object.

    Its class becomes a subclass of the one that it had. ``module(x)`` alone computes what it did before;
    parameters, buffers, hooks and the keys of its state remain.

    Parameters
    ----------
    module : torch.nn.BatchNorm1d, BatchNorm2d, BatchNorm3d, or a subclass
    name : str, optional
        For messages, such as ``"layer1.0.bn1"``.
    """
    if not isinstance(module, _BASES):
        raise TypeError(f"module must be a torch.nn.BatchNorm1d, 2d or 3d, got {type(module).__name__}")
    if not is_fused(module):
        module.__class__ = _fused_class(type(module))
    module._name = name or type(module).__name__
    return module


def unfuse(module):
    """Undo `fuse`, except for synchronized batch norms, which need it; returns the same object."""
    if is_fused(module) and not module.synchronized:
        if type(module) is not _fused_class(module._original):
            raise TypeError(
                f"the class of module was changed after fuse, to {type(module).__name__}; undo that first"
            )
        module.__class__ = module._original
        del module._name
    return module


def is_fused(module):
    """Return True after `fuse`."""
    return isinstance(module, Fused)


class Fused:
    """The call of a batch norm on which `fuse` was called.

    Attributes
    ----------
    synchronized : bool
        True: training takes the statistics of all processes of `group`; see `convert_sync`.
    group : torch.distributed.ProcessGroup or None
    """

    synchronized, group = False, None

    def forward(
        self, x, *, activation=None, activation_param=None, residual=None, slope=None, copy_first=False,
        producer=None,
    ):  # fmt: skip
        """Return ``activation(batch norm of x + residual)``; batch norm of x without keywords.

        Parameters
        ----------
        x : Tensor of shape (N, C, ...)
            Overwritten if a keyword other than `copy_first` is given. It is not overwritten if `copy_first`
            is True or autograd forbids it.
        activation : str, optional
            One of `ACTIVATIONS`. "identity" is batch norm alone, and so is None together with a residual.
        activation_param : float, optional
            The slope of leaky_relu, alpha of elu and celu; (low, high) for hardtanh.
        residual : Tensor, optional
            Added before the activation.
        slope : Tensor of shape (C,) or (1,), optional
            The slope of prelu.
        copy_first : bool
            True: the result is written to new memory, and x remains as it is.
        producer : Producer, optional
            Computes x again in the backward: see `inplace_abn.torch.recipes.run_again`.
        """
        if activation is None and residual is None:
            if not (self.synchronized and self.training):
                return super().forward(x)
            y = self.forward(x, activation="identity", copy_first=True)
            return self.act(self.drop(y)) if hasattr(self, "act") else y  # timm's BatchNormAct2d
        self._check_input_dim(x)
        norm = normalization(self, activation or "identity", activation_param, self._name)
        if producer is not None:
            norm = norm._replace(producer=producer)
        weight, bias = parameter(self, "weight"), parameter(self, "bias")
        return batch_norm(x, weight, bias, residual, slope, norm, overwrite=not copy_first)

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        forget(self)

    def __reduce_ex__(self, protocol):
        if type(self) is not _fused_class(self._original):
            return super().__reduce_ex__(protocol)
        return _new, (self._original,), self.__dict__


def normalization(module, activation, param, name):
    """Return the arguments of a batch norm's call."""
    buffers = module._buffers  # attributes of a module cost a microsecond each
    running_mean, running_var = buffers["running_mean"], buffers["running_var"]
    momentum = 0.0 if module.momentum is None else module.momentum
    training, batches = module.training, None
    if training:
        if not module.track_running_stats:
            running_mean = running_var = None
        elif (batches := buffers["num_batches_tracked"]) is not None and module.momentum is None:
            momentum = 1.0 / (float(batches) + 1)
    elif running_mean is None and running_var is None:
        training = True
    if param is None:
        param = default_param(activation)
    exchange = exchange_of(module) if module.synchronized and module.training else None
    return Normalization(
        running_mean, running_var, training, momentum, module.eps, activation, param, name, owner=module,
        exchange=exchange, batches=batches,
    )  # fmt: skip


def parameter(module, name):
    """Return ``getattr(module, name)``, faster if it is a parameter."""
    parameters = module._parameters
    return parameters[name] if name in parameters else getattr(module, name)


@cache
def _fused_class(base):
    """Return the subclass of a batch norm's class that `fuse` sets."""
    names = {"__module__": __name__, "__doc__": Fused.__doc__, "_original": base}
    return type(f"Fused{base.__name__}", (Fused, base), names)


def _new(base):
    """Return an empty instance, for pickle and copy: the class itself cannot be found by its name."""
    return torch.nn.Module.__new__(_fused_class(base))
