"""state_dict and load_state_dict, with the names that PyTorch gives to parameters and buffers."""

from typing import NamedTuple

from .. import _core
from .._state import check_mapping, copy_into, mismatch, stored
from .assignment import refuse_hidden


class IncompatibleKeys(NamedTuple):
    """Names that did not match in `Layer.load_state_dict` with ``strict=False``."""

    missing_keys: list
    unexpected_keys: list


class StateMixin:
    """The part of a `Layer` that saves and loads its state."""

    #: Buffers that a state need not contain, as in PyTorch: old checkpoints do not have them.
    optional_buffers = ("num_batches_tracked",)

    def named_state(self):
        """Yield parameters and buffers as (path, array), the parameters of a layer before its buffers."""
        refuse_hidden(self)
        for path, layer in self.named_layers():
            start = f"{path}." if path else ""
            for key, value in vars(layer).items():
                if hasattr(value, "grad"):
                    yield start + key, value.data
            for key in layer.buffers:
                if getattr(layer, key) is not None:
                    yield start + key, getattr(layer, key)

    def state_dict(self):
        """Return a dict of copies of all parameters and buffers by name, for `numpy.savez`.

        Examples
        --------
        >>> from inplace_abn.layers import InPlaceABN
        >>> list(InPlaceABN(2).state_dict())
        ['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked']
        """
        return {name: array.copy() for name, array in self.named_state()}

    def load_state_dict(self, state, strict=True):
        """Copy parameters and buffers from a mapping of names to arrays.

        They are copied into the arrays of the layer. Arrays are converted as in PyTorch: between
        floating-point dtypes by rounding, to the integers of `num_batches_tracked` by truncation, from shape
        (1,) to shape (). bfloat16 arrays read from a .npz file, which have the dtype "V2", are accepted.

        Parameters
        ----------
        state : mapping of str to array
            From `state_dict` or ``numpy.load("file.npz")``.
        strict : bool
            False: parameters and buffers that `state` lacks do not change, unexpected names are ignored.

        Returns
        -------
        IncompatibleKeys
            Lists of missing and of unexpected names.

        Raises
        ------
        TypeError
            If `state` is no mapping.
        RuntimeError
            If names are missing or unexpected, or arrays do not fit. The message lists all of them, and the
            layer is not changed.

        Examples
        --------
        >>> from inplace_abn.layers import InPlaceABN
        >>> one, two = InPlaceABN(2), InPlaceABN(2)
        >>> one.load_state_dict(two.state_dict())
        IncompatibleKeys(missing_keys=[], unexpected_keys=[])
        """
        return self.prepare_load(state, strict)()

    def prepare_load(self, state, strict=True):
        """Check a state, and return a function without arguments that loads it; see `load_state_dict`."""
        check_mapping("state", state)
        own = dict(self.named_state())
        found = {name: stored(state[name]) for name in state if name in own}
        missing = [name for name in own if name not in found and not self._is_optional(name)]
        unexpected = [name for name in state if name not in own]
        problems = _mismatches(own, found)
        if strict:
            problems = _keys_line("Missing", missing) + _keys_line("Unexpected", unexpected) + problems
        if problems:
            lines = "\n\t".join(problems)
            raise RuntimeError(f"Error(s) in loading state_dict for {type(self).__name__}:\n\t{lines}")

        def load():
            for name, array in found.items():
                copy_into(own[name], array)
            return IncompatibleKeys(missing, unexpected)

        return load

    def _is_optional(self, name):
        """Return True for a buffer that a state need not contain."""
        return name.rpartition(".")[2] in self.optional_buffers


def _keys_line(which, names):
    """Return the line of PyTorch's message about these names in a list, which is empty without names."""
    quoted = ", ".join(f'"{name}"' for name in names)
    return [f"{which} key(s) in state_dict: {quoted}."] if names else []


def _mismatches(own, found):
    """Return a line for each array of a state that cannot be copied into the array of its name."""
    problems = []
    for name, array in found.items():
        target = own[name]
        problem = mismatch(array, target.shape, target.dtype)
        keeper = _core.saved_by(target)
        if problem is None and keeper:
            problem = "memory", f"{keeper[0]} keeps it as {keeper[1]!r} for its backward"
        elif problem is None and not target.flags.writeable:
            problem = "memory", "the array of the layer is read-only"
        if problem:
            kind, text = problem
            problems.append(f"{kind} mismatch for {name}: {text}.")
    return problems
