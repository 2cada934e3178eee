"""Arguments that run Python code while a call reads them, and garbage collections inside a call."""

import gc

import numpy as np
import pytest

from inplace_abn import _core, functional

SHAPE = (4, 3, 50)

# NumPy deprecates these ways to change an array; as long as they exist, they must be harmless.
pytestmark = pytest.mark.filterwarnings("ignore:Setting the .* on a NumPy array:DeprecationWarning")


class CallsBack:
    """A number whose conversion to int or float runs a function."""

    def __init__(self, value, action):
        self.value, self.action = value, action

    def __index__(self):
        self.action()
        return self.value

    def __float__(self):
        self.action()
        return float(self.value)


class Text(str):
    """A str whose comparison runs a function."""

    __slots__ = ("action",)

    def __eq__(self, other):
        self.action()
        return False

    __hash__ = str.__hash__


def batch(dtype=np.float32):
    return np.random.default_rng(0).normal(size=SHAPE).astype(dtype)


def changes_of(array):
    """Return all changes of an array, by name."""
    return {
        "resize": lambda: array.resize(7, refcheck=False),
        "grow": lambda: array.resize(1 << 22, refcheck=False),
        "lock": lambda: array.setflags(write=False),
        "retype": lambda: setattr(array, "dtype", np.int32),
        "reshape": lambda: setattr(array, "shape", (1, array.size)),
        "state": lambda: array.__setstate__((1, (2,), np.dtype(np.float64), False, bytes(16))),
    }


ARRAY_CHANGES = list(changes_of(None))
REFUSED = (TypeError, ValueError, RuntimeError)
SCALARS = {"momentum": 0, "eps": 1, "activation_param": 1, "channel_axis": 1, "threads": 1}


@pytest.mark.parametrize("what", ARRAY_CHANGES)
@pytest.mark.parametrize("victim", ["x", "weight", "running_mean"])
@pytest.mark.parametrize("scalar", SCALARS)
def test_forward_reads_arrays_after_all_numbers(scalar, victim, what):
    arrays = {"x": batch()}
    for name in ("weight", "bias", "running_mean", "running_var"):
        arrays[name] = np.ones(3, np.float32)
    changed = arrays[victim]
    fired = []

    def action():
        fired.append(1)
        changes_of(changed)[what]()

    options = {scalar: CallsBack(SCALARS[scalar], action)}
    if (victim, what) == ("weight", "lock"):
        functional.forward(**arrays, **options)  # read only: no harm
    else:
        with pytest.raises(REFUSED, match=victim):
            functional.forward(**arrays, **options)
    assert fired


BACKWARDS = [
    (name, victim, scalar, what)
    for name, scalar in [
        ("backward", "threads"), ("backward_reduce", "threads"), ("backward_apply", "threads"),
        ("backward_apply", "count"),
    ]
    for victim in ("z", "dz")
    for what in ARRAY_CHANGES
    if (victim, what) != ("dz", "lock")  # it is only read
]  # fmt: skip


@pytest.mark.parametrize(("name", "victim", "scalar", "what"), BACKWARDS)
def test_backward_reads_arrays_after_all_numbers(name, victim, scalar, what):
    z, ctx = functional.forward(batch())
    dz, sums = np.ones_like(z), np.zeros(3)
    number = CallsBack(1 if scalar == "threads" else 200, changes_of(z if victim == "z" else dz)[what])
    options = {"sum_dy": sums, "sum_dy_xhat": sums, "count": 200} if name == "backward_apply" else {}
    options[scalar] = number
    call = getattr(functional, name)
    if victim == "z" and what in ("lock", "reshape"):
        call(ctx, dz, **options)  # the same memory
    else:
        with pytest.raises(REFUSED, match=r"the array that ctx keeps|dz must"):
            call(ctx, dz, **options)


@pytest.mark.parametrize("free", ["release", "backward"])
@pytest.mark.parametrize("name", ["backward", "backward_reduce", "backward_apply", "recompute"])
def test_a_context_freed_by_an_argument_is_freed(name, free):
    z, ctx = functional.forward(batch(), strategy="checkpoint")
    dz, sums = np.ones_like(z), np.zeros(3)
    action = ctx.release if free == "release" else lambda: functional.backward(ctx, dz)
    threads = CallsBack(1, action)
    calls = {
        "backward": lambda: functional.backward(ctx, dz, threads=threads),
        "backward_reduce": lambda: functional.backward_reduce(ctx, dz, threads=threads),
        "backward_apply": lambda: functional.backward_apply(
            ctx, dz, sum_dy=sums, sum_dy_xhat=sums, count=200, threads=threads
        ),
        "recompute": lambda: ctx.recompute(threads=threads),
    }
    with pytest.raises(RuntimeError, match=f"freed by {free}"):
        calls[name]()


@pytest.mark.parametrize("what", ["resize", "grow", "state"])
@pytest.mark.parametrize("scalar", ["c", "d", "threads"])
def test_stream_and_statistics_read_arrays_after_all_numbers(scalar, what):
    a = np.ones(60000, np.float32)
    b = np.ones(60000, np.float32)
    number = CallsBack(1, changes_of(b)[what])
    with pytest.raises(REFUSED, match="b must"):
        _core.stream(a, b=b, **{scalar: number})
    x = batch()
    with pytest.raises(REFUSED, match="x must"):
        functional.statistics(x, threads=CallsBack(1, changes_of(x)[what]))


def test_comparing_strings_runs_no_python_code():
    ran = []
    for name, value in (("strategy", "inplace"), ("activation", "elu")):
        text = Text(value)
        text.action = lambda: ran.append(1)
        functional.forward(batch(), **{name: text})
    assert not ran


class ClassRunsCode(np.ndarray):
    """Runs code when its class is read."""

    ran = False

    @property
    def __class__(self):
        type(self).ran = True
        return np.memmap


def test_subclasses_are_refused_without_calling_their_methods():
    x = batch().view(ClassRunsCode)
    with pytest.raises(TypeError, match=r"plain numpy\.ndarray"):
        functional.forward(x)
    assert not ClassRunsCode.ran


class ResizesArray:
    """Garbage in a cycle that resizes an array when it is collected."""

    def __init__(self, array):
        self.array, self.self = array, self

    def __del__(self):
        self.array.resize(7, refcheck=False)


@pytest.mark.parametrize("offset", range(12))
def test_a_garbage_collection_inside_a_call_is_harmless(offset):
    """`offset` selects the allocation that starts it. The call is refused or uses the checked arrays."""
    for victim in ("x", "dz"):
        arrays = {"x": batch(), "dz": np.ones(SHAPE, np.float32)}
        outcome = step_with_collection(arrays, arrays[victim], offset)
        assert outcome is arrays["dz"] or f"{victim} must have " in outcome or "ctx keeps" in outcome


def step_with_collection(arrays, victim, offset):
    """Return dx, or the text of the error."""
    weight, before = np.zeros(3, np.float32), gc.get_threshold()
    gc.collect()
    ResizesArray(victim)
    gc.set_threshold(gc.get_count()[0] + 1 + offset, 1, 1)
    try:
        _, ctx = functional.forward(arrays["x"], weight=weight)
        return functional.backward(ctx, arrays["dz"], overwrite=True).dx
    except (ValueError, RuntimeError) as error:
        return str(error)
    finally:
        gc.set_threshold(*before)


def test_a_kept_view_of_a_buffer_that_runs_code_when_released():
    """A context releases the array, and with it the base of the view, last."""
    freed = []

    class Buffer(np.ndarray):
        def __del__(self):
            freed.append(len(contexts) and contexts[0].freed)

    contexts = []
    x = batch().view(Buffer)[...].view(np.ndarray)
    contexts.append(functional.forward(x)[1])
    del x
    contexts[0].release()
    assert all(freed)
