"""Undo a conversion."""

from torch import nn

from .. import recipes
from ..batch_norm import unfuse
from .forward import ConvertedForward
from .record import detach


def revert(model):
    """Undo `convert`: the modules are those of the original model again, with the weights that they have now.

    For `torch.onnx.export`, `torch.export`, quantization and folding. Activations that `convert` was asked to
    replace stay replaced, so that the function of the model does not change. A model that was not converted
    stays as it is.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place.

    Returns
    -------
    torch.nn.Module
        `model`.

    Raises
    ------
    TypeError
        If `model` is no module.

    Examples
    --------
    >>> from torch import nn
    >>> from inplace_abn.torch import convert, revert
    >>> model = revert(convert(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())))
    >>> type(model[1]).__name__
    'BatchNorm2d'
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for module in model.modules():
        unfuse(module)
        if isinstance(vars(module).get("forward"), ConvertedForward):
            module.forward.restore()
        conversion = detach(module)
        if conversion is not None:
            recipes.uninstall(module)
            for child in conversion.taken_out_of_place:
                child.inplace = True
    return model
