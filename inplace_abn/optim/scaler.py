"""Loss scaling, which prevents underflow of gradients in float16."""

from typing import ClassVar

import numpy as np

from .._arguments import fraction, integer, positive
from .numbers_state import NumbersState


class GradScaler(NumbersState):
    """Dynamic loss scaling, as `torch.amp.GradScaler`.

    The smallest float16 number is 6e-8, and gradients of activations are often smaller. Multiply the gradient
    of the loss by `scale`; then all gradients are multiplied by it, and `step` divides the gradients of the
    parameters by it. If a gradient is not finite, the step is skipped and the scale is multiplied by
    `backoff_factor`. After `growth_interval` steps without an overflow it is multiplied by `growth_factor`.
    bfloat16 has the range of float32 and needs no scale. (Micikevicius et al. 2018,
    https://arxiv.org/abs/1710.03740.)

    Parameters
    ----------
    scale : float > 0
        The initial scale.
    growth_factor : float > 0
    backoff_factor : float in [0, 1]
    growth_interval : int >= 1
        Number of steps without an overflow before the scale grows.

    Attributes
    ----------
    scale : float
    good_steps : int
        Number of steps since the scale changed or a step was skipped.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above.

    Examples
    --------
    >>> from inplace_abn import layers, optim
    >>> net, loss, scaler = layers.Linear(2, 3, rng=0), layers.CrossEntropy(), GradScaler()
    >>> optimizer = optim.SGD(net.parameters(), lr=0.1)
    >>> value = loss(net(np.ones((4, 2), np.float32)), np.array([0, 1, 2, 0]))
    >>> dx = net.backward(loss.backward(scaler.scale))
    >>> scaler.step(optimizer)
    True
    """

    state_checks: ClassVar = {
        "scale": positive,
        "growth_factor": positive,
        "backoff_factor": fraction,
        "growth_interval": lambda name, value: integer(name, value, 1),
        "good_steps": lambda name, value: integer(name, value, 0),
    }

    def __init__(
        self, scale=65536.0, *, growth_factor=2.0, backoff_factor=0.5, growth_interval=2000
    ):  # fmt: skip
        settings = {
            "scale": scale, "growth_factor": growth_factor, "backoff_factor": backoff_factor,
            "growth_interval": growth_interval, "good_steps": 0,
        }  # fmt: skip
        vars(self).update({name: self.state_checks[name](name, value) for name, value in settings.items()})

    def step(self, optimizer):
        """Divide the gradients by the scale and call ``optimizer.step()``, unless a gradient is not finite.

        Parameters
        ----------
        optimizer : Optimizer
            The gradients of its parameters are replaced by float32 or float64 arrays.

        Returns
        -------
        bool
            False if the step was skipped.
        """
        parameters = [parameter for parameter in optimizer.parameters if parameter.grad is not None]
        if not all(np.isfinite(parameter.grad).all() for parameter in parameters):
            self.scale *= self.backoff_factor
            self.good_steps = 0
            return False
        for parameter in parameters:
            dtype = np.result_type(parameter.grad, np.float32)
            parameter.grad = np.divide(parameter.grad, self.scale, dtype=dtype)
        optimizer.step()
        self.good_steps += 1
        if self.good_steps == self.growth_interval:
            self.scale *= self.growth_factor
            self.good_steps = 0
        return True
