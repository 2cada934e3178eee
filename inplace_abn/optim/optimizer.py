"""Base class of the optimizers: parameter groups, checks, float32 master copies and the state."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from .. import _core
from .._dtypes import compute_dtype, is_half
from . import groups
from .state import read_groups, read_states


class Optimizer:
    """Base class of the optimizers. A subclass defines `checks`, `state_names` and `update`; see `SGD`.

    Parameters
    ----------
    parameters : iterable of Parameter, or list of dict
        As for `SGD`.
    **defaults
        The settings of groups that do not override them.

    Attributes
    ----------
    param_groups : list of dict
        As in PyTorch: "params", a list of parameters, and the settings of the group, which may be assigned
        between steps. A schedule adds "initial_lr".
    defaults : dict
        The settings that a group does not override.
    """

    #: The settings of a group: name -> function(name, value) that returns the checked value.
    checks: ClassVar = {}
    #: The names of the arrays in the state of a parameter, except "master".
    state_names = ()

    def __init__(self, parameters, **defaults):
        self.defaults = self._checked_settings(defaults, {})
        self.param_groups, self._states = [], []
        for group in groups.as_groups(parameters):
            self.add_param_group(group)
        if not self.parameters:
            raise ValueError("parameters must have at least one parameter, got none")

    def add_param_group(self, group):
        """Add a group of parameters with its own settings; settings that it omits are those of `defaults`.

        Parameters
        ----------
        group : mapping
            "params", an iterable of Parameter, and any of the settings.

        Raises
        ------
        TypeError, ValueError
            For unknown settings, settings out of range, and parameters of another group.
        """
        if not isinstance(group, Mapping):
            raise TypeError(f"group must be a dict, got {type(group).__name__}")
        params = groups.checked_parameters(group, len(self._states), self.parameters)
        settings = {name: value for name, value in group.items() if name != "params"}
        self.param_groups.append({"params": params, **self._checked_settings(settings, self.defaults)})
        self._states += [{} for _ in params]

    @property
    def parameters(self):
        """The parameters of all groups; messages and states refer to their index in this list."""
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def members(self, number):
        """Return the numbers of the parameters in a group, as a range."""
        start = sum(len(group["params"]) for group in self.param_groups[:number])
        return range(start, start + len(self.param_groups[number]["params"]))

    @property
    def lr(self):
        """The learning rate of all groups. Assigning it sets it for every group and removes "initial_lr".

        Raises
        ------
        ValueError
            On reading, if the groups have different rates.
        """
        rates = {group["lr"] for group in self.param_groups}
        if len(rates) != 1:
            raise ValueError(f"the groups have different learning rates, {sorted(rates)}; read param_groups")
        return rates.pop()

    @lr.setter
    def lr(self, rate):
        rate = self.checks["lr"]("lr", rate)
        for group in self.param_groups:
            group["lr"] = rate
            group.pop("initial_lr", None)

    def step(self):
        """Update every parameter that has a gradient and `requires_grad`; the gradients are not changed.

        Raises
        ------
        TypeError, ValueError
            For a gradient of another shape or dtype, read-only data, and data that a live context keeps. No
            parameter is updated in this case.
        """
        trained = [entry for entry in self._numbered() if _is_trained(entry[1])]
        for number, parameter, _ in trained:
            _check(number, parameter)
            _core.refuse_if_saved(parameter.data, writer=f"parameters[{number}]: step()")
        for number, parameter, group in trained:
            self._update_one(parameter, self._states[number], group)

    def zero_grad(self):
        """Set all gradients to None."""
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self):
        """Return settings and state as a flat dictionary of arrays, for `numpy.savez`.

        Returns
        -------
        dict
            The settings of each group as arrays, such as "groups.0.lr"; the indices of its parameters,
            "groups.0.params"; copies of the arrays of each parameter, with the names of PyTorch, such as
            "state.0.momentum_buffer".
        """
        arrays = {}
        for number, group in enumerate(self.param_groups):
            for name in (*self.checks, "initial_lr"):
                if name in group:
                    arrays[f"groups.{number}.{name}"] = np.array(group[name])
            arrays[f"groups.{number}.params"] = np.array(self.members(number), np.int64)
        for number, state in enumerate(self._states):
            arrays |= {f"state.{number}.{name}": array.copy() for name, array in state.items()}
        return arrays

    def load_state_dict(self, state):
        """Load the `state_dict` of an optimizer with the same groups of parameters.

        Parameters
        ----------
        state : mapping of str to array
            Such as ``numpy.load("optimizer.npz")``.

        Raises
        ------
        TypeError, ValueError
            For missing or unexpected names, and arrays that do not match; nothing is changed.
        """
        self.prepare_load(state)()

    def prepare_load(self, state):
        """Check a state; return a function without parameters that loads it. See `load_state_dict`."""
        settings = read_groups(self, state)
        states = read_states(self, state, settings)

        def load():
            for group, loaded in zip(self.param_groups, settings, strict=True):
                group.pop("initial_lr", None)
                group.update(loaded)
            self._states = states

        return load

    # ---- defined by subclasses ---------------------------------------------------------------------------

    def update(self, data, grad, state, group):
        """Update `data` in place from `grad`, arrays of the same shape and dtype, float32 or float64.

        `state` is the dictionary of arrays of the parameter; it is empty before the first step.
        """
        raise NotImplementedError

    def check_group(self, settings):
        """Raise for combinations of settings that are not supported."""

    def required_state(self, settings):
        """Return the names that a state must have, unless it is empty."""
        return self.state_names

    # ---- implementation ----------------------------------------------------------------------------------

    def _checked_settings(self, settings, defaults):
        """Return checked settings, with those of `defaults` for the ones that are missing."""
        unknown = sorted(str(name) for name in settings if name not in self.checks)
        if unknown:
            raise ValueError(
                f"{type(self).__name__} has no setting {unknown[0]!r}; the settings are "
                f"{', '.join(self.checks)}"
            )
        checked = {name: self.checks[name](name, value) for name, value in settings.items()}
        checked = {**defaults, **checked}
        self.check_group(checked)
        return checked

    def _numbered(self):
        """Yield (number, parameter, group) for all parameters."""
        number = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                yield number, parameter, group
                number += 1

    def _update_one(self, parameter, state, group):
        """Update a parameter; of a half type, its master copy, which is then rounded."""
        data = parameter.data
        target = _master(data, state) if is_half(data.dtype) else data
        self.update(target, np.asarray(parameter.grad, target.dtype, like=target), state, group)
        if target is not data:
            np.copyto(data, target, casting="same_kind")

    def __repr__(self):
        lines = [
            f"  {len(group['params'])} parameters: "
            + ", ".join(f"{name}={value}" for name, value in group.items() if name != "params")
            for group in self.param_groups
        ]
        return "\n".join([f"{type(self).__name__}(", *lines, ")"])


def _is_trained(parameter):
    return parameter.grad is not None and getattr(parameter, "requires_grad", True)


def _check(number, parameter):
    """Raise an error if a parameter cannot be updated."""
    data, grad, name = (
        parameter.data,
        parameter.grad,
        f"parameters[{number}]{groups.in_parentheses(parameter)}",
    )
    if not isinstance(data, np.ndarray) or compute_dtype(data.dtype) not in (np.float32, np.float64):
        kind = data.dtype if isinstance(data, np.ndarray) else type(data).__name__
        raise TypeError(f"{name}: data must be an array of float32, float64 or a half type, got {kind}")
    if np.shape(grad) != data.shape:
        raise ValueError(f"{name}: expected a grad of shape {data.shape}, got {np.shape(grad)}")
    if not np.can_cast(np.asarray(grad).dtype, compute_dtype(data.dtype), "same_kind"):
        raise TypeError(f"{name}: grad of {np.asarray(grad).dtype} does not fit data of {data.dtype}")
    if not data.flags.writeable:
        raise ValueError(f"{name}: data is read-only; the optimizer updates it in place")


def _master(data, state):
    """Return the float32 copy of a half-precision parameter.

    Elements of the parameter that differ from the rounded copy were assigned by other code, such as
    `load_state_dict`; they are copied to the master copy.
    """
    master = state.get("master")
    if master is None:
        master = state["master"] = data.astype(np.float32)
    else:
        np.copyto(master, data, where=master.astype(data.dtype) != data)
    return master
