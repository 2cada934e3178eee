"""state_dict and load_state_dict, with the names that PyTorch gives to parameters and buffers."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class IncompatibleKeys(NamedTuple):
    """What did not match in a `Layer.load_state_dict` with ``strict=False``."""

    missing_keys: list
    unexpected_keys: list


class StateMixin:
    """The part of a `Layer` that saves and loads."""

    #: Buffers that older checkpoints lack; PyTorch, too, takes them as they are then.
    optional_buffers = ("num_batches_tracked",)

    def named_state(self):
        """Go through parameters and buffers, as (path, array); parameters of a layer first."""
        for path, layer in self.named_layers():
            start = f"{path}." if path else ""
            for key, value in vars(layer).items():
                if hasattr(value, "grad"):
                    yield start + key, value.data
            for key in layer.buffers:
                if getattr(layer, key) is not None:
                    yield start + key, getattr(layer, key)

    def state_dict(self):
        """Return copies of all parameters and buffers by name, as they go into `numpy.savez`.

        Examples
        --------
        >>> from inplace_abn.layers import InPlaceABN
        >>> list(InPlaceABN(2).state_dict())
        ['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked']
        """
        return {name: array.copy() for name, array in self.named_state()}

    def load_state_dict(self, state, strict=True):
        """Copy parameters and buffers from a mapping of names to arrays.

        Parameters
        ----------
        state : mapping
            From `state_dict` or ``numpy.load("file.npz")``. Arrays of another floating dtype are converted.
        strict : bool
            False leaves alone what is missing, and ignores what is unexpected.

        Returns
        -------
        IncompatibleKeys
            Lists of missing and of unexpected names.

        Raises
        ------
        RuntimeError
            For missing and unexpected names, all of them listed, and for shapes that differ. Nothing has been
            changed then.
        """
        if not isinstance(state, Mapping):
            raise TypeError(
                f"state must be a mapping of names to arrays, such as a dict or numpy.load('file.npz'), "
                f"got {type(state).__name__}"
            )
        own = dict(self.named_state())
        found = {name: np.asarray(state[name]) for name in state if name in own}
        missing = [name for name in own if name not in found and not self._may_lack(name)]
        unexpected = [name for name in state if name not in own]
        problems = _mismatches(own, found)
        if strict:
            problems = _listed("Missing", missing) + _listed("Unexpected", unexpected) + problems
        if problems:
            lines = "\n\t".join(problems)
            raise RuntimeError(f"Error(s) in loading state_dict for {type(self).__name__}:\n\t{lines}")
        for name, array in found.items():
            np.copyto(own[name], array, casting="same_kind")
        return IncompatibleKeys(missing, unexpected)

    def _may_lack(self, name):
        return name.rpartition(".")[2] in self.optional_buffers


def _listed(which, names):
    quoted = ", ".join(f'"{name}"' for name in names)
    return [f"{which} key(s) in state_dict: {quoted}."] if names else []


def _mismatches(own, found):
    problems = []
    for name, array in found.items():
        if array.shape != own[name].shape:
            problems.append(
                f"size mismatch for {name}: the state_dict has shape {array.shape}, "
                f"the layer {own[name].shape}."
            )
        elif not np.can_cast(array.dtype, own[name].dtype, "same_kind"):
            problems.append(f"dtype mismatch for {name}: {array.dtype} does not fit into {own[name].dtype}.")
    return problems
