"""Stochastic gradient descent."""

from typing import ClassVar

from .._arguments import finite, not_negative
from .optimizer import Optimizer


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, as `torch.optim.SGD`.

    For every parameter with a gradient: ``d = grad + weight_decay * data``. With momentum
    ``v = momentum * v + (1 - dampening) * d``, but v = d in the first step; then ``d = v``, or
    ``d = d + momentum * v`` with `nesterov`. Finally ``data -= lr * d``.

    Parameters
    ----------
    parameters : iterable of Parameter, or list of dict
        Objects with `data`, an array that is updated in place, and `grad`, an array of the same shape or
        None. Parameters with `grad` None or `requires_grad` False are not updated. Or parameter groups,
        ``{"params": [...], "lr": ...}``, with their own settings.
    lr : float >= 0
        Learning rate.
    momentum : float >= 0
    dampening : float
    weight_decay : float >= 0
    nesterov : bool
        Requires momentum > 0 and dampening 0.

    Raises
    ------
    TypeError, ValueError
        For settings out of range, an empty list of parameters, and a parameter that occurs twice.

    Examples
    --------
    >>> import numpy as np
    >>> from inplace_abn.layers import Parameter
    >>> weight = Parameter(np.array([1.0]))
    >>> weight.grad = np.array([0.5])
    >>> sgd = SGD([weight], lr=0.1, momentum=0.9)
    >>> for _ in range(2):
    ...     sgd.step()
    >>> weight.data.round(4)
    array([0.855])
    >>> sgd.state_dict()["state.0.momentum_buffer"]
    array([0.95])
    >>> sgd.zero_grad()
    >>> weight.grad is None
    True
    """

    checks: ClassVar = {
        "lr": not_negative,
        "momentum": not_negative,
        "dampening": finite,
        "weight_decay": not_negative,
        "nesterov": lambda name, value: bool(value),
    }
    state_names = ("momentum_buffer",)

    def __init__(
        self, parameters, lr=1e-3, momentum=0.0, *, dampening=0.0, weight_decay=0.0, nesterov=False
    ):  # fmt: skip
        super().__init__(
            parameters, lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay,
            nesterov=nesterov,
        )  # fmt: skip

    def check_group(self, settings):
        """Raise a ValueError for nesterov without momentum or with dampening."""
        momentum, dampening = settings["momentum"], settings["dampening"]
        if settings["nesterov"] and (momentum == 0 or dampening != 0):
            raise ValueError(
                f"nesterov requires a momentum above 0 and a dampening of 0, got {momentum=} and {dampening=}"
            )

    def update(self, data, grad, state, group):
        """Update `data` and `state` in place."""
        direction, momentum = grad.copy(), group["momentum"]
        if group["weight_decay"]:
            direction += group["weight_decay"] * data
        if momentum:
            velocity = state.get("momentum_buffer")
            if velocity is None:
                velocity = state["momentum_buffer"] = direction.copy()
            else:
                velocity *= momentum
                velocity += (1 - group["dampening"]) * direction
            if group["nesterov"]:
                direction += momentum * velocity
            else:
                direction[...] = velocity
        direction *= group["lr"]
        data -= direction
