"""In-place activated batch normalization for NumPy arrays: one array kept for the backward instead of two.

`inplace_abn.functional` has the functions that work on arrays, `inplace_abn.reference` the same in plain
NumPy, as a specification to read.
"""

from . import functional
from ._core import __version__
from .functional import Context, Gradients, get_num_threads, info, set_num_threads

__all__ = [
    "Context",
    "Gradients",
    "__version__",
    "functional",
    "get_num_threads",
    "info",
    "set_num_threads",
]
