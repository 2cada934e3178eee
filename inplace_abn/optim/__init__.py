"""Optimizers with PyTorch's semantics and parameter groups, a schedule and a scaler of the loss.

An optimizer updates the array ``parameter.data`` in place; the array object stays the same. Parameters of
float16 and bfloat16 get a float32 master copy, which is updated and then rounded to the parameter. States are
flat dictionaries of arrays: ``np.savez("optimizer.npz", **optimizer.state_dict())``.
"""

from .adam import Adam, AdamW
from .groups import decay_groups
from .optimizer import Optimizer
from .scaler import GradScaler
from .schedule import CosineSchedule
from .sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "CosineSchedule", "GradScaler", "Optimizer", "decay_groups"]
