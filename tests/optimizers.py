"""Parameters and gradients to try optimizers on."""

import numpy as np

from inplace_abn.layers import Parameter
from inplace_abn.optim import SGD, Adam, AdamW

SHAPES = ((4, 3), (4,), (2,))

#: Class, settings. Every setting of every optimizer occurs.
SETTINGS = [
    (SGD, {}),
    (SGD, {"weight_decay": 0.1}),
    (SGD, {"momentum": 0.9}),
    (SGD, {"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.01}),
    (SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    (Adam, {}),
    (Adam, {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}),
    (Adam, {"amsgrad": True, "betas": (0.5, 0.6)}),
    (AdamW, {}),
    (AdamW, {"weight_decay": 0.3, "amsgrad": True, "betas": (0.5, 0.6)}),
]
IDS = [f"{kind.__name__}-{'-'.join(f'{key}={value}' for key, value in kw.items())}" for kind, kw in SETTINGS]


def parameters(dtype="float64"):
    rng = np.random.default_rng(0)
    return [Parameter(rng.standard_normal(shape).astype(dtype)) for shape in SHAPES]


def groups(trained, **second):
    """Return the parameters in two groups; the second one has settings of its own."""
    return [{"params": trained[:1]}, {"params": trained[1:], **second}]


def gradients(step):
    """Return the gradients of a step; the second parameter has none at first, the third one never."""
    rng = np.random.default_rng(100 + step)
    return rng.standard_normal((4, 3)), rng.standard_normal(4) if step > 1 else None, None


def take(optimizer, steps, first=0):
    """Run `steps` steps, with `gradients(first)`, `gradients(first + 1)`, ..."""
    for step in range(first, first + steps):
        for parameter, grad in zip(optimizer.parameters, gradients(step), strict=True):
            parameter.grad = None if grad is None else grad.astype(parameter.data.dtype)
        optimizer.step()
    return optimizer
