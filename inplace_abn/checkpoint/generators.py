"""The states of random number generators as arrays."""

import json

import numpy as np


def generators_of(layer):
    """Return the random generators of a layer and of the layers in it, such as Dropout, by path."""
    return {
        f"{path}.{key}" if path else key: value
        for path, inside in layer.named_layers()
        for key, value in vars(inside).items()
        if isinstance(value, np.random.Generator)
    }


def state_of(generator):
    """Return the state of a generator as JSON in an array of uint8."""
    text = json.dumps(generator.bit_generator.state, default=lambda array: array.tolist())
    return np.frombuffer(text.encode(), np.uint8).copy()


def prepare_load(name, generator, array):
    """Check a state; return a function without arguments that loads it.

    Raises
    ------
    ValueError
        If the array is not the state of a generator of this kind.
    """
    kind = type(generator.bit_generator)
    try:
        state = json.loads(np.asarray(array, np.uint8).tobytes())
        kind().state = state
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{name}: expected the state of a {kind.__name__} generator") from error

    def load():
        generator.bit_generator.state = state

    return load
