"""Base of the optimizers: parameter groups, checks, float32 master copies and the state."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from .. import _core
from .._dtypes import compute_dtype, is_half
from . import groups
from .state import read_groups, read_states


class Optimizer:
    """Base of the optimizers.

    A subclass has `checks`, `state_names` and `update`; see `SGD`.

    Attributes
    ----------
    param_groups : list of dict
        As in PyTorch: "params", a list of parameters, and the settings of the group, which may be changed
        between steps. A schedule adds "initial_lr".
    defaults : dict
        The settings of groups that do not have their own.
    """

    #: Settings of a group: name -> function(name, value) that returns the value, or raises.
    checks: ClassVar = {}
    #: Names of the arrays that a parameter's state may have, besides "master".
    state_names = ()

    def __init__(self, parameters, **defaults):
        self.defaults = self._checked_settings(defaults, {})
        self.param_groups, self._states = [], []
        for group in groups.as_groups(parameters):
            self.add_param_group(group)
        if not self.parameters:
            raise ValueError("parameters must hold at least one parameter, got none")

    def add_param_group(self, group):
        """Add parameters with settings of their own; all others are the defaults.

        Parameters
        ----------
        group : mapping
            "params", an iterable of Parameter, and any of the settings.

        Raises
        ------
        TypeError, ValueError
            For unknown settings and settings out of range, and for parameters that the optimizer has already.
        """
        if not isinstance(group, Mapping):
            raise TypeError(f"group must be a dict, got {type(group).__name__}")
        params = groups.checked_parameters(group, len(self._states), self.parameters)
        settings = {name: value for name, value in group.items() if name != "params"}
        self.param_groups.append({"params": params, **self._checked_settings(settings, self.defaults)})
        self._states += [{} for _ in params]

    @property
    def parameters(self):
        """The parameters of all groups, in order: the list behind the numbers in messages and states."""
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def members(self, number):
        """Return the numbers of the parameters in a group, as a range."""
        start = sum(len(group["params"]) for group in self.param_groups[:number])
        return range(start, start + len(self.param_groups[number]["params"]))

    @property
    def lr(self):
        """The learning rate of all groups; assigning it sets every group, and where schedules start from.

        Raises
        ------
        ValueError
            If the groups differ.
        """
        rates = {group["lr"] for group in self.param_groups}
        if len(rates) != 1:
            raise ValueError(f"the groups have different learning rates, {sorted(rates)}: read param_groups")
        return rates.pop()

    @lr.setter
    def lr(self, rate):
        rate = self.checks["lr"]("lr", rate)
        for group in self.param_groups:
            group["lr"] = rate
            group.pop("initial_lr", None)

    def step(self):
        """Update every parameter that has a gradient and requires one; the gradients stay as they are.

        Raises
        ------
        TypeError, ValueError
            For a gradient or data that cannot be used, and data that a live context keeps; no parameter is
            updated then.
        """
        chosen = [entry for entry in self._numbered() if _is_trained(entry[1])]
        for number, parameter, _ in chosen:
            _check(number, parameter)
            _core.refuse_if_saved(parameter.data, writer=f"parameters[{number}]: step()")
        for number, parameter, group in chosen:
            self._update_one(parameter, self._states[number], group)

    def zero_grad(self):
        """Set all gradients to None."""
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self):
        """Return settings and state as a flat dictionary of arrays, as it goes into `numpy.savez`.

        Returns
        -------
        dict
            "groups.0.lr" and so on: the settings of each group as arrays; "groups.0.params": the numbers of
            its parameters. "state.0.momentum_buffer" and so on: copies of the arrays of each parameter, with
            PyTorch's names.
        """
        found = {}
        for number, group in enumerate(self.param_groups):
            for name in (*self.checks, "initial_lr"):
                if name in group:
                    found[f"groups.{number}.{name}"] = np.array(group[name])
            found[f"groups.{number}.params"] = np.array(self.members(number), np.int64)
        for number, state in enumerate(self._states):
            found |= {f"state.{number}.{name}": array.copy() for name, array in state.items()}
        return found

    def load_state_dict(self, state):
        """Go on from the `state_dict` of an optimizer with the same groups of parameters.

        Parameters
        ----------
        state : mapping of str to array
            Such as ``numpy.load("optimizer.npz")``.

        Raises
        ------
        TypeError, ValueError
            For names that are missing or unexpected, and arrays that do not fit; nothing is changed then.
        """
        self.prepare_load(state)()

    def prepare_load(self, state):
        """Check a state; return a function without arguments that loads it. See `load_state_dict`."""
        settings = read_groups(self, state)
        states = read_states(self, state, settings)

        def load():
            for group, found in zip(self.param_groups, settings, strict=True):
                group.pop("initial_lr", None)
                group.update(found)
            self._states = states

        return load

    # ---- to be written by each optimizer -----------------------------------------------------------------

    def update(self, data, grad, state, group):
        """Update `data` in place, an array of float32 or float64, from `grad`, of the same dtype and shape.

        `state` is the parameter's dictionary of arrays, empty at first.
        """
        raise NotImplementedError

    def check_group(self, settings):
        """Raise for settings that do not go together."""

    def required_state(self, settings):
        """Return the names that a state has, unless it is empty."""
        return self.state_names

    # ---- details -----------------------------------------------------------------------------------------

    def _checked_settings(self, settings, defaults):
        unknown = sorted(str(name) for name in settings if name not in self.checks)
        if unknown:
            raise ValueError(
                f"{type(self).__name__} has no setting {unknown[0]!r}; there are {', '.join(self.checks)}"
            )
        checked = {name: self.checks[name](name, value) for name, value in settings.items()}
        checked = {**defaults, **checked}
        self.check_group(checked)
        return checked

    def _numbered(self):
        number = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                yield number, parameter, group
                number += 1

    def _update_one(self, parameter, state, group):
        data = parameter.data
        target = _master(data, state) if is_half(data.dtype) else data
        self.update(target, np.asarray(parameter.grad, target.dtype), state, group)
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
    """Raise if a parameter cannot be updated."""
    data, grad, name = parameter.data, parameter.grad, f"parameters[{number}]{groups.called(parameter)}"
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

    Elements of the parameter that differ from the rounded copy were set from outside, for example by
    `load_state_dict`; the copy takes their values.
    """
    master = state.get("master")
    if master is None:
        master = state["master"] = data.astype(np.float32)
    else:
        np.copyto(master, data, where=master.astype(data.dtype) != data)
    return master
