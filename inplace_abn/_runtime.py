"""Loads the compiled core, with an OpenMP runtime whose idle threads sleep after a short spin.

The runtime of GCC lets idle threads spin for milliseconds. They then compete for cores with other thread
pools, such as that of the BLAS of NumPy: a convolution between two normalizations can take several times as
long. The runtime reads GOMP_SPINCOUNT once, when the import below loads it. The variable is removed
afterwards, and is not set if the user has set it or OMP_WAIT_POLICY.
"""

import importlib
import os
import sys

_SPINS = "GOMP_SPINCOUNT"
_is_set = any(name in os.environ for name in (_SPINS, "OMP_WAIT_POLICY"))
if not _is_set:
    os.environ[_SPINS] = "1000"
try:
    importlib.import_module("._core", __package__)
except ModuleNotFoundError as error:
    if error.name != f"{__package__}._core":
        raise
    python = ".".join(map(str, sys.version_info[:2]))
    raise ImportError(
        f"{__package__} in {os.path.dirname(__file__)} is not built for Python {python}: install it with "
        "pip; if it is installed and this is the source tree, start Python in another folder"
    ) from None
finally:
    if not _is_set:
        del os.environ[_SPINS]
