"""Run a script of examples/ in a process of its own: ``python run_example.py CODE SCRIPT ARGUMENTS``.

CODE runs before the script; `models` is its module of models.
"""

import runpy
import sys
from pathlib import Path

import torch

torch.set_num_threads(1)
code, script = sys.argv[1:3]
sys.path.insert(0, str(Path(script).parent))
from training import models  # noqa: E402

exec(code, {"models": models})
sys.argv = sys.argv[2:]
runpy.run_path(script, run_name="__main__")
