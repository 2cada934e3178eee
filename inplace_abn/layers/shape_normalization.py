"""Normalization of shape arrays: what `functional.forward` and `functional.backward` allocate and keep.

The functions take the place of the compiled ones while a plan is made; see `inplace_abn._shape_arrays`. They
assume what holds for initial weights: no guarded channels and no escaped elements.
"""

import math

import numpy as np

from .. import _core, memory
from .._activations import ACTIVATIONS, KEEPS
from .._results import Gradients
from .._shape_arrays import ShapeArray, meter


class _Context:
    """The arrays that one call keeps; in place of `inplace_abn.Context`."""

    def __init__(self, saved, owner, activation, x, parameters):
        self.saved, self._z, self._shape = saved, x, x.shape
        self.parameters = parameters  # weight, bias, slope
        self._entries = [_core.save(array, owner=owner, role=role) for role, array in saved.items()]
        self._is_recorded = memory.recorder is not None
        if self._is_recorded:
            for role, array in saved.items():
                memory.recorder.saved(id(self), owner(), role, array, activation)

    def recompute(self):
        """Return an array like z."""
        z = np.empty_like(self._z)
        _count_traffic(self._z, z)
        return z

    def release(self):
        """Release the arrays."""
        if self._is_recorded and memory.recorder is not None:
            memory.recorder.freed(id(self))
        for entry in self._entries:
            entry.release()
        self.saved, self._entries, self._z, self._is_recorded = {}, [], None, False

    __del__ = release


def forward(
    x, *, owner, strategy, activation, weight=None, bias=None, slope=None, residual=None, mask=None, **_
):
    """Return z and the context of a call; `owner` is "" if nothing is kept.

    The other arguments are those of `functional.forward`.
    """
    keeps = KEEPS[strategy]
    z = x if keeps == "z" else np.empty_like(x)
    _count_traffic(x, x, z)
    if owner == "":
        return z, None
    saved = {keeps: x}
    if residual is not None:
        _count_traffic(residual)
        saved["residual"] = residual
    if mask is not None:
        saved["mask"] = ShapeArray((math.ceil(mask.size / 8),), np.uint8)
    if keeps == "z" and ACTIVATIONS[activation].minimum is not None:
        saved["branch_mask"] = ShapeArray((math.ceil(x.size / 8),), np.uint8)
    return z, _Context(saved, owner, activation, x, (weight, bias, slope))


def backward(ctx, dz, *, overwrite=False):
    """Return the `Gradients` of a call, and release its context."""
    kept, residual = next(iter(ctx.saved.values())), ctx.saved.get("residual")
    dx = dz if overwrite else np.empty_like(kept)
    dresidual = None if residual is None else np.empty_like(kept)
    _count_traffic(kept, dz, kept, dz, dx, *([] if residual is None else [residual, dresidual]))
    dweight, dbias, dslope = (
        None if parameter is None else np.empty_like(parameter) for parameter in ctx.parameters
    )
    ctx.release()
    return Gradients(dx, dweight, dbias, dslope, dresidual)


def _count_traffic(*arrays):
    """Count a read or write of each array, if a plan is made."""
    if meter() is not None:
        meter().passed(*arrays)
