"""Load pretrained weights from PyTorch, torchvision, timm, and the reference implementation."""

import os

import numpy as np

from .._arguments import choice
from .._state import check_mapping, mismatch, stored
from ..layers import ABN, Layer
from ..layers.state import IncompatibleKeys
from .files import read
from .names import names_in
from .position import pair_by_position

#: How many names of each kind an error message lists.
_SHOWN = 10

#: Source -> default `weight_mode`.
SOURCES = {"torch": "signed", "torchvision": "signed", "timm": "signed", "inplace_abn": "abs"}


def load_weights(
    network, path_or_state, *, source, weight_mode=None, mapping=None, by_position=False, exclude=(),
    strict=True,
):  # fmt: skip
    """Load pretrained weights into a network.

    The names are those of `network`, unless `source` or `mapping` translates them or `by_position` ignores
    them. The networks of torchvision and timm were trained with relu: build the network with
    ``activation="relu"`` and a strategy that keeps x or xhat for the same results, or fine-tune it with an
    invertible activation.

    Parameters
    ----------
    network : Layer
    path_or_state : str, path, or mapping of str to array
        A .npz or .safetensors file, or its arrays. float16 and bfloat16 are converted.
    source : {"torch", "torchvision", "timm", "inplace_abn"}
        Origin of the weights. There is no default, because the weight of a normalization is defined
        differently. "torchvision" and "timm" have names for `resnet`, `mobilenet_v2`, `densenet` and
        `deeplabv3` of `inplace_abn.models`. "inplace_abn" is the reference implementation,
        ``pip install inplace-abn``, whose InPlaceABN multiplies by ``abs(weight) + eps``.
    weight_mode : {"signed", "abs"}, optional
        "signed": the weight of normalizations is used as it is. "abs": ``abs(weight) + eps`` is loaded, with
        the eps of each `ABN` here. Default: "abs" for "inplace_abn", else "signed". The class ABN of the
        reference implementation, which is not in place, uses the weight as it is: pass "signed".
    mapping : dict or function, optional
        Name in `network` -> name in the file; replaces the names of `source`. A dict may omit names that are
        equal. ``lambda name: "module." + name`` for a network that was wrapped in DataParallel.
    by_position : bool
        True: pair parameters and buffers in order and ignore their names. For a `torch.nn.Sequential`, where
        activations are separate modules, so that the numbers in the names differ.
    exclude : sequence of str
        Layers and parameters of `network` that are not loaded, such as ``["scores"]`` for another number of
        classes. Their entries in the file are ignored.
    strict : bool
        False: missing names keep their values, unexpected names are ignored. Shapes must fit in any case.

    Returns
    -------
    IncompatibleKeys
        Lists of missing names, as in `network`, and of unexpected names, as in the file.

    Raises
    ------
    TypeError, ValueError
        For other arguments than those above, and files that cannot be read.
    RuntimeError
        For missing or unexpected names and arrays that do not fit. The message lists the names of both sides;
        nothing is loaded.

    Examples
    --------
    >>> import numpy as np
    >>> from inplace_abn.layers import Conv2d, InPlaceABN, Sequential
    >>> net = Sequential(Conv2d(1, 2, 1, bias=False), InPlaceABN(2), Conv2d(2, 1, 1, bias=False))
    >>> state = {  # of nn.Sequential(nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU, nn.Conv2d)
    ...     "0.weight": np.ones((2, 1, 1, 1)), "1.weight": np.array([-0.5, 2]), "1.bias": np.zeros(2),
    ...     "1.running_mean": np.zeros(2), "1.running_var": np.ones(2), "1.num_batches_tracked": np.array(9),
    ...     "3.weight": np.ones((1, 2, 1, 1)),
    ... }
    >>> load_weights(net, state, source="torch", by_position=True)
    IncompatibleKeys(missing_keys=[], unexpected_keys=[])
    >>> net[1].weight.data
    array([-0.5,  2. ], dtype=float32)
    """
    if not isinstance(network, Layer):
        raise TypeError(f"network must be a Layer, got {type(network).__name__}")
    default_mode = SOURCES[choice("source", source, SOURCES)]
    mode = choice("weight_mode", default_mode if weight_mode is None else weight_mode, ("signed", "abs"))
    state = _state(path_or_state, by_position)
    own = dict(network.named_state())
    if by_position and mapping is not None:
        raise ValueError("mapping cannot be combined with by_position=True, which ignores names")
    names = {name: name for name in own} if by_position else _names(own, source, mapping)
    excluded = _excluded(names, exclude)
    if by_position:
        names = pair_by_position(own, state, excluded)
    used = {name: theirs for name, theirs in names.items() if name not in excluded}
    found = {name: state[theirs] for name, theirs in used.items() if theirs in state}
    missing = [name for name in used if name not in found and _leaf(name) not in network.optional_buffers]
    unexpected = sorted(state.keys() - set(names.values()), key=list(state).index)
    _check(own, names, found, *((missing, unexpected) if strict else ((), ())))
    if mode == "abs":
        found |= _absolute(network, found)
    network.load_state_dict(found, strict=False)
    return IncompatibleKeys(missing, unexpected)


def _state(path_or_state, by_position):
    """Return the arrays of a checkpoint by name, in the order of the file."""
    if isinstance(path_or_state, (str, os.PathLike)):
        if by_position and str(path_or_state).lower().endswith(".safetensors"):
            raise ValueError("by_position: .safetensors files are sorted by name; use a .npz file or a dict")
        return read(path_or_state)
    check_mapping("path_or_state", path_or_state)
    return {name: stored(path_or_state[name]) for name in path_or_state}


def _excluded(names, exclude):
    """Return the names of parameters and buffers in the layers of `exclude`, from the names of both sides."""
    if isinstance(exclude, str):
        raise TypeError(f"exclude must be a list of names, got {exclude!r}; pass [{exclude!r}]")
    found = set()
    for path in exclude:
        inside = {name for name in names if _is_inside(name, path)}
        if not inside:
            ours = sorted(
                {name.rpartition(".")[0] for name, theirs in names.items() if _is_inside(theirs, path)}
            )
            layers = list(dict.fromkeys(name.partition(".")[0] for name in names))
            hint = f"it is called {_list(ours)} here" if ours else f"it has {_list(layers)}"
            raise ValueError(f"exclude: the network has no layer or parameter {path!r}; {hint}")
        found |= inside
    return found


def _is_inside(name, path):
    """Return True for the layer or parameter `path` itself, and for everything inside that layer."""
    return name == path or name.startswith(f"{path}.")


def _names(own, source, mapping):
    """Return the names in the checkpoint by the names in the network."""
    if callable(mapping):
        return {name: mapping(name) for name in own}
    if mapping is not None:
        unknown = [name for name in mapping if name not in own]
        if unknown:
            raise ValueError(f"mapping: the network has no parameter or buffer {unknown[0]!r}")
        return {name: mapping.get(name, name) for name in own}
    if source not in ("torchvision", "timm"):
        return {name: name for name in own}
    layers = names_in(source, list(dict.fromkeys(name.rpartition(".")[0] for name in own)))
    return {name: f"{layers[name.rpartition('.')[0]]}.{_leaf(name)}" for name in own}


def _check(own, names, found, missing, unexpected):
    """Raise one RuntimeError that lists all problems, with the names of both sides."""
    differing = []
    for name, array in found.items():
        problem = mismatch(array, own[name].shape, own[name].dtype)
        if problem:
            differing.append(f"{problem[0]} mismatch: {_both_names(name, names)}: {problem[1]}")
    problems = [
        *_shortened("missing", [f"missing: {_both_names(name, names)}" for name in missing]),
        *_shortened("unexpected", [f"unexpected: {name}" for name in unexpected]),
        *_shortened("mismatches", differing),
    ]
    if problems:
        lines = "\n\t".join(problems)
        raise RuntimeError(f"The checkpoint does not fit the network; nothing was loaded:\n\t{lines}")


def _shortened(kind, lines):
    """Return the first `_SHOWN` lines, and a line that says how many more there are."""
    shown = lines[:_SHOWN]
    return shown + ([f"{len(lines) - _SHOWN} more {kind}"] if len(lines) > _SHOWN else [])


def _list(names):
    """Return the first names, quoted, for messages."""
    return ", ".join(map(repr, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")


def _both_names(name, names):
    """Return the name in the checkpoint and, if it differs, that in the network, for messages."""
    return name if names[name] == name else f"{names[name]} ({name} in the network)"


def _absolute(network, found):
    """Return ``abs(weight) + eps`` for the weights of normalizations."""
    weights = {}
    for path, layer in network.named_layers():
        name = f"{path}.weight" if path else "weight"
        if isinstance(layer, ABN) and name in found:
            weights[name] = np.abs(found[name].astype(layer.weight.data.dtype)) + layer.eps
    return weights


def _leaf(name):
    """Return the last part of a name: "weight" of "body.0.weight"."""
    return name.rpartition(".")[2]
