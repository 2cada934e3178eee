"""Adam (Kingma and Ba 2015, https://arxiv.org/abs/1412.6980) and AdamW.

AdamW decouples the weight decay from the gradient (Loshchilov and Hutter 2019,
https://arxiv.org/abs/1711.05101).
"""

import math
from typing import ClassVar

import numpy as np

from .._arguments import not_negative, number
from .optimizer import Optimizer


def _betas(name, value):
    """Return the decay rates as a pair of floats in [0, 1)."""
    try:
        pair = tuple(value)
    except TypeError:
        pair = ()
    if len(pair) != 2:
        raise ValueError(f"{name} must be two numbers, got {value!r}")
    pair = tuple(number(name, beta) for beta in pair)
    if not all(0 <= beta < 1 for beta in pair):
        raise ValueError(f"{name} must be two numbers in [0, 1), got {value!r}")
    return pair


class Adam(Optimizer):
    """Adam, as `torch.optim.Adam`.

    For every parameter with a gradient, in its step number t: ``g = grad + weight_decay * data``,
    ``m = beta1 * m + (1 - beta1) * g``, ``v = beta2 * v + (1 - beta2) * g**2``,
    ``data -= lr / (1 - beta1**t) * m / (sqrt(v / (1 - beta2**t)) + eps)``. With `amsgrad`, v in the last
    formula is the largest v so far.

    Parameters
    ----------
    parameters : iterable of Parameter, or list of dict
        As for `SGD`.
    lr : float >= 0
        Learning rate.
    betas : (float, float)
        Decay rates of the averages m and v, each in [0, 1).
    eps : float >= 0
        Added to the denominator.
    weight_decay : float >= 0
        The decay is added to the gradient. `AdamW` decouples it.
    amsgrad : bool
        True divides by the largest v so far.

    Raises
    ------
    TypeError, ValueError
        For settings out of range, an empty list of parameters, and a parameter that occurs twice.

    Examples
    --------
    >>> import numpy as np
    >>> from inplace_abn.layers import Parameter
    >>> weight = Parameter(np.array([1.0, 1.0]))
    >>> weight.grad = np.array([0.5, -5.0])
    >>> Adam([weight], lr=0.1).step()
    >>> weight.data.round(4)
    array([0.9, 1.1])
    """

    checks: ClassVar = {
        "lr": not_negative,
        "betas": _betas,
        "eps": not_negative,
        "weight_decay": not_negative,
        "amsgrad": lambda name, value: bool(value),
    }
    state_names = ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")

    def __init__(
        self, parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, *, weight_decay=0.0, amsgrad=False
    ):  # fmt: skip
        super().__init__(parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad)

    def required_state(self, settings):
        """Return the names in the state of a parameter after its first step."""
        return self.state_names if settings["amsgrad"] else self.state_names[:3]

    def update(self, data, grad, state, group):
        """Update `data` and `state` in place."""
        grad = self._decayed(data, grad, group)
        if "exp_avg" not in state:
            state["step"] = np.array(0, np.int64)
            state["exp_avg"], state["exp_avg_sq"] = np.zeros_like(data), np.zeros_like(data)
        state["step"] += 1
        step, (beta1, beta2) = int(state["step"]), group["betas"]
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean += (1 - beta1) * (grad - mean)
        square *= beta2
        square += (1 - beta2) * grad * grad
        if group["amsgrad"]:
            highest = state.setdefault("max_exp_avg_sq", np.zeros_like(data))
            square = np.maximum(highest, square, out=highest)
        denominator = np.sqrt(square)
        denominator /= math.sqrt(1 - beta2**step)
        denominator += group["eps"]
        data -= group["lr"] / (1 - beta1**step) * (mean / denominator)

    def _decayed(self, data, grad, group):
        """Return the gradient plus weight decay."""
        return grad + group["weight_decay"] * data if group["weight_decay"] else grad


class AdamW(Adam):
    """Adam with decoupled weight decay, as `torch.optim.AdamW`.

    ``data *= 1 - lr * weight_decay`` is followed by the step of `Adam` without weight decay.

    Parameters
    ----------
    parameters, lr, betas, eps, amsgrad
        As for `Adam`.
    weight_decay : float >= 0

    Raises
    ------
    TypeError, ValueError
        As `Adam`.

    Examples
    --------
    >>> from inplace_abn import layers, optim
    >>> net = layers.Sequential(layers.Conv2d(3, 8, 3), layers.InPlaceABN(8))
    >>> optimizer = AdamW(optim.decay_groups(net, weight_decay=0.05), lr=1e-3)
    >>> [group["weight_decay"] for group in optimizer.param_groups]
    [0.05, 0.0]
    """

    def __init__(
        self, parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, *, weight_decay=1e-2, amsgrad=False
    ):  # fmt: skip
        super().__init__(parameters, lr, betas, eps, weight_decay=weight_decay, amsgrad=amsgrad)

    def _decayed(self, data, grad, group):
        """Apply the weight decay to `data`; return the gradient unchanged."""
        data *= 1 - group["lr"] * group["weight_decay"]
        return grad
