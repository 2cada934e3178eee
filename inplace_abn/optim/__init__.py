"""Optimizers with the semantics and parameter groups of PyTorch, a learning rate schedule and a loss scaler.

An optimizer updates the array ``parameter.data`` in place. float16 and bfloat16 parameters have a float32
master copy, which is updated and then rounded to the parameter. States are flat dictionaries of arrays:
``np.savez("optimizer.npz", **optimizer.state_dict())``.

>>> import numpy as np
>>> from inplace_abn import layers, optim
>>> net, loss = layers.Linear(2, 3, rng=0), layers.CrossEntropy()
>>> optimizer = optim.SGD(net.parameters(), lr=0.1)
>>> value = loss(net(np.ones((4, 2), np.float32)), np.array([0, 1, 2, 0]))
>>> dx = net.backward(loss.backward())
>>> optimizer.step()
"""

from .adam import Adam, AdamW
from .groups import decay_groups
from .optimizer import Optimizer
from .scaler import GradScaler
from .schedule import CosineSchedule
from .sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "CosineSchedule", "GradScaler", "Optimizer", "decay_groups"]
