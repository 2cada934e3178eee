"""Scripts run in separate interpreters."""

import os
import subprocess
import sys
import textwrap

#: A step of training, and its results as bytes.
STEP = """
import numpy as np
from inplace_abn import functional

def step(threads=2, seed=0):
    x = np.random.default_rng(seed).normal(size=(4, 32, 40, 40)).astype(np.float32)
    z, ctx = functional.forward(x, activation="elu", activation_param=1.0, threads=threads)
    dx = functional.backward(ctx, np.ones_like(x), threads=threads).dx
    return z.tobytes() + dx.tobytes()
"""


def run(script, *options, timeout=120, **environment):
    """Run a script, or a file given as a path, with a time limit; None in `environment` unsets a variable."""
    merged = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment}
    merged = {name: value for name, value in {**os.environ, **merged}.items() if value is not None}
    source = ["-c", textwrap.dedent(script)] if isinstance(script, str) else [str(script)]
    return subprocess.run(
        [sys.executable, *options, *source],
        env=merged, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


def printed(script, *options, **keywords):
    """Return the output of a script; it must succeed without a warning."""
    done = run(script, "-W", "error", *options, **keywords)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
