"""Side effects of import and calls: floating-point modes, threads of other libraries, the environment."""

import os
import sys

import numpy as np
import pytest
from batches import ISAS, random_batch, run
from interpreters import printed

from inplace_abn import functional

WORK = """
import numpy as np
from inplace_abn import functional

def work(threads):
    x = np.random.default_rng(0).normal(size=(8, 64, 32, 32)).astype(np.float32)
    _, ctx = functional.forward(x, activation="elu", activation_param=1.0, threads=threads)
    functional.backward(ctx, np.ones_like(x), threads=threads)
"""


def test_denormal_numbers_work_after_import_and_calls():
    """Libraries linked with -ffast-math disable them for the whole process, in every thread they start."""
    script = (
        WORK
        + """
import threading

def denormals():
    smallest = np.float32(1e-45), np.float64(5e-324)
    return all(number / 1 > 0 and number + number > number for number in smallest)

assert denormals()
work(1)
work(2)
found = [denormals()]
thread = threading.Thread(target=lambda: found.append(denormals()))
thread.start()
thread.join()
print(found)
"""
    )
    assert printed(script) == "[True, True]"


@pytest.mark.parametrize("isa", ISAS)
def test_denormal_numbers_are_not_flushed_by_the_kernels(isa):
    """Evaluation with mean 0 and var 1 returns x, denormal or not."""
    x = (np.arange(-40, 40, dtype=np.float32) * np.float32(1e-45)).reshape(2, 40)
    zero, one = np.zeros(40, np.float32), np.ones(40, np.float32)
    batch = random_batch((2, 40), "float32")._replace(x=x, dz=x, weight=one, bias=zero)
    got = run(
        batch, isa=isa, training=False, running_mean=zero, running_var=one, eps=1e-300, activation="identity"
    )
    assert np.array_equal(got.z, x)
    assert np.array_equal(got.dx, x)


@pytest.mark.skipif(sys.platform == "win32", reason="reads the C library's rounding mode through ctypes")
def test_rounding_mode_and_floating_point_flags_do_not_change():
    script = (
        WORK
        + """
import ctypes
libm = ctypes.CDLL(None)
assert libm.fegetround() == 0
libm.fesetround(int(0x800 if __import__("platform").machine() in ("x86_64", "AMD64") else 0x400000))
upward = libm.fegetround()
assert upward != 0
work(1)
print(libm.fegetround() == upward)
"""
    )
    assert printed(script) == "True"


def test_no_warning_comes_from_nan_infinity_and_overflow():
    """NumPy reports floating-point flags that C code leaves set; none must be set."""
    x = random_batch((4, 6, 9), "float32").x.copy()
    x[0, 0, 0], x[0, 1, 0], x[0, 2, 0] = np.nan, np.inf, 3e38
    with np.errstate(all="raise"):
        for strategy in ("standard", "inplace"):
            _, ctx = functional.forward(x.copy(), strategy=strategy)
            functional.backward(ctx, np.ones_like(x))
            assert np.add(np.float32(1), np.float32(2)) == 3


OMP = """
import ctypes
import sys
try:
    omp = ctypes.CDLL("libgomp.so.1")
except OSError:
    print("absent")
    sys.exit()
omp.omp_set_num_threads(5)
before = omp.omp_get_max_threads()
{work}
work(1)
work(2)
functional.set_num_threads(3)
work(None)
print(before, omp.omp_get_max_threads(), omp.omp_get_dynamic())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names the OpenMP library of gcc on Linux")
def test_omp_get_max_threads_does_not_change():
    """The OpenMP runtime is shared by all libraries of the process, and so are its defaults."""
    if not functional.info()["openmp"]:
        pytest.skip("built without OpenMP")
    out = printed(OMP.format(work=WORK)).split()
    if out == ["absent"]:
        pytest.skip("the build uses another OpenMP library than gcc's")
    assert out == ["5", "5", "0"]


@pytest.mark.parametrize("wanted", ["1", "3"])
def test_omp_num_threads_is_the_default(wanted):
    script = "from inplace_abn import functional; print(functional.get_num_threads())"
    assert printed(script, OMP_NUM_THREADS=wanted) == (wanted if functional.info()["openmp"] else "1")


@pytest.mark.parametrize("isa", ISAS)
def test_an_instruction_set_can_be_forced_by_the_environment(isa):
    script = WORK + 'work(1); print(functional.info()["isa_active"])'
    assert printed(script, INPLACE_ABN_ISA=isa) == isa


def test_import_loads_numpy_and_no_other_large_module():
    script = """
    import sys
    import numpy
    before = set(sys.modules)
    import inplace_abn
    new = {name.partition(".")[0] for name in set(sys.modules) - before}
    print(sorted(new - set(sys.stdlib_module_names)))
    """
    assert printed(script) == "['inplace_abn']"


def test_import_starts_no_thread_and_changes_no_environment():
    script = """
    import os
    import numpy
    threads = lambda: len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0
    before = threads(), dict(os.environ), numpy.geterr()
    import inplace_abn
    print(before == (threads(), dict(os.environ), numpy.geterr()))
    """
    assert printed(script) == "True"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
@pytest.mark.parametrize("threads", [1, 2])
def test_calls_work_after_a_fork(threads):
    """In a child forked from a process that has used its threads, as multiprocessing does on Linux."""
    script = (
        WORK
        + f"""
import os
import signal
import warnings

warnings.simplefilter("ignore", DeprecationWarning)  # Python warns about a fork with running threads
work(2)
child = os.fork()
if child == 0:
    signal.alarm(30)  # ends the child if a call does not return
    work({threads})
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    )
    assert printed(script) == "7"
