"""info(), threads, environment variables, and side effects of the import."""

import sys

import interpreters
import numpy as np
import pytest
from batches import random_batch, run
from interpreters import printed

import inplace_abn
from inplace_abn import _core, functional

pytestmark = pytest.mark.essential

ISAS = ("v4", "v3", "v2", "neon", "baseline")  # best first


@pytest.fixture
def threads():
    """Set the number of threads, and restore it after the test."""
    before = functional.get_num_threads()
    yield functional.set_num_threads
    functional.set_num_threads(before)


def test_info():
    info = functional.info()
    assert info["version"] == inplace_abn.__version__ == _core.__version__
    assert info["isa_built"] == [isa for isa in ISAS if isa in info["isa_built"]]
    assert info["isa_usable"] == [isa for isa in info["isa_built"] if isa in info["isa_usable"]]
    assert info["isa_usable"][-1] == "baseline"
    assert info["isa_active"] in info["isa_usable"]
    assert type(info["openmp"]) is bool
    assert info["threads"] == functional.get_num_threads() >= 1
    assert info["compiler"].split()[0] in ("gcc", "clang", "msvc")
    assert int(info["numpy_api"], 16) >= 0x12


def test_info_is_a_new_dict_each_time():
    functional.info()["isa_usable"].clear()
    assert functional.info()["isa_usable"]


def test_the_best_instruction_set_is_active():
    code = "from inplace_abn import functional; print(functional.info()['isa_active'])"
    assert printed(code, INPLACE_ABN_ISA=None) == functional.info()["isa_usable"][0]
    assert printed(code, INPLACE_ABN_ISA="") == functional.info()["isa_usable"][0]


@pytest.mark.parametrize("isa", functional.info()["isa_usable"])
def test_the_environment_chooses_the_instruction_set(isa):
    code = "from inplace_abn import functional; print(functional.info()['isa_active'])"
    assert printed(code, INPLACE_ABN_ISA=isa) == isa
    assert printed(code, INPLACE_ABN_ISA=isa.upper()) == isa


def test_the_environment_names_an_instruction_set_that_cannot_be_used():
    unusable = set(ISAS) - set(functional.info()["isa_usable"])
    for isa in ["avx9", "v", " ", *unusable]:
        done = interpreters.run("import inplace_abn", INPLACE_ABN_ISA=isa)
        assert done.returncode != 0
        assert f"ImportError: the environment variable INPLACE_ABN_ISA is '{isa}'" in done.stderr
        assert all(f"'{usable}'" in done.stderr for usable in functional.info()["isa_usable"])


def test_isa_applies_to_one_call():
    batch = random_batch((4, 3, 5), "float32")
    for isa in functional.info()["isa_usable"]:
        active = functional.info()["isa_active"]
        run(batch, isa=isa)
        assert functional.info()["isa_active"] == active


# ---- threads -----------------------------------------------------------------------------------------------


def test_set_num_threads_applies_to_this_module(threads):
    for n in (1, 2, 7, 1024):
        threads(n)
        assert functional.get_num_threads() == _core.get_num_threads() == functional.info()["threads"] == n


def test_results_do_not_depend_on_threads(threads):
    batch = random_batch((5, 7, 41, 43), "float32")
    threads(1)
    want = run(batch)
    for n in (2, 7):
        threads(n)
        for got in (run(batch), run(batch, threads=n)):
            assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.skipif(not functional.info()["openmp"], reason="built without OpenMP")
def test_the_environment_sets_the_threads():
    code = "from inplace_abn import functional; print(functional.get_num_threads())"
    assert printed(code, OMP_NUM_THREADS="3") == "3"
    assert printed(code, OMP_NUM_THREADS="1") == "1"


OPENMP = """
import ctypes
from ctypes.util import find_library
names = [find_library(name) for name in ("gomp", "omp", "iomp5")] + ["libgomp.so.1"]
loaded = open("/proc/self/maps").read()
from inplace_abn import functional
loaded = open("/proc/self/maps").read()
name = next(name for name in ("libgomp", "libomp", "libiomp5") if name in loaded)
path = next(line.split()[-1] for line in loaded.splitlines() if name in line)
openmp = ctypes.CDLL(path)
before = openmp.omp_get_max_threads()
functional.set_num_threads(7)
import numpy as np
x = np.random.default_rng(0).normal(size=(8, 8, 64, 64)).astype(np.float32)
for threads in (None, 1, 3):
    z, ctx = functional.forward(x, threads=threads)
    functional.backward(ctx, np.ones_like(x), threads=threads)
print(before, openmp.omp_get_max_threads())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for the loaded library in /proc")
@pytest.mark.skipif(not functional.info()["openmp"], reason="built without OpenMP")
def test_other_libraries_keep_their_threads():
    before, after = printed(OPENMP, OMP_NUM_THREADS="5").split()
    assert before == after == "5"


# ---- importing ---------------------------------------------------------------------------------------------


def test_importing_changes_no_floating_point_mode():
    """Denormal numbers work, also after calls in several threads."""
    code = """
import numpy as np
from inplace_abn import functional
x = np.random.default_rng(0).normal(size=(8, 8, 64, 64)).astype(np.float32)
z, ctx = functional.forward(x, threads=2)
functional.backward(ctx, np.ones_like(x), threads=2)
tiny = np.full(1000, 1e-40, np.float32)
print((tiny * np.float32(0.5) > 0).all() and 5e-324 * 1.0 > 0)
"""
    assert printed(code) == "True"


def test_importing_loads_only_numpy():
    code = (
        "import numpy, sys; before = set(sys.modules); import inplace_abn; print(*set(sys.modules) - before)"
    )
    packages = {name.split(".")[0] for name in printed(code).split()}
    assert packages - sys.stdlib_module_names == {"inplace_abn"}


def test_bfloat16_may_be_imported_later():
    pytest.importorskip("ml_dtypes")
    code = """
from inplace_abn import functional
import numpy as np
try:
    functional.forward(np.ones((2, 3), [("field", int)]))
except TypeError as error:
    print("bfloat16" in str(error))
import ml_dtypes
z, ctx = functional.forward(np.array([[1], [2]], ml_dtypes.bfloat16))
print(z.dtype)
"""
    assert printed(code).split() == ["True", "bfloat16"]


def test_a_second_copy_of_the_module_has_its_own_state():
    code = """
import importlib.util, sys
from inplace_abn import _core
spec = importlib.util.spec_from_file_location("inplace_abn._core", _core.__file__)
second = importlib.util.module_from_spec(spec)
spec.loader.exec_module(second)
second.set_num_threads(5)
_core.set_num_threads(3)
import numpy as np
_, ctx = second.forward(np.array([[1.0], [2.0]]))
try:
    _core.backward(ctx, np.ones((2, 1)))
except TypeError as error:
    print(second.get_num_threads(), _core.get_num_threads(), second.Context is _core.Context)
del second, ctx
import gc
gc.collect()
"""
    assert printed(code) == "5 3 False"
