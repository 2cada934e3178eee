"""Optimizers with PyTorch's semantics and parameter groups, and a schedule for their learning rates.

An optimizer updates the array ``parameter.data`` in place; the array object stays the same. Parameters of
float16 and bfloat16 get a float32 master copy, which is updated and then rounded to the parameter. States are
flat dictionaries of arrays: ``np.savez("optimizer.npz", **optimizer.state_dict())``.
"""

from .adam import Adam, AdamW
from .groups import decay_groups
from .optimizer import Optimizer
from .schedule import CosineSchedule
from .sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "CosineSchedule", "Optimizer", "decay_groups"]
