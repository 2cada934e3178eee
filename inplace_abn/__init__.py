"""In-place activated batch normalization for NumPy arrays: one array kept for the backward instead of two.

>>> import numpy as np
>>> import inplace_abn as abn
>>> layer = abn.InPlaceABN(3)
>>> x = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
>>> z = layer(x)  # batch norm and leaky ReLU, written over x
>>> dx = layer.backward(np.ones_like(z))

`inplace_abn.layers` has the layers, `inplace_abn.models` networks of them, `inplace_abn.optim` optimizers,
`inplace_abn.checkpoint` saves and loads, `inplace_abn.export` prepares networks for inference,
`inplace_abn.memory` is the ledger of the memory that layers keep, `inplace_abn.plan` says what a training
step needs, `inplace_abn.gradcheck` checks gradients, `inplace_abn.distributed` has groups of processes for
layers with synchronized statistics. `inplace_abn.ops` and `inplace_abn.functional` are functions on arrays,
which the layers call; `inplace_abn.reference` has the latter in plain NumPy, as a specification to read.
`inplace_abn.torch` has modules for PyTorch and converts models.

``python -m inplace_abn demo`` trains networks with all strategies and compares them, ``plan`` prints what a
training step needs, ``export`` writes a saved network to an ONNX file.
"""

import importlib
from typing import TYPE_CHECKING

from . import _runtime, functional  # noqa: F401
from ._core import __version__
from .functional import Context, Gradients, get_num_threads, info, set_num_threads

if TYPE_CHECKING:
    from . import checkpoint, distributed, export, layers, memory, models, ops, optim, reference
    from ._gradcheck import gradcheck
    from ._plan import plan
    from .layers import ABN, InPlaceABN

_MODULES = ("checkpoint", "distributed", "export", "layers", "memory", "models", "ops", "optim", "reference")

#: Name -> module, imported on first access, which keeps the import of the package fast.
_LAZY = {
    "ABN": "layers",
    "InPlaceABN": "layers",
    "gradcheck": "_gradcheck",
    "plan": "_plan",
    **{name: name for name in _MODULES},
}

__all__ = [
    "ABN",
    "Context",
    "Gradients",
    "InPlaceABN",
    "__version__",
    "checkpoint",
    "distributed",
    "export",
    "functional",
    "get_num_threads",
    "gradcheck",
    "info",
    "layers",
    "memory",
    "models",
    "ops",
    "optim",
    "plan",
    "reference",
    "set_num_threads",
]


def __getattr__(name):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{_LAZY[name]}", __name__)
    value = module if name == _LAZY[name] else getattr(module, name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
