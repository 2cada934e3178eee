"""A schedule for the learning rates of an optimizer."""

import math
from typing import ClassVar

from .._arguments import integer, not_negative
from .numbers_state import NumbersState


def _rates(name, value):
    """Return a list of learning rates, none of them negative."""
    if not isinstance(value, list):
        raise TypeError(f"{name} must be a list of numbers, got {value!r}")
    return [not_negative(name, rate) for rate in value]


class CosineSchedule(NumbersState):
    """Cosine annealing of the learning rates of an optimizer down to `lr_min`, with optional linear warmup.

    After the warmup and t more calls of `step` the learning rate of each group is
    ``lr_min + (base - lr_min) * (1 + cos(pi * t / steps)) / 2``, and `lr_min` after the last step. base is
    the "initial_lr" of the group; if it has none, it is set to its "lr", as in PyTorch. Therefore a schedule
    that is built after loading the state of the optimizer starts from the original rate, not from the decayed
    one. Assign ``optimizer.lr`` to start from another rate. See `torch.optim.lr_scheduler.CosineAnnealingLR`,
    and Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983.

    Parameters
    ----------
    optimizer : Optimizer
        Its groups' "lr" are set.
    steps : int >= 1
        Number of steps until `lr_min`.
    lr_min : float >= 0
    warmup : int >= 0
        Number of additional steps at the start. The rate grows linearly from ``base / (warmup + 1)``.

    Attributes
    ----------
    taken : int
        Number of calls of `step`.
    base_lrs : list of float
        The base rate of each group.

    Raises
    ------
    TypeError, ValueError
        For numbers out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from inplace_abn.layers import Parameter
    >>> from inplace_abn.optim import SGD
    >>> sgd = SGD([Parameter(np.ones(1))], lr=1.0)
    >>> schedule = CosineSchedule(sgd, 2)
    >>> for _ in range(3):
    ...     schedule.step()
    ...     print(round(sgd.lr, 3))
    0.5
    0.0
    0.0
    """

    state_checks: ClassVar = {
        "base_lrs": _rates,
        "steps": lambda name, value: integer(name, value, 1),
        "lr_min": not_negative,
        "warmup": lambda name, value: integer(name, value, 0),
        "taken": lambda name, value: integer(name, value, 0),
    }

    def __init__(self, optimizer, steps, lr_min=0.0, *, warmup=0):
        self.steps, self.warmup = integer("steps", steps, 1), integer("warmup", warmup, 0)
        self.lr_min = not_negative("lr_min", lr_min)
        self.optimizer, self.taken = optimizer, 0
        groups = optimizer.param_groups
        self.base_lrs = [group.setdefault("initial_lr", group["lr"]) for group in groups]
        self._set_rates()

    def step(self):
        """Set the learning rates for the next step of the optimizer."""
        self.taken += 1
        self._set_rates()

    def lr_at(self, step):
        """Return the learning rate of each group after `step` steps.

        Parameters
        ----------
        step : int

        Returns
        -------
        list of float
        """
        if step < self.warmup:
            return [base * (step + 1) / (self.warmup + 1) for base in self.base_lrs]
        factor = (1 + math.cos(math.pi * min(1.0, (step - self.warmup) / self.steps))) / 2
        return [self.lr_min + (base - self.lr_min) * factor for base in self.base_lrs]

    def check_state(self, found):
        """Raise a ValueError for another number of groups."""
        expected = len(self.optimizer.param_groups)
        if len(found["base_lrs"]) != expected:
            raise ValueError(f"base_lrs: expected {expected} groups, got {len(found['base_lrs'])}")

    def loaded(self):
        """Set the learning rates of the optimizer."""
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["initial_lr"] = base
        self._set_rates()

    def _set_rates(self):
        """Set the learning rates of the groups after `taken` steps."""
        groups, rates = self.optimizer.param_groups, self.lr_at(self.taken)
        if len(groups) != len(rates):
            raise ValueError(
                f"the optimizer has {len(groups)} parameter groups, the schedule was built for {len(rates)}; "
                "build it after add_param_group"
            )
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
