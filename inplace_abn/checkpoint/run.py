"""Saving and resuming a training run: network, optimizer, schedule, generators and numbers in one file."""

from collections.abc import Mapping

import numpy as np

from ..layers import Layer
from .files import read, write
from .generators import generators_of, prepare_load, state_of

#: The first part of the names of generators' states: "generators.network.dropout.rng".
GENERATORS = "generators"


def save(path, **parts):
    """Save the parts of a training run into one file.

    Parameters
    ----------
    path : str or path
        Ends in .npz or .safetensors. An existing file is replaced in one step.
    **parts
        By any names: layers, optimizers, schedules and other objects with `state_dict`, generators of
        NumPy, dictionaries of arrays, arrays and numbers. The generators that the layers inside of a layer
        draw from, such as those of Dropout, are saved with it.

    Raises
    ------
    TypeError, ValueError
        For parts that cannot be saved. No file is written.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from inplace_abn import layers, optim
    >>> net = layers.Sequential(layers.Linear(4, 8), layers.Dropout(), layers.Linear(8, 2))
    >>> optimizer = optim.Adam(net.parameters())
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(Path(folder, "run.npz"), network=net, optimizer=optimizer, epoch=3)
    ...     others = load(Path(folder, "run.npz"), network=net, optimizer=optimizer)
    >>> int(others["epoch"])
    3
    """
    arrays = {}
    for name, part in parts.items():
        _check_name(name)
        arrays |= _arrays_of(name, part)
    write(path, arrays)


def load(path, **parts):
    """Load a file of `save` into the parts of a training run.

    Parameters
    ----------
    path : str or path
    **parts
        Objects to load into, by the names that they were saved under: layers, optimizers, schedules and
        other objects with `load_state_dict`, generators of NumPy.

    Returns
    -------
    dict
        What else is in the file, by name: arrays, and dictionaries of arrays.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        For parts that are not in the file and states that do not fit. Everything is checked first: nothing
        is changed then, but for objects of other libraries with a `load_state_dict` of their own.

    Examples
    --------
    See `save`. Without parts: ``network.load_state_dict(load("run.npz")["network"])``.
    """
    found = _nested(read(path))
    states, present = found.pop(GENERATORS, {}), ", ".join(found)
    foreign, own = [], []
    for name, part in parts.items():
        if name not in found:
            raise ValueError(f"{name}: the file has no such part; there are {present or 'none'}")
        state = found.pop(name)
        if isinstance(part, np.random.Generator):
            own.append(prepare_load(name, part, state))
        elif hasattr(part, "prepare_load"):
            own.append(part.prepare_load(state))
        elif hasattr(part, "load_state_dict"):
            foreign.append((part, state))
        else:
            raise TypeError(f"{name} must have load_state_dict, or be a Generator, got {type(part).__name__}")
        if isinstance(part, Layer):
            own += _generator_loads(name, part, states)
    for part, state in foreign:
        part.load_state_dict(state)
    for apply in own:
        apply()
    return found


def _check_name(name):
    if name == GENERATORS or "." in name:
        raise ValueError(f"a part cannot be called {name!r}: the name is reserved or has a dot in it")


def _arrays_of(name, part):
    """Return what is saved of a part, by the full names."""
    if isinstance(part, np.random.Generator):
        return {name: state_of(part)}
    if hasattr(part, "state_dict"):
        found = {f"{name}.{key}": np.asarray(value) for key, value in part.state_dict().items()}
        if isinstance(part, Layer):
            inside = generators_of(part).items()
            found |= {f"{GENERATORS}.{name}.{path}": state_of(generator) for path, generator in inside}
        if not found:
            raise ValueError(f"{name}: the state is empty")
        return found
    if isinstance(part, Mapping):
        return {f"{name}.{key}": np.asarray(value) for key, value in part.items()}
    return {name: np.asarray(part)}


def _nested(arrays):
    """Return the arrays of a file by part; those of a part with a state by name."""
    found = {}
    for full_name, array in arrays.items():
        name, dot, key = full_name.partition(".")
        if dot:
            found.setdefault(name, {})[key] = array
        else:
            found[name] = array
    return found


def _generator_loads(name, layer, states):
    """Return the functions that set the generators of the layers inside."""
    start = f"{name}."
    found = {key.removeprefix(start): array for key, array in states.items() if key.startswith(start)}
    own = generators_of(layer)
    if found.keys() != own.keys():
        missing, unexpected = sorted(own.keys() - found.keys()), sorted(found.keys() - own.keys())
        raise ValueError(f"{name}: the file has {missing=} and {unexpected=} generators for these layers")
    return [prepare_load(start + path, own[path], array) for path, array in found.items()]
