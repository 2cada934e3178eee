"""The interpreter: sub-interpreters, repeated import, exit with live contexts, signals, limits of threads."""

import os
import signal

import pytest
from interpreters import STEP, printed, run

from inplace_abn import functional

pytestmark = pytest.mark.essential

SUB = """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters

CODE = '''
import warnings
warnings.simplefilter("ignore")
try:
    import inplace_abn
except ImportError as error:
    print("refused", flush=True)
else:
    print("imported", flush=True)
'''
{first}
print("start", flush=True)
other = interpreters.create()
interpreters.run_string(other, CODE)
interpreters.destroy(other)
{then}
"""


@pytest.mark.parametrize("before", [True, False], ids=["imported before", "imported after"])
def test_a_subinterpreter_is_refused_and_the_main_interpreter_works(before):
    """NumPy cannot be loaded twice in a process, or warns of it: no crash."""
    work = STEP + "assert step(2) == step(1)\n"
    script = SUB.format(first=work if before else "", then=work if before else "")
    done = run(script)
    if "No module named '_xxsubinterpreters'" in done.stderr:
        pytest.skip("this Python has no sub-interpreters")
    assert done.returncode == 0, done.stderr
    outcome = done.stdout.split()
    assert outcome[0] == "start"
    assert outcome[1] in ("refused", "imported")


def test_importing_again():
    """Each import has a module of its own; contexts of an earlier one are refused, and freed as usual."""
    script = (
        STEP
        + """
import gc
import importlib
import sys

want, kept = step(2), []
for _ in range(20):
    x = np.ones((2, 3), np.float32)
    kept.append((functional, functional.forward(x)[1], x))
    for name in [name for name in sys.modules if name.startswith("inplace_abn")]:
        del sys.modules[name]
    functional = importlib.import_module("inplace_abn.functional")
    assert step(2) == want
    try:
        functional.backward(kept[-1][1], x)
    except TypeError as error:
        assert "ctx" in str(error)
importlib.reload(functional)
for module, ctx, x in kept:
    module.backward(ctx, np.ones((2, 3), np.float32))
    assert x.flags.writeable
del kept, module, ctx
gc.collect()
print(step(1) == want)
"""
    )
    assert printed(script) == "True"


@pytest.mark.parametrize(
    "end", ["", "raise SystemExit(0)", "import os; os._exit(0)", "threading.main_thread()"]
)
def test_the_interpreter_ends_with_live_contexts(end):
    """In globals, in cycles, in running threads: no crash and no output."""
    script = (
        STEP
        + f"""
import builtins
import threading

class Node:
    def __init__(self, ctx):
        self.ctx, self.me = ctx, self
    def __del__(self):
        self.ctx.release()

contexts = [functional.forward(np.ones((4, 3, 8), np.float32))[1] for _ in range(20)]
node = Node(contexts[0])
builtins.kept = functional.forward(np.ones((4, 3), np.float32), strategy="checkpoint")[1]
worker = threading.Thread(target=lambda: [step(2) for _ in range(10**6)], daemon=True)
worker.start()
print("done", flush=True)
{end}
"""
    )
    done = run(script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the platform has no timers that send signals")
@pytest.mark.parametrize("threads", [1, 2])
def test_an_interrupt_is_handled_after_the_call(threads):
    """Sent during a call: the call completes, and its arrays are valid."""
    script = f"""
import signal
import numpy as np
from inplace_abn import functional

x = np.random.default_rng(0).normal(size=(16, 64, 128, 128)).astype(np.float32)
want = functional.forward(x.copy(), threads={threads})[0]
done = 0

def interrupt(number, frame):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
for _ in range(20):
    z = x.copy()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        functional.forward(z, threads={threads})
        signal.pause()  # the call ended before the signal
    except KeyboardInterrupt:
        pass
    assert z.flags.writeable
    whole = np.array_equal(z, want)
    assert whole or np.array_equal(z, x)  # the signal came before the call
    done += whole
print(done > 0)
"""
    assert printed(script) == "True"


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no interrupts to a single process")
def test_ctrl_c_ends_a_loop_of_calls():
    script = (
        STEP
        + """
import os
import signal
import threading

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # background processes ignore SIGINT
want, started = step(2), threading.Event()
threading.Thread(target=lambda: (started.wait(), interrupt())).start()
try:
    while True:
        started.set()
        assert step(2) == want
except KeyboardInterrupt:
    print("interrupted", step(2) == want)
"""
    )
    assert printed(script) == "interrupted True"


def test_threadpoolctl_sees_the_pool_and_does_not_limit_it():
    """Each call passes its number of threads, so OpenMP settings of other libraries do not change."""
    pytest.importorskip("threadpoolctl")
    if not functional.info()["openmp"]:
        pytest.skip("built without OpenMP")
    script = (
        STEP
        + """
import threadpoolctl

before = functional.get_num_threads()
want = step(None)
pools = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "openmp"]
with threadpoolctl.threadpool_limits(1, user_api="openmp"):
    assert step(None) == want
    print(len(pools) > 0, functional.get_num_threads() == before)
"""
    )
    assert printed(script, OMP_NUM_THREADS="3") == "True True"
