"""Benchmarks of `inplace_abn`: ``python -m benchmarks.limit`` and others, see docs/benchmarks.md.

Run from the root of the source tree, the commands measure the *installed* package. Python puts the
current folder first on the search path, where the source tree's ``inplace_abn`` would hide the installed
package; the lines below move it to the end.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

if sys.path and Path(sys.path[0] or ".").resolve() == ROOT:
    sys.path.append(sys.path.pop(0))
