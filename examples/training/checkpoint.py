"""Checkpoints: files that are written whole or not at all, and the states of random generators."""

import os
import pickle
import random
from pathlib import Path

import numpy as np
import torch


def write(path, state):
    """Write a state; if the process or the machine dies meanwhile, the old file is still there."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    if os.name == "posix":  # the new name is on the disk only after its folder is
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def read(path):
    """Return the state in a file, on the CPU; None if there is no file. Exit if it is damaged."""
    if not Path(path).exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise SystemExit(
            f"{path} cannot be read: {error}; remove it to start again, or use another --output"
        ) from error


def random_states():
    """Return the states of this process's random generators."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - models may use it
    states = {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states):
    """Set the random generators to states of `random_states`."""
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def seed_all(seed):
    """Seed the random generators of this process."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
