"""Processes: forked after use, spawned, in pools; pickling and copying; other OpenMP runtimes.

``INPLACE_ABN_FORKS=100`` forks 100 times.
"""

import copy
import multiprocessing
import os
import pickle

import numpy as np
import pytest
from interpreters import STEP, printed

from inplace_abn import functional, layers

pytestmark = pytest.mark.essential

FORKS = int(os.environ.get("INPLACE_ABN_FORKS", 5))
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")

# A child that hangs is ended by its alarm, which shows in its status.
FORK = (
    STEP
    + """
import os
import signal
import warnings

warnings.simplefilter("ignore", DeprecationWarning)  # Python warns about a fork with running threads
want = step(2)

def fork(work):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(7 if work() else 1)
    return child

def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def child(threads):
    return lambda: step(threads) == want and step(threads) == want
"""
)

ROUNDS = """
for round in range({}):
    children = [fork(child(threads)) for threads in (1, 2, None)]
    assert step(2) == want, round
    assert [ended(child) for child in children] == [7, 7, 7], round
print("right")
"""

NESTED = """
print(ended(fork(lambda: step(2) == want and ended(fork(child(2))) == 7)))
"""

# Children of spawn and forkserver import the file.
POOL = (
    STEP
    + """
import concurrent.futures
import multiprocessing
import warnings

warnings.simplefilter("ignore", DeprecationWarning)

if __name__ == "__main__":
    want = [step(2, seed) for seed in range(6)]
    start = multiprocessing.get_context("{}")
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=start) as pool:
        results = [pool.submit(step, threads, seed) for threads in (1, 2) for seed in range(6)]
        assert [step(2, seed) for seed in range(6)] == want
        assert [result.result(timeout=100) for result in results] == 2 * want
    print("right")
"""
)


@needs_fork
def test_parent_and_children_compute_after_a_fork():
    """The threads of the parent do not exist in a child; both compute bitwise equal results."""
    assert printed(FORK + ROUNDS.format(FORKS), timeout=60 + 5 * FORKS) == "right"


@needs_fork
def test_a_child_of_a_child_computes():
    assert printed(FORK + NESTED) == "7"


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_pools_of_processes(method, tmp_path):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"the platform has no {method}")
    file = tmp_path / "pool.py"
    file.write_text(POOL.format(method))
    assert printed(file) == "right"


# Allocations by the C library; test_nomemory.py covers those by Python and NumPy.
LIMIT = """
import resource
import numpy as np
from inplace_abn import functional

x = np.tile(np.float16([0] * 31 + [-10]), (1, 2, 1 << 17))  # the last is escaped: y is -5.6
before = x.copy()

def forward():
    return functional.forward(x, activation="{activation}", activation_param=1.0, threads=1)

with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
limits = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 19), limits[1]))
refused = False
try:
    forward()
except MemoryError:
    refused = x.flags.writeable
resource.setrlimit(resource.RLIMIT_AS, limits)
untouched = np.array_equal(x, before)
x[...] = before
print(refused, untouched, forward()[1].nbytes >= x.nbytes + x.size // 8)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="the system does not report memory")
@pytest.mark.parametrize("activation", ["silu", "elu"], ids=["sides", "escapes"])
def test_a_process_at_its_memory_limit(activation):
    """No memory for the branch mask or the escaped elements: MemoryError; later calls with memory succeed.

    Escaped elements are collected while x is overwritten, so x may be modified when their list cannot grow.
    """
    refused, untouched, goes_on = printed(LIMIT.format(activation=activation)).split()
    assert (refused, goes_on) == ("True", "True")
    assert untouched == "True" or activation == "elu"


# ---- pickling and copying ----------------------------------------------------------------------------------

COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda o: pickle.loads(pickle.dumps(o)),
}


@pytest.mark.parametrize("how", COPIES)
def test_contexts_refuse_to_be_copied(how):
    x = np.ones((2, 3), np.float32)
    _, ctx = functional.forward(x)
    with pytest.raises(TypeError, match=r"Context.*(copied|pickled)"):
        COPIES[how](ctx)
    assert not ctx.freed
    assert not x.flags.writeable


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_layers_can_be_copied(how):
    rng = np.random.default_rng(0)
    net = layers.Sequential(
        layers.Conv2d(3, 4, 3, rng=0), layers.InPlaceABN(4), layers.ABN(4, activation="relu")
    )
    x = rng.normal(size=(2, 3, 6, 6)).astype(np.float32)
    net.backward(np.ones_like(net(x)))
    other = COPIES[how](net)
    results = []
    for each in (net, other):
        each.zero_grad()
        z = each(x).copy()
        each.backward(np.ones_like(z))
        results.append([z, *(p.grad for p in each.parameters()), *each.state_dict().values()])
    for one, two in zip(*results, strict=True):
        assert np.array_equal(one, two)
    assert not any(np.shares_memory(a, b) for a, b in zip(*map(parameters, (net, other)), strict=True))


def parameters(net):
    return [p.data for p in net.parameters()]


# ---- other libraries ---------------------------------------------------------------------------------------

OTHERS = {
    "torch": """
import torch
def other():
    return torch.ones(400, 400).mm(torch.ones(400, 400)).sum().item() == 400**3
""",
    "sklearn": """
import numpy
from sklearn.ensemble import HistGradientBoostingClassifier
def other():
    x = numpy.random.default_rng(0).normal(size=(400, 4))
    return HistGradientBoostingClassifier(max_iter=3).fit(x, x[:, 0] > 0).score(x, x[:, 0] > 0) > 0.9
""",
}
LIBRARIES = [pytest.param("torch", marks=pytest.mark.torch), "sklearn"]


@pytest.mark.parametrize("first", ["ours", "theirs"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_with_another_openmp_runtime(library, first):
    """Imported in either order and used alternately, both return correct results."""
    pytest.importorskip(library)
    parts = [STEP + "want = step(1)\n", OTHERS[library]]
    use = "for _ in range(3):\n    assert step(2) == want\n    assert other()\nprint('right')"
    assert printed("".join(parts[:: 1 if first == "ours" else -1]) + use) == "right"


@needs_fork
@pytest.mark.torch
def test_fork_with_pytorch_loaded():
    pytest.importorskip("torch")
    assert printed(OTHERS["torch"] + "assert other()\n" + FORK + ROUNDS.format(2)) == "right"
