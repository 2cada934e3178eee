"""The peak memory of a training step, measured in a separate process."""

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

from . import tasks
from .trainer import Trainer


def in_separate_process(setting, strategy):
    """Run `measure` for one strategy in a new process; return its result."""
    arguments = vars(setting) | {"task": setting.task.key}
    command = [sys.executable, "-m", __name__, json.dumps({"strategy": strategy, **arguments})]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {strategy!r} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def measure(strategy, task, **options):
    """Measure a step with a strategy; `options` are those of `tasks.Setting`.

    Return peaks in bytes, as {"process": ..., "tracemalloc": ...}.

    "process" is the peak of the resident memory, or None if the system does not report it; "tracemalloc" is
    the peak during a step, minus the level before the step.
    """
    setting = tasks.Setting(tasks.TASKS[task], **options)
    trainer = Trainer(setting.network(strategy), 2, setting.dtype)
    images, targets = setting.noise()
    trainer.step(images, targets)
    process = resident_peak()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    trainer.step(images, targets)
    return {"process": process, "tracemalloc": tracemalloc.get_traced_memory()[1] - before}


def resident_peak():
    """Return the highest resident memory of this process so far, in bytes, or None."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage includes the peak of the parent process
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
