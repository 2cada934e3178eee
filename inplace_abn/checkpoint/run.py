"""Save and resume a training run: network, optimizer, schedule, generators and numbers in one file."""

from collections.abc import Mapping
from contextlib import suppress

import numpy as np

from ..layers import Layer
from .architecture import description_of, network_from
from .files import read, write
from .generators import generators_of, prepare_load, state_of

#: Prefix of the states of generators in layers: "generators.network.dropout.rng".
GENERATORS = "generators"
#: Prefix of the descriptions of networks: "architecture.network".
ARCHITECTURE = "architecture"


def save(path, **parts):
    """Save the parts of a training run into one file.

    Parameters
    ----------
    path : str or path
        Ends in .npz or .safetensors. An existing file is replaced atomically.
    **parts
        Any names. Layers, optimizers, schedules and other objects with `state_dict`; NumPy generators;
        dictionaries of arrays; arrays; numbers. The random generators in a layer, such as those of Dropout,
        are saved with it, and the classes and settings of the layers of a network, for `load_network`.

    Raises
    ------
    TypeError, ValueError
        If a part cannot be saved. No file is written.

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
    """Load a file written by `save` into the parts of a training run.

    Parameters
    ----------
    path : str or path
    **parts
        Objects to load into, under the names that they were saved with: layers, optimizers, schedules and
        other objects with `load_state_dict`; NumPy generators. They are overwritten.

    Returns
    -------
    dict
        The other parts of the file, by name: arrays, and dictionaries of arrays.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        If a part is not in the file, or a state does not fit. All states are checked before the first write,
        except those of objects from other libraries, which check in their own `load_state_dict`.

    Examples
    --------
    See `save`. Without parts: ``network.load_state_dict(load("run.npz")["network"])``.
    """
    found = _nested(read(path))
    found.pop(ARCHITECTURE, None)
    states, present = found.pop(GENERATORS, {}), ", ".join(found)
    foreign, own = [], []  # objects of other libraries; functions that load objects of this package
    for name, part in parts.items():
        if name not in found:
            raise ValueError(f"{name}: the file has no such part; it has {present or 'none'}")
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


def load_network(path, name=None):
    """Return a network from a file written by `save`, without code that builds it.

    Parameters
    ----------
    path : str or path
    name : str, optional
        The name that the network was saved with. It may be omitted if the file has one network.

    Returns
    -------
    Layer
        With the weights, running statistics, modes and generators of the saved one.

    Raises
    ------
    ValueError
        If the file has no such network, several of them and no `name` is given, or no description of it:
        networks with layers of other classes than those of this package are loaded by `load` into a network
        that your code has built.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from inplace_abn import models
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(Path(folder, "net.npz"), network=models.UNet(1, 2, widths=(4, 8), rng=0))
    ...     net = load_network(Path(folder, "net.npz"))
    >>> type(net).__name__, net.widths
    ('UNet', (4, 8))
    """
    arrays = _nested(read(path))
    described, states = arrays.pop(ARCHITECTURE, {}), arrays.pop(GENERATORS, {})
    if name is None and len(described) == 1:
        (name,) = described
    if name not in described:
        wanted = "network" if name is None else name
        has = f"it describes {', '.join(described)}" if described else "it describes no network"
        raise ValueError(
            f"{wanted}: expected a description of the network in the file, {has}; checkpoint.save writes one "
            "for networks of layers of this package; load others into a network that your code has built"
        )
    network = network_from(described[name])
    loads = [network.prepare_load(arrays.get(name, {})), *_generator_loads(name, network, states)]
    for load_part in loads:
        load_part()
    return network


def _check_name(name):
    if name in (GENERATORS, ARCHITECTURE) or "." in name:
        raise ValueError(f"a part cannot be called {name!r}: the name is reserved or contains a dot")


def _arrays_of(name, part):
    """Return the arrays to save for a part, by full name."""
    if isinstance(part, np.random.Generator):
        return {name: state_of(part)}
    if hasattr(part, "state_dict"):
        found = {f"{name}.{key}": np.asarray(value) for key, value in part.state_dict().items()}
        if isinstance(part, Layer):
            inside = generators_of(part).items()
            found |= {f"{GENERATORS}.{name}.{path}": state_of(generator) for path, generator in inside}
        if not found:
            raise ValueError(f"{name}: the state is empty; leave it out")
        if isinstance(part, Layer):
            with suppress(
                TypeError
            ):  # without a description, `load` needs a network that the caller has built
                found[f"{ARCHITECTURE}.{name}"] = description_of(part)
        return found
    if isinstance(part, Mapping):
        return {f"{name}.{key}": np.asarray(value) for key, value in part.items()}
    return {name: np.asarray(part)}


def _nested(arrays):
    """Return the arrays of a file by part; a part with several arrays is a dict."""
    found = {}
    for full_name, array in arrays.items():
        name, dot, key = full_name.partition(".")
        if dot:
            found.setdefault(name, {})[key] = array
        else:
            found[name] = array
    return found


def _generator_loads(name, layer, states):
    """Return functions that load the states of the generators in a layer."""
    start = f"{name}."
    found = {key.removeprefix(start): array for key, array in states.items() if key.startswith(start)}
    own = generators_of(layer)
    if found.keys() != own.keys():
        missing, unexpected = sorted(own.keys() - found.keys()), sorted(found.keys() - own.keys())
        raise ValueError(
            f"{name}: generators in the file do not match those of the layers: {missing=}, {unexpected=}"
        )
    return [prepare_load(start + path, own[path], array) for path, array in found.items()]
