"""Which modules are batch norms that can be fused, and which are left."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..batch_norm import is_fused

_FUSED = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def with_activation(module):
    """Return True for timm's batch norm that applies dropout and an activation itself."""
    return any(
        kind.__name__ == "BatchNormAct2d" and kind.__module__.startswith("timm.")
        for kind in type(module).__mro__
    )


def is_batch_norm(module):
    """Return True for a batch norm that can be fused."""
    return isinstance(module, nn.Module) and why_not(module) is None


def why_not(module):
    """Say why a module is not a batch norm that can be fused; None if it is one."""
    if not isinstance(module, _FUSED):
        kind = type(module).__name__
        return f"{kind} is not supported" if isinstance(module, _BatchNorm) else f"{kind} is no batch norm"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return "it has no parameters yet: call the model once before the conversion"
    if "forward" in vars(module):
        return "its forward was replaced"
    forward = type(module).forward
    if forward is not _BatchNorm.forward and not with_activation(module) and not is_fused(module):
        return f"{type(module).__name__} has a forward of its own"
    return None
