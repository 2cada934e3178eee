"""Pairs parameters and buffers of a network and a checkpoint by position."""

from itertools import groupby, zip_longest

from .._state import mismatch

#: Last parts of names in PyTorch. If a name in the checkpoint ends in one, its pair must end in the same one.
_KNOWN = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


def pair_by_position(own, state, excluded):
    """Return name in the network -> name in the checkpoint, paired in the order of modules in PyTorch.

    Parameters
    ----------
    own : dict of str to ndarray
        Parameters and buffers of the network, in order.
    state : dict of str to ndarray
        Parameters and buffers of the checkpoint, in order. num_batches_tracked may be missing in all layers.
    excluded : collection of str
        Names in the network whose shapes may differ.

    Returns
    -------
    dict of str to str

    Raises
    ------
    RuntimeError
        For the first position where shapes or names do not match, or one side has no more entries.
    """
    ours, theirs = _in_order(own), list(state)
    if not any(_leaf(name) == "num_batches_tracked" for name in theirs):
        ours = [name for name in ours if _leaf(name) != "num_batches_tracked"]
    for position, (name, their_name) in enumerate(zip_longest(ours, theirs)):
        if not _fit(name, their_name, own, state, excluded):
            raise RuntimeError(
                f"position {position}: the network has {_described(name, own)}, the checkpoint has "
                f"{_described(their_name, state)}"
            )
    return dict(zip(ours, theirs, strict=True))


def _in_order(own):
    """Return the names, with slopes after the buffers of their layer: PReLU is a later module in PyTorch."""
    found = []
    for _, names in groupby(own, lambda name: name.rpartition(".")[0]):
        found += sorted(names, key=lambda name: _leaf(name) == "slope")
    return found


def _fit(name, their_name, own, state, excluded):
    """Return True if an array of the checkpoint can be the pair of one of the network, by name and shape."""
    if name is None or their_name is None:
        return False
    leaf = "weight" if _leaf(name) == "slope" else _leaf(name)
    if _leaf(their_name) in _KNOWN and _leaf(their_name) != leaf:
        return False
    return name in excluded or mismatch(state[their_name], own[name].shape, own[name].dtype) is None


def _described(name, arrays):
    """Return name and shape of an array, for messages."""
    return "no more entries" if name is None else f"{name} of shape {arrays[name].shape}"


def _leaf(name):
    """Return the last part of a name: "weight" of "body.0.weight"."""
    return name.rpartition(".")[2]
