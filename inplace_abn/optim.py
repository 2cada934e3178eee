"""Stochastic gradient descent, and a schedule for its step size."""

import math
from collections.abc import Iterable

import numpy as np

from ._numbers import finite, integer, not_negative

__all__ = ["SGD", "CosineSchedule"]


class SGD:
    """Stochastic gradient descent with momentum, as `torch.optim.SGD`.

    For every parameter with a gradient: ``d = grad + weight_decay * data``, then with momentum
    ``v = momentum * v + (1 - dampening) * d``, where v is d in the first step, and ``d = v``, or with
    `nesterov` ``d = d + momentum * v``. At last ``data -= lr * d``.

    Parameters
    ----------
    parameters : iterable of Parameter
        Objects with `data`, an array that is updated in place, and `grad`, an array of the same shape, or
        None for one that is to stay as it is.
    lr : float >= 0
        May be changed between the steps.
    momentum : float >= 0
    dampening : float
    weight_decay : float >= 0
    nesterov : bool
        Needs a momentum, and no dampening.

    Raises
    ------
    TypeError, ValueError
        For settings out of range, no parameters, and one that comes twice.

    Examples
    --------
    >>> import numpy as np
    >>> from types import SimpleNamespace
    >>> weight = SimpleNamespace(data=np.array([1.0]), grad=np.array([0.5]))
    >>> sgd = SGD([weight], lr=0.1, momentum=0.9)
    >>> for _ in range(2):
    ...     sgd.step()
    >>> weight.data.round(4)
    array([0.855])
    >>> sgd.zero_grad()
    >>> weight.grad is None
    True
    """

    def __init__(
        self, parameters, lr, momentum=0.0, weight_decay=0.0, nesterov=False, *, dampening=0.0
    ):  # fmt: skip
        if hasattr(parameters, "parameters") or not isinstance(parameters, Iterable):
            raise TypeError(
                "parameters must be what layer.parameters() returns, or another iterable of Parameter, got "
                f"{type(parameters).__name__}"
            )
        self.parameters = list(parameters)
        if not self.parameters:
            raise ValueError("parameters must hold at least one parameter, got none")
        for number, parameter in enumerate(self.parameters):
            if not (hasattr(parameter, "data") and hasattr(parameter, "grad")):
                raise TypeError(
                    f"parameters[{number}] must have data and grad, as those of layer.parameters() have, got "
                    f"{type(parameter).__name__}"
                )
            if any(parameter is other for other in self.parameters[:number]):
                raise ValueError(f"parameters[{number}]{_called(parameter)} is there twice")
        self.lr = not_negative("lr", lr)
        self.momentum = not_negative("momentum", momentum)
        self.dampening = finite("dampening", dampening)
        self.weight_decay = not_negative("weight_decay", weight_decay)
        self.nesterov = bool(nesterov)
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError(
                f"nesterov needs a momentum above 0 and no dampening, got {momentum=} and {dampening=}"
            )
        self._velocities = [None] * len(self.parameters)

    def step(self):
        """Update every parameter that has a gradient; the gradients stay as they are.

        Raises
        ------
        ValueError
            For a gradient that is not of its parameter's shape; no parameter is updated then.
        """
        for number, parameter in enumerate(self.parameters):
            if parameter.grad is not None and parameter.grad.shape != parameter.data.shape:
                raise ValueError(
                    f"parameters[{number}]{_called(parameter)}: grad of shape {parameter.grad.shape} "
                    f"for data of shape {parameter.data.shape}"
                )
        for number, parameter in enumerate(self.parameters):
            if parameter.grad is not None:
                self._velocities[number] = self._update(
                    parameter.data, parameter.grad, self._velocities[number]
                )

    def zero_grad(self):
        """Drop all gradients: the next backward starts afresh."""
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self):
        """Return the settings and copies of the momentum's arrays, None before the first step.

        Returns
        -------
        dict
        """
        settings = {name: getattr(self, name) for name in _SETTINGS}
        return settings | {"velocities": [v if v is None else v.copy() for v in self._velocities]}

    def load_state_dict(self, state):
        """Go on from `state_dict` of an optimizer of as many parameters of the same shapes.

        Parameters
        ----------
        state : dict

        Raises
        ------
        ValueError
            For keys that are missing or unexpected, and arrays that do not fit; nothing is changed then.
        """
        expected = {*_SETTINGS, "velocities"}
        if state.keys() != expected:
            missing, unexpected = sorted(expected - state.keys()), sorted(state.keys() - expected)
            raise ValueError(f"state has {missing=} and {unexpected=} keys")
        velocities = [v if v is None else np.array(v) for v in state["velocities"]]
        if len(velocities) != len(self.parameters):
            raise ValueError(f"state is of {len(velocities)} parameters, here are {len(self.parameters)}")
        for number, (velocity, parameter) in enumerate(zip(velocities, self.parameters, strict=True)):
            if velocity is not None and velocity.shape != parameter.data.shape:
                raise ValueError(
                    f"velocities[{number}] is of shape {velocity.shape}, parameter{_called(parameter)} of "
                    f"{parameter.data.shape}"
                )
        for name in _SETTINGS:
            setattr(self, name, state[name])
        self._velocities = velocities

    def _update(self, data, grad, velocity):
        """Update `data`; return the new velocity."""
        step = grad
        if self.weight_decay:
            step = self.weight_decay * data
            step += grad
        if self.momentum:
            if velocity is None:
                velocity = step.copy()
            else:
                velocity *= self.momentum
                velocity += step if self.dampening == 0 else (1 - self.dampening) * step
            step = step + self.momentum * velocity if self.nesterov else velocity
        data -= self.lr * step
        return velocity


_SETTINGS = ("lr", "momentum", "dampening", "weight_decay", "nesterov")


class CosineSchedule:
    """Half a cosine from the optimizer's step size down to `lr_min`.

    After t calls of `step` the optimizer's lr is ``lr_min + (lr - lr_min) * (1 + cos(pi * t / steps)) / 2``.
    As `torch.optim.lr_scheduler.CosineAnnealingLR`, but staying at `lr_min` after the last of the steps.

    Parameters
    ----------
    optimizer : SGD
        Its `lr` is what the schedule starts from, and what it sets.
    steps : int >= 1
        From the start to `lr_min`.
    lr_min : float >= 0
    warmup : int >= 0
        So many steps before, in which lr grows from ``lr / (warmup + 1)`` in equal parts.

    Raises
    ------
    TypeError, ValueError
        For numbers out of range.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> sgd = SimpleNamespace(lr=1.0)
    >>> schedule = CosineSchedule(sgd, 2)
    >>> for _ in range(3):
    ...     schedule.step()
    ...     print(round(sgd.lr, 3))
    0.5
    0.0
    0.0
    """

    def __init__(self, optimizer, steps, lr_min=0.0, *, warmup=0):
        self.optimizer = optimizer
        self.steps, self.warmup = integer("steps", steps, 1), integer("warmup", warmup, 0)
        self.lr_min = not_negative("lr_min", lr_min)
        self.lr_max, self.taken = optimizer.lr, 0
        optimizer.lr = self.lr_at(0)

    def step(self):
        """Set the step size for the next step of the optimizer."""
        self.taken += 1
        self.optimizer.lr = self.lr_at(self.taken)

    def lr_at(self, step):
        """Return the step size after so many steps.

        Parameters
        ----------
        step : int

        Returns
        -------
        float
        """
        if step < self.warmup:
            return self.lr_max * (step + 1) / (self.warmup + 1)
        share = min(1.0, (step - self.warmup) / self.steps)
        return self.lr_min + (self.lr_max - self.lr_min) * (1 + math.cos(math.pi * share)) / 2


def _called(parameter):
    name = getattr(parameter, "name", None)
    return f" ({name})" if name else ""
