"""The ledger counts each buffer once, while a context keeps it, as tracemalloc does."""

import gc
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest
from networks import Pointwise

from inplace_abn import functional, memory, reference
from inplace_abn.layers import ABN, InPlaceABN, LayerContext, Sequential, no_grad
from inplace_abn.memory import events

STRATEGIES = list(reference.KEEPS)
#: The domain of tracemalloc that NumPy allocates arrays in.
ARRAYS = tracemalloc.DomainFilter(True, 389047)


def chain(strategy):
    return Sequential(
        Pointwise(4, 8),
        ABN(8, strategy=strategy),
        Pointwise(8, 8),
        ABN(8, strategy=strategy),
        Pointwise(8, 4),
    )


def images(channels=4, n=4, size=64):
    return np.random.default_rng(0).normal(size=(n, channels, size, size)).astype(np.float32)


def traced_arrays():
    gc.collect()
    snapshot = tracemalloc.take_snapshot().filter_traces([ARRAYS])
    return sum(trace.size for trace in snapshot.traces)


@pytest.fixture
def traced():
    tracemalloc.start()
    yield
    tracemalloc.stop()


# ---- counting ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_bytes_kept_by_a_chain(strategy):
    """Two buffers per normalization with its convolution for "standard", one for all other strategies."""
    net, x = chain(strategy), images()
    with memory.ledger() as ledger:
        z = net(x)
        live = ledger.live
        net.backward(np.ones_like(z))
    full = 2 * x.nbytes
    assert live == ledger.kept == x.nbytes + full * (4 if strategy == "standard" else 2)
    assert ledger.live == 0
    assert ledger.table().nbytes == ledger.kept


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_kept_equals_the_array_bytes_of_tracemalloc(strategy, traced):
    """After the forward, without the result and x, which the test allocates."""
    net, x = chain(strategy), images()
    before = traced_arrays()
    with memory.ledger() as ledger:
        net(x)
        assert traced_arrays() - before == ledger.live - x.nbytes  # x was allocated before


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_kept_equals_all_traced_memory_within_a_percent(strategy, traced):
    net, x = chain(strategy), images(size=128)
    for _ in range(2):
        with memory.ledger():
            net.backward(np.ones_like(net(x)))
        net.zero_grad()
        gc.collect()
    with memory.ledger() as ledger:
        before = tracemalloc.get_traced_memory()[0]
        net(x)
        grown = tracemalloc.get_traced_memory()[0] - before
    assert grown + x.nbytes == pytest.approx(ledger.kept, rel=0.01)


def test_guarded_channels_are_counted_exactly(traced):
    layer, x = InPlaceABN(4), images()
    layer.weight.data[:2] = 0
    before = traced_arrays()
    with memory.ledger() as ledger:
        layer(x)
    rows = {row.role: row.nbytes for row in ledger.table()}
    assert rows["z"] == x.nbytes
    assert rows["guarded_xhat"] == x.nbytes // 2
    assert traced_arrays() - before == rows["guarded_xhat"] + sum(
        nbytes for role, nbytes in rows.items() if role not in ("z", "guarded_xhat")
    )


VIEWS = {
    "the whole, twice": (lambda a: [a, a], 800),
    "a reshaped view": (lambda a: [a, a.reshape(-1)], 800),
    "two halves": (lambda a: [a[:5], a[5:]], 800),
    "overlapping parts": (lambda a: [a[:6], a[4:]], 800),
    "one part": (lambda a: [a[2:4]], 160),
    "a slice of the columns": (lambda a: [a[:, :3]], 240),
    "columns that interleave": (lambda a: [a[:, ::2], a[:, 1::2]], 800),
    "backwards": (lambda a: [a, a[::-1]], 800),
    "broadcast": (lambda a: [np.broadcast_to(a[0], (50, 10))], 80),
    "nothing": (lambda a: [a[:0]], 0),
    "transposed": (lambda a: [a.T, a], 800),
    "of a buffer": (lambda a: [np.frombuffer(a, np.float64), np.frombuffer(a, np.uint8)[:400]], 800),
    "two arrays": (lambda a: [a, a.copy()], 1600),
}


@pytest.mark.parametrize("case", VIEWS)
def test_shared_memory_is_counted_once(case):
    make, nbytes = VIEWS[case]
    views = make(np.zeros((10, 10)))
    with memory.ledger() as ledger:
        for number, view in enumerate(views):
            ledger.saved(number, f"layer {number}", "input", view)
        assert ledger.live == ledger.table().nbytes == nbytes
        for number in range(len(views)):
            ledger.freed(number)
    assert (ledger.live, ledger.kept) == (0, nbytes)


def test_freeing_a_context_removes_only_its_entries():
    x, y = np.zeros(10), np.zeros(20)
    with memory.ledger() as ledger:
        ledger.saved(1, "a", "input", x)
        ledger.saved(1, "a", "mask", y)
        ledger.saved(2, "b", "input", x)
        ledger.freed(1)
        assert ledger.live == 80
        ledger.freed(1)
        ledger.freed("unknown")
        assert ledger.live == 80


def test_reused_memory_is_counted_again():
    with memory.ledger() as ledger:
        for number in range(5):
            ledger.saved(number, "a", "input", np.zeros(1000))
            ledger.freed(number)
    assert (ledger.kept, ledger.live) == (8000, 0)


def test_temporaries_raise_only_the_peak():
    with memory.ledger() as ledger:
        ledger.saved(1, "a", "input", np.zeros(100))
        ledger.temporary("a", 30)
        ledger.temporary("a", 50)  # adds to the first
        ledger.temporary("b", 70)  # another operation
        ledger.saved(2, "b", "input", np.zeros(10))
        ledger.temporary("b", 1)
    assert (ledger.live, ledger.kept, ledger.peak) == (880, 880, 881)
    assert ledger.timeline()[2].tolist() == [0, 800, 830, 880, 870, 880, 881]


def test_recomputed_arrays_are_temporaries():
    net, x = chain("checkpoint"), images()
    with memory.ledger() as ledger:
        net.backward(np.ones_like(net(x)))
    assert ledger.peak == ledger.kept + 2 * x.nbytes
    assert ledger.table().not_kept["temporaries, at most"] == 2 * x.nbytes


def test_parameters_and_gradients_of_a_model():
    net = chain("standard")
    with memory.ledger(net) as ledger:
        assert ledger.table().not_kept == {"parameters": 4 * (32 + 64 + 32 + 32), "gradients": 0}
        net.backward(np.ones_like(net(images())))
    assert ledger.table().not_kept["gradients"] == ledger.table().not_kept["parameters"]


# ---- activation and contexts -------------------------------------------------------------------------------


def test_no_ledger_is_active_by_default_and_after_an_error():
    assert memory.recorder is None
    with memory.ledger() as ledger:
        assert memory.recorder is ledger
    assert memory.recorder is None
    with pytest.raises(ZeroDivisionError), memory.ledger():
        1 / 0  # noqa: B018
    assert memory.recorder is None


def test_nested_ledgers():
    layer = ABN(4)
    with memory.ledger() as outer:
        layer(images())
        with memory.ledger() as inner:
            layer(images())
            layer.release()
    assert inner.kept == images().nbytes
    assert outer.kept == 2 * inner.kept
    assert outer.live == 0
    assert inner.live == 0  # the inner ledger ignores contexts made before it


def test_a_ledger_keeps_no_array_alive():
    layer = ABN(4)
    with memory.ledger() as ledger:
        layer(images())
        (entry,) = ledger._entries("now")
        assert entry.owner() is not None
        layer.release()
        assert entry.owner() is None


def test_a_deleted_context_frees_its_arrays():
    with memory.ledger() as ledger:
        ctx = LayerContext("mine")
        ctx.save_for_backward(input=np.zeros(10))
        assert ledger.live == 80
        del ctx
        assert ledger.live == 0


def test_no_grad_keeps_nothing():
    with memory.ledger() as ledger, no_grad():
        chain("standard")(images())
    assert ledger.kept == 0
    assert len(ledger.table()) == 0


def test_threads_report_to_one_ledger():
    def train(name):
        for number in range(200):
            ledger.saved((name, number), name, "input", np.zeros(10))
            ledger.freed((name, number))

    with memory.ledger() as ledger:
        threads = [threading.Thread(target=train, args=(f"thread {i}",)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert ledger.live == 0
    assert 80 <= ledger.kept <= 320


def test_the_ledger_does_not_import_matplotlib():
    script = "import sys, inplace_abn.memory; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_contexts_of_functional_can_be_reported_by_hand():
    with memory.ledger() as ledger:
        x = images()
        _, ctx = functional.forward(x)
        for role, array in ctx.saved.items():
            ledger.saved(ctx, "functional", role, array)
        assert ledger.live == ctx.nbytes == x.nbytes
        functional.backward(ctx, np.ones_like(x))
        ledger.freed(ctx)
    assert ledger.live == 0


def test_owner_of_a_view_of_a_view():
    a = np.zeros((4, 4))
    assert events.owner_of(a[1:][:, 1].reshape(-1)) is a
    text = bytearray(8)
    assert events.owner_of(np.frombuffer(memoryview(text), np.uint8)[2:]) is text


def test_a_model_that_is_no_layer_is_refused():
    with pytest.raises(TypeError, match="model must be a Layer or None, got 'net'; a name goes into label="):
        memory.ledger("net").__enter__()
