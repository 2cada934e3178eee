"""The highest use of memory in a step of training, in a process that does nothing else."""

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np

from . import tasks


def in_a_process_of_its_own(setting, strategy):
    """Return the peaks of one strategy: what `measure` gives, of a new process."""
    arguments = {
        "task": setting.task.key,
        "widths": setting.widths,
        "batch_size": setting.batch_size,
        "dtype": setting.dtype,
        "strategy": strategy,
    }
    command = [sys.executable, "-m", __name__, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {strategy!r} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def measure(task, widths, batch_size, dtype, strategy):
    """Return {"process": peak of the resident memory, "tracemalloc": peak of a step beyond what was there}.

    In bytes; "process" is None on systems that do not tell.
    """
    setting = tasks.TASKS[task].setting(batch_size=batch_size, dtype=dtype)
    from .training import Trainer

    net = setting.task.make(tuple(widths), strategy=strategy, dtype=np.dtype(dtype), rng=0)
    trainer, rng = Trainer(net, steps=2), np.random.default_rng(0)
    images = rng.standard_normal((batch_size, 1, tasks.SIZE, tasks.SIZE)).astype(dtype)
    targets = rng.integers(10, size=setting.task.target_shape(batch_size))
    trainer.step(images, targets)
    process = resident_peak()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    trainer.step(images, targets)
    return {"process": process, "tracemalloc": tracemalloc.get_traced_memory()[1] - before}


def resident_peak():
    """Return the highest resident memory of this process so far, in bytes, or None."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the process that this one was forked from
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
