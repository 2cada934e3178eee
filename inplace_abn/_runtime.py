"""Loads the compiled core, with an OpenMP runtime whose idle threads go to sleep soon.

GCC's runtime lets threads that wait for work spin for milliseconds. Beside another pool of threads, as that
of NumPy's BLAS, they take the processors that the others would work on: the convolutions between two
normalizations may take several times as long. The runtime reads the setting once, when it is loaded, which is
here; the process's environment is as before afterwards, and whoever has set either variable is heeded.
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
        "pip; if it is installed and this is its source, start Python in another folder"
    ) from None
finally:
    if not _is_set:
        del os.environ[_SPINS]
