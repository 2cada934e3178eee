"""What a conversion did: kept with the model for `report` and `revert`."""

from dataclasses import dataclass, replace

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .batch_norms import why_not
from .patterns import Pattern

_ATTRIBUTE = "_inplace_abn_conversion"


@dataclass(frozen=True)
class Row:
    """What the conversion did to one batch norm.

    Attributes
    ----------
    path : str
        Its name in the model.
    kind : str
        The name of its class before the conversion.
    state : str
        "fused", "with residual" (fused, and the sum is part of it), "copied" (as these, but its input is
        copied first) or "left".
    activation : str
        The activation that is part of it, "identity" if none is; empty if it is left.
    why : str
        Why it is left, or why its input is copied; or that its convolution runs again in the backward.
    """

    path: str
    kind: str
    state: str
    activation: str
    why: str

    def inside(self, parent):
        """Return the row as seen from a model that has this one at the path `parent`."""
        return replace(self, path=f"{parent}.{self.path}") if parent else self


class Conversion:
    """The rows of a model and the modules whose `inplace` was set to False."""

    def __init__(self, rows, taken_out_of_place):
        self.rows = rows
        self.taken_out_of_place = taken_out_of_place


def attach(model, conversion):
    """Keep a conversion with its model."""
    vars(model)[_ATTRIBUTE] = conversion


def detach(model):
    """Return the conversion of a model and remove it; None if it has none."""
    return vars(model).pop(_ATTRIBUTE, None)


def conversion_of(model):
    """Return the conversion of a model, or None."""
    return vars(model).get(_ATTRIBUTE)


def rows(model, found, refusals):
    """Return a row per batch norm.

    Parameters
    ----------
    model : torch.nn.Module
    found : dict
        For each batch norm: {training: [`Pattern` or the reason why it is left, per call]}.
    refusals : dict
        Why a module could not be traced.
    """
    return [
        _row(name, module, found.get(module), lambda name=name: _reason(model, name, refusals))
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
    ]


def _row(name, module, results, reason):
    kind = type(module).__name__
    if results is None:
        return Row(name, kind, "left", "", why_not(module) or reason())
    calls = results.get(True) or results[False]
    patterns = [call for call in calls if isinstance(call, Pattern)]
    left = [call for call in calls if not isinstance(call, Pattern)]
    if not patterns:
        return Row(name, kind, "left", "", left[0])
    first = next((pattern for pattern in patterns if pattern.copy), patterns[0])
    state = "copied" if first.copy else "with residual" if first.residual is not None else "fused"
    why = first.copy or ("its convolution runs again in the backward" if first.runs_again else "")
    if left:
        why = f"{len(left)} of {len(calls)} calls are left: {left[0]}" + (f"; {why}" if why else "")
    return Row(name, kind, state, first.activation.name, why)


def _reason(model, name, refusals):
    """Say why no graph calls a batch norm: its closest parent that cannot be traced."""
    parents = [""]
    for part in name.split(".")[:-1]:
        parents.append(f"{parents[-1]}.{part}".lstrip("."))
    for parent in reversed(parents):
        module = model.get_submodule(parent)
        if module in refusals and not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            return f"{type(module).__name__} {parent} cannot be traced: {refusals[module]}".replace("  ", " ")
    return "no forward that was traced calls it"
