"""The scripts of examples/ and their modules can be imported by the tests of this folder."""

import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"

if EXAMPLES.exists():
    sys.path.insert(0, str(EXAMPLES))
else:  # the examples are part of the sources, not of the installed package
    collect_ignore_glob = ["test_*.py"]
