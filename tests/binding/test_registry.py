"""The registry of saved memory: exact bytes, the lock, refused writes."""

import gc
import itertools
import threading
import weakref

import numpy as np
import pytest
from entries import added, nothing_stays  # noqa: F401

from inplace_abn import _core, functional, layers, optim
from inplace_abn.layers import saved_arrays

SHAPE = (4, 3, 5)


def batch(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def save(array, owner="somebody", role="input"):
    return _core.save(array, owner=owner, role=role)


pytestmark = [pytest.mark.essential, pytest.mark.usefixtures("nothing_stays")]


# ---- refused writes ----------------------------------------------------------------------------------------

KEEPERS = {
    "functional": lambda x: functional.forward(x, strategy="standard")[1],
    "operation": lambda x: _saved_by_operation(x),
    "another library": lambda x: save((x.ctypes.data, x.nbytes)),
}


def _saved_by_operation(x):
    ctx = layers.LayerContext("operation")
    ctx.save_for_backward(input=x)
    return ctx


def _statistics(v):
    running = v.reshape(-1)[:3], np.ones(3, np.float32)
    functional.forward(batch(1), running_mean=running[0], running_var=running[1])


def _backward(v, **options):
    _, ctx = functional.forward(batch(1), residual=batch(2))
    functional.backward(ctx, options.pop("dz", v), **options)


def _step(v):
    parameter = layers.Parameter(v)
    parameter.grad = np.ones_like(v)
    optim.SGD([parameter], lr=0.1).step()


WRITERS = {
    "forward": lambda v: functional.forward(v),
    "forward of xhat": lambda v: functional.forward(v, strategy="checkpoint_xhat"),
    "normalize": lambda v: functional.normalize(v, mean=np.zeros(3), var=np.ones(3), count=20),
    "running statistics": _statistics,
    "backward": lambda v: _backward(v, overwrite=True),
    "residual_grad": lambda v: _backward(v, dz=batch(3), residual_grad=v),
    "recompute": lambda v: functional.forward(batch(1), strategy="checkpoint")[1].recompute(out=v),
    "stream": lambda v: _core.stream(v.reshape(-1)),
    "ABN": lambda v: layers.InPlaceABN(3)(v),
    "activation": lambda v: layers.Activation("relu", inplace=True)(v),
    "optimizer": _step,
    "function of one's own": lambda v: saved_arrays.refuse_if_saved(v, "my function"),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("keeper", KEEPERS)
def test_kept_memory_is_not_overwritten(keeper, writer):
    x = batch()
    view, before = x[:], x.copy()
    kept = KEEPERS[keeper](x)
    with pytest.raises(
        ValueError, match=r"in place.* but .* keeps that memory as '(x|input)' for its backward"
    ):
        WRITERS[writer](view)
    assert np.array_equal(x, before)
    assert view.flags.writeable
    kept.release()
    WRITERS[writer](view)


def test_a_view_from_before_a_convolution_is_not_overwritten():
    """Without the check, the weight gradient had an error of five times its largest element."""
    x, dz = batch(shape=(2, 3, 6, 6)), batch(1, (2, 4, 4, 4))
    view, layer = x[:], layers.Conv2d(3, 4, 3, rng=0)
    layer(x.copy())
    layer.backward(dz)
    want, layer.weight.grad = layer.weight.grad, None
    layer(x)
    message = (
        r"^x is written in place by forward, but Conv2d keeps that memory as 'input' for its backward; run"
    )
    with pytest.raises(ValueError, match=message):
        functional.forward(view)
    layer.backward(dz)
    assert np.array_equal(layer.weight.grad, want)


def test_an_activation_does_not_overwrite_what_functional_keeps():
    x, dz = batch(), batch(1)
    view = x[1:]
    want = functional.backward(functional.forward(x.copy())[1], dz).dx
    _, ctx = functional.forward(x)
    message = r"^Activation: inplace=True writes in place, but functional.forward \(.*\) keeps .* as 'z'"
    with pytest.raises(ValueError, match=message):
        layers.Activation("relu", inplace=True)(view)
    assert np.array_equal(functional.backward(ctx, dz).dx, want)


def test_a_sum_is_not_written_over_a_kept_array():
    a, b = batch(), batch(1)
    block = layers.Residual(layers.Activation("leaky_relu"))
    kept = save(a[:])
    assert not saved_arrays.may_overwrite(a)
    assert saved_arrays.may_overwrite(b)
    block(a)
    kept.release()
    assert saved_arrays.may_overwrite(a)


# ---- exact bytes -------------------------------------------------------------------------------------------


def some_views(rng, base):
    """Views of one buffer: slices with steps of both signs, transposed, broadcast, windows, empty."""
    while True:
        cut = []
        for length in base.shape:
            start, stop = sorted(rng.integers(0, length + 1, 2))
            part = slice(start, stop, int(rng.integers(1, 4)))
            cut.append(part)
        view = base[tuple(cut)]
        view = view[tuple(slice(None, None, int(rng.choice([1, -1]))) for _ in base.shape)]
        view = view.transpose(rng.permutation(base.ndim))
        if rng.random() < 0.1:
            view = np.broadcast_to(view[:1], view.shape)
        if rng.random() < 0.1 and view.shape[0] > 2:
            view = np.lib.stride_tricks.sliding_window_view(view, 2, axis=0)
        yield view


@pytest.mark.parametrize("seed", range(4))
def test_memory_is_compared_byte_by_byte(seed):
    rng = np.random.default_rng(seed)
    views = some_views(rng, np.zeros((4, 5, 3, 6), np.int16))
    for _ in range(300):
        kept, asked = next(views), next(views)
        entry = save(kept)
        assert saved_arrays.is_saved(asked) == np.shares_memory(kept, asked)
        entry.release()


@pytest.mark.parametrize("seed", range(4))
def test_the_index_agrees_with_a_linear_search(seed):
    """Add and remove nested and separate entries of every size; compare each result with a linear search."""
    rng = np.random.default_rng(seed)
    base, entries = np.zeros(4000, np.uint8), []
    for _ in range(600):
        start, size = int(rng.integers(0, 3900)), int(rng.choice([1, 3, 40, 900]))
        if entries and rng.random() < 0.45:
            entries.pop(int(rng.integers(len(entries))))[0].release()
        else:
            kept = base[start : start + size]
            entries.append((save(kept, owner=str(start), role=str(size)), kept))
        start, size = int(rng.integers(0, 3900)), int(rng.choice([1, 5, 60]))
        asked = base[start : start + size]
        found = _core.saved_by(asked)
        names = [(e.owner, e.role) for e, kept in entries if np.shares_memory(kept, asked)]
        assert found in names if names else found is None
        assert added() == len(entries)


def test_arrays_of_many_axes_are_compared_by_their_bounds():
    base = np.zeros((3,) * 8, np.uint8)
    kept, inside, behind = base[(slice(None, None, 2),) * 8], base[0, 1], base[2, 2, 2, 2, 2, 2, 2, 2:3]
    entry = save(kept[:2, :2])
    assert saved_arrays.is_saved(base[0, 0])
    assert saved_arrays.is_saved(behind) == np.shares_memory(kept, behind)
    assert not saved_arrays.is_saved(inside)
    entry.release()


def test_adjacent_slices_do_not_overlap():
    joined = batch(shape=(2, 8, 3, 3))
    _, first = functional.forward(joined[:, :4])
    _, second = functional.forward(joined[:, 4:])
    assert not first.freed
    second.release()


# ---- the lock ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize("writeable", [True, False])
def test_the_last_release_restores_the_flag(writeable, order):
    x = batch()
    x.flags.writeable = writeable
    kept = [functional.forward(x, strategy="standard")[1], _saved_by_operation(x), save(x)]
    for i in order:
        assert not x.flags.writeable
        kept[i].release()
    assert x.flags.writeable == writeable


def test_a_view_has_a_lock_of_its_own():
    x = batch()
    view = x[1:]
    of_view, of_x = save(view), save(x)
    of_view.release()
    assert (view.flags.writeable, x.flags.writeable) == (True, False)
    of_x.release()
    assert x.flags.writeable


def test_an_empty_array():
    x = np.zeros((0, 3))
    entry = save(x)
    assert not saved_arrays.is_saved(x)
    assert not x.flags.writeable
    entry.release()
    assert x.flags.writeable


def test_released_entries_are_removed():
    x = batch()
    entry = save(x, owner=lambda: "its layer", role="mask")
    assert entry.array is x
    assert (entry.owner, entry.role) == ("its layer", "mask")
    alive = weakref.ref(x)
    entry.release()
    entry.release()
    assert (entry.array, entry.owner, entry.role) == (None, None, None)
    del x
    assert alive() is None


def test_bad_arguments():
    x = batch()
    for arguments, error, message in [
        ({"array": x.tolist()}, TypeError, r"array must be a numpy.ndarray, or \(address, nbytes\)"),
        ({"array": (1, -1)}, ValueError, "array must have 0 bytes or more, got -1"),
        ({"owner": 3}, TypeError, "owner must be a str or a function that returns one, got 3"),
        ({"role": None}, TypeError, "role must be a str, got None"),
    ]:
        with pytest.raises(error, match=message):
            _core.save(**{"array": x, "owner": "a", "role": "b"} | arguments)
    with pytest.raises(TypeError, match="writer must be a str"):
        _core.refuse_if_saved(x, writer=1)
    assert x.flags.writeable
    with pytest.raises(TypeError, match="cannot create"):
        _core.SavedArray()


# ---- collector, destructors, threads -----------------------------------------------------------------------


class Cycle:
    """An object that only the garbage collector frees, together with the array it keeps."""

    def __init__(self, kept):
        self.kept, self.itself = kept, self


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_contexts_freed_by_the_garbage_collector(order):
    x = batch()
    makers = [
        lambda: functional.forward(x, strategy="checkpoint")[1],
        lambda: _saved_by_operation(x),
        lambda: save(x),
    ]
    cycles = [Cycle(makers[i]()) for i in order]
    del cycles
    assert not x.flags.writeable
    gc.collect()
    assert x.flags.writeable
    functional.forward(x)


def test_destructors_that_call_back():
    """Code that runs when a context is freed may use the registry."""
    x, observed = batch(), []

    class Nosy(np.ndarray):
        def __del__(self):
            observed.append(added())
            functional.forward(batch(1))

    kept = [save(np.zeros(3).view(Nosy)), functional.forward(x, strategy="standard")[1]]
    reference = weakref.ref(
        kept[1], lambda _: (observed.append(saved_arrays.is_saved(x)), functional.forward(x))
    )
    kept.pop()
    assert observed == [False]
    kept.pop()
    gc.collect()
    assert observed == [False, 0]
    assert reference() is None


def test_an_owner_function_that_releases_its_entry():
    x = batch()

    def name():
        entry.release()
        return "a layer that is going"

    entry = save(x, owner=name)
    with pytest.raises(ValueError, match="but a layer that is going keeps that memory as 'input'"):
        saved_arrays.refuse_if_saved(x[:], "my function")
    assert x.flags.writeable

    def fails():
        raise LookupError("no name")

    entry = save(x, owner=fails)
    with pytest.raises(LookupError, match="no name"):
        saved_arrays.refuse_if_saved(x[:], "my function")
    entry.release()


def test_threads_save_and_query_concurrently():
    """Every thread saves its own rows of one batch, by kernels that release the interpreter lock."""
    shape = (4, 4, 64, 80)
    rows, errors = np.zeros((4, *shape), np.float32), []

    def train(i):
        own = rows[i]
        for step in range(8):
            own[...] = batch(10 * i + step, shape)
            z, ctx = functional.forward(own)
            if not saved_arrays.is_saved(own[1:]) or saved_arrays.is_saved(rows[i - 1][:0]):
                errors.append(i)
            functional.backward(ctx, np.ones_like(z))

    threads = [threading.Thread(target=train, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
