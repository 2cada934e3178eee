"""Measurements of `inplace_abn`: ``python -m benchmarks.limit`` and ``python -m benchmarks.accuracy``.

Run from the root of the source tree, these commands measure the *installed* package. Python puts the
current folder first on the search path, where the source tree's ``inplace_abn`` would hide an installed
one; the lines below put it last.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

if sys.path and Path(sys.path[0] or ".").resolve() == ROOT:
    sys.path.append(sys.path.pop(0))
