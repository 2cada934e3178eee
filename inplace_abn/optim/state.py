"""Reading and checking the state of an optimizer, without changing the optimizer."""

import re

import numpy as np

from .._dtypes import compute_dtype, is_half
from .._state import check_mapping, converted, mismatch, stored
from .groups import in_parentheses

_ENTRY = re.compile(r"state\.(\d+)\.(\w+)")


def read_groups(optimizer, state):
    """Return the checked settings of each group in `state`.

    Parameters
    ----------
    optimizer : Optimizer
    state : mapping of str to array

    Raises
    ------
    TypeError, ValueError
        For missing or unexpected names, different groups, and settings out of range.
    """
    check_mapping("state", state)
    groups = [optimizer.members(number) for number in range(len(optimizer.param_groups))]
    needed = [f"groups.{n}.{name}" for n in range(len(groups)) for name in (*optimizer.checks, "params")]
    optional = {f"groups.{n}.initial_lr" for n in range(len(groups))}
    missing = [name for name in needed if name not in state]
    known = optional.union(needed)
    unexpected = [name for name in state if name not in known and not name.startswith("state.")]
    if missing or unexpected:
        raise ValueError(
            f"state has {missing=} and {unexpected=} names for {type(optimizer).__name__} with "
            f"{len(groups)} parameter groups"
        )
    return [_settings(optimizer, state, number, members) for number, members in enumerate(groups)]


def _settings(optimizer, state, number, members):
    """Return the checked settings of one group."""
    start = f"groups.{number}."
    numbers = np.asarray(state[start + "params"]).ravel().tolist()
    if numbers != list(members):
        raise ValueError(
            f"{start}params: expected the parameters {list(members)}, got {numbers}; build the optimizer "
            "with the same groups"
        )
    checks = optimizer.checks
    if start + "initial_lr" in state:
        checks = {**checks, "initial_lr": checks["lr"]}
    found = {
        name: check(start + name, stored(state[start + name]).tolist()) for name, check in checks.items()
    }
    optimizer.check_group(found)
    return found


def read_states(optimizer, state, settings):
    """Return the dictionary of arrays of each parameter, as fresh arrays.

    Parameters
    ----------
    optimizer : Optimizer
    state : mapping of str to array
    settings : list of dict
        The settings of each group, from `read_groups`.

    Raises
    ------
    ValueError
        For missing or unexpected names, and arrays that do not match.
    """
    parameters = optimizer.parameters
    found = [{} for _ in parameters]
    for name in state:
        if name.startswith("groups."):
            continue
        match = _ENTRY.fullmatch(name)
        if not match or int(match[1]) >= len(parameters):
            raise ValueError(
                f"state has the unexpected name {name!r}, with {len(parameters)} parameters here"
            )
        number, key = int(match[1]), match[2]
        found[number][key] = _array(optimizer, parameters[number], name, key, stored(state[name]))
    for group, group_settings in enumerate(settings):
        for number in optimizer.members(group):
            _check_complete(number, found[number], optimizer.required_state(group_settings))
    return found


def _array(optimizer, parameter, name, key, array):
    """Return a copy of one array of a parameter's state, in the dtype in which the parameter is updated."""
    shape, dtype = parameter.data.shape, compute_dtype(parameter.data.dtype)
    if key == "step" and key in optimizer.state_names:
        shape, dtype = (), np.dtype(np.int64)
    elif key not in optimizer.state_names and not (key == "master" and is_half(parameter.data.dtype)):
        raise ValueError(
            f"{name}: {type(optimizer).__name__} has no {key!r} for a parameter of {parameter.data.dtype}"
        )
    problem = mismatch(array, shape, dtype)
    if problem:
        raise ValueError(f"{name}{in_parentheses(parameter)}: {problem[1]}")
    return converted(array, shape, dtype)


def _check_complete(number, found, required):
    """Raise a ValueError if arrays are missing; a state without any array is that of an unused parameter."""
    missing = sorted(set(required) - found.keys()) if found.keys() - {"master"} else []
    if missing:
        raise ValueError(f"state.{number}: missing {', '.join(missing)}")
