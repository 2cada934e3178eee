"""What conversion has done to a model, or would do: it is tried on a copy on the device "meta"."""

import copy
import warnings

import torch
from torch import nn

from ..conversion import convert, report
from ..conversion.record import conversion_of

_FUSED = ("fused", "with residual", "copied")
#: The options of `convert` that keep less and take more time.
RUN_AGAIN = {"recompute_stem": True, "recompute_projections": True}


class Trial:
    """The report of a converted model, or of a conversion that is tried on a copy.

    Parameters
    ----------
    model : torch.nn.Module

    Attributes
    ----------
    is_converted : bool
    """

    def __init__(self, model):
        self._model = model
        self.is_converted = any(conversion_of(module) is not None for module in model.modules())
        self._problem = None
        if self.is_converted:
            self._rows = {row.path: row for row in report(model).rows}
        else:
            self._rows = self._try()

    def would_fuse(self, path):
        """Return True if the model is not converted, and conversion would fuse this batch norm."""
        return not self.is_converted and path in self._rows and self._rows[path].state in _FUSED

    def is_alone(self, path):
        """Return True if nothing is fused with this batch norm."""
        row = self._rows[path]
        return row.activation == "identity" and row.state != "with residual"

    def sentence(self, path, size):
        """Say what conversion does to a batch norm; `size` is the text of what that frees, or None."""
        if self._problem is not None:
            return f"what convert(model) would do with {path} is not known: {self._problem}"
        row = self._rows.get(path)
        if row is None:
            return f"{path} is no torch.nn.BatchNorm: convert(model) leaves it"
        if not self.is_converted:
            if row.state in _FUSED:
                if size is None:
                    return f"convert(model) would fuse {path} with what follows it, and keep one tensor there"
                return f"convert(model) would fuse {path} with what follows it, and free {size}"
            return f"convert(model) would leave {path}: {row.why}"
        if row.state in _FUSED:
            return (
                f"{path} was converted, but PyTorch's own operations ran: hooks on modules inside, another "
                "mode or form of call than those that were traced, or a dtype or device without kernels"
            )
        return f"{path} was not converted: {row.why}"

    def remarks(self):
        """Return lines about the batch norms that are left, one per reason."""
        if self._problem is not None:
            return [f"convert(model) cannot be tried on a copy: {self._problem}"]
        reasons = {}
        for row in self._rows.values():
            if row.state not in _FUSED:
                reasons.setdefault(row.why, []).append(row.path)
        verb = "was not" if self.is_converted else "would not be"
        lines = []
        for why, paths in reasons.items():
            more = f" and {len(paths) - 3} more" if paths[3:] else ""
            lines.append(f"{', '.join(paths[:3])}{more} {verb} converted: {why}")
        return lines

    def run_again(self):
        """Return the paths of the batch norms whose results the options of `RUN_AGAIN` would not keep."""
        rows = self._try(**RUN_AGAIN) if self.is_converted else {}
        return [path for path, row in rows.items() if "runs again" in row.why]

    def _try(self, **options):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                rows = report(convert(_without_memory(self._model), **options)).rows
        except Exception as error:  # of a model's own methods: it cannot be copied or traced
            self._problem = f"{type(error).__name__}: {error}"
            return {}
        return {row.path: row for row in rows}


def _without_memory(model):
    """Return a copy of a model whose parameters and buffers are on the device "meta"."""
    memo = {}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)
