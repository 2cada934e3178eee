"""Residual and slope of a context: the lock on the residual, kept arrays, and their release."""

import gc
import itertools

import numpy as np
import pytest
from keywords import as_sums
from references import counts
from refusals import SHAPE, forward_arguments, read_only
from test_hostile_arguments import ARRAY_CHANGES, REFUSED, SCALARS, CallsBack, changes_of
from test_residual_arguments import STRATEGIES, C, batch, with_residual

from inplace_abn import _core, functional, reference

# NumPy deprecates these ways to change an array; as long as they exist, they must be harmless.
pytestmark = pytest.mark.filterwarnings("ignore:Setting the .* on a NumPy array:DeprecationWarning")

# ---- the lock ----------------------------------------------------------------------------------------------

FREES = {
    "backward": lambda ctx, dz: functional.backward(ctx, dz),
    "backward into": lambda ctx, dz: functional.backward(ctx, dz, residual_grad=np.ones_like(dz)),
    "backward_apply": lambda ctx, dz: functional.backward_apply(
        ctx, dz, **as_sums(functional.backward_reduce(ctx, dz)), count=40, residual_grad=np.ones_like(dz)
    ),
    "release": lambda ctx, dz: ctx.release(),
    "dropping": lambda ctx, dz: None,
}


@pytest.mark.parametrize("free", FREES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_residual_is_locked_until_the_context_is_freed(strategy, free):
    residual = batch(2)
    z, ctx = with_residual(residual, strategy=strategy)
    assert z is not residual
    assert not residual.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        residual += 1
    FREES[free](ctx, batch(1))
    del ctx
    assert residual.flags.writeable


@pytest.mark.parametrize("free", FREES)
def test_a_read_only_residual_stays_read_only(free):
    residual = read_only(SHAPE)
    _, ctx = with_residual(residual)
    FREES[free](ctx, batch(1))
    del ctx
    assert not residual.flags.writeable


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
def test_an_array_of_several_contexts_is_unlocked_with_the_last(order):
    """As for the input of a residual block: z of the layer before, x of one layer, residual of two others."""
    shared = batch()
    contexts = [
        functional.forward(shared)[1],
        functional.forward(shared, strategy="checkpoint")[1],
        with_residual(shared)[1],
        with_residual(shared, strategy="standard")[1],
    ]
    dz = batch(1)
    for i in order[:3]:
        functional.backward(contexts[i], dz)
        assert not shared.flags.writeable
    functional.backward(contexts[order[3]], dz)
    assert shared.flags.writeable


def test_one_array_as_residual_of_two_contexts():
    """Twice in one context, and in another."""
    x = batch()
    _, first = functional.forward(x, residual=x, strategy="standard")
    _, second = with_residual(x)
    first.release()
    assert not x.flags.writeable
    second.release()
    assert x.flags.writeable


def test_refused_calls_do_not_change_locks():
    residual = batch(2)
    with pytest.raises(ValueError, match="running_mean"):
        with_residual(residual, running_mean=residual[0, :, 0, 0], running_var=np.ones(C, np.float32))
    assert residual.flags.writeable
    _, ctx = with_residual(residual)
    for options in ({"residual_grad": residual}, {"dz": np.ones(3, np.float32)}, {"threads": 0}):
        with pytest.raises(ValueError, match=r"residual_grad|dz|threads"):
            functional.backward(**{"ctx": ctx, "dz": batch(1), **options})
        assert not residual.flags.writeable
        assert not ctx.freed
    functional.backward(ctx, batch(1))
    assert residual.flags.writeable


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_residual_is_not_overwritten(strategy):
    residual = batch(2)
    view, vector = residual[...], residual.reshape(-1)[:C]
    _, ctx = with_residual(residual, strategy=strategy)
    _, other = functional.forward(batch(), strategy="checkpoint")
    kept = r"by \w+, but functional.forward \(.*\) keeps that memory as 'residual' for its backward"
    one, sums = np.ones(C, np.float32), np.zeros(C)
    before = residual.copy()
    for call, name in [
        (lambda: functional.forward(view), "x"),
        (lambda: functional.forward(view[1:]), "x"),
        (lambda: functional.forward(batch(), running_mean=vector, running_var=one), "running_mean"),
        (
            lambda: functional.normalize(
                batch(), mean=sums, var=sums + 1, count=20, running_mean=one, running_var=vector
            ),
            "running_var",
        ),
        (lambda: functional.backward(other, view, overwrite=True), "dz"),
        (
            lambda: functional.backward_apply(
                other, view, sum_dy=sums, sum_dy_xhat=sums, count=40, overwrite=True
            ),
            "dz",
        ),
        (lambda: other.recompute(out=view), "out"),
        (lambda: _core.stream(view.reshape(-1)), "a"),
    ]:
        with pytest.raises(ValueError, match=f"{name} is written in place {kept}") as caught:
            call()
        assert f"strategy='{strategy}'" in str(caught.value)
        assert "and residual" in str(caught.value)
    with pytest.raises(ValueError, match="dz is written and shares memory with what ctx keeps"):
        functional.backward(ctx, view, overwrite=True)
    with pytest.raises(ValueError, match=r"x is written in place by forward, but functional.forward \("):
        functional.forward(residual)
    assert np.array_equal(residual, before)
    functional.backward(other, view)  # reads it
    assert np.array_equal(functional.backward(ctx, view).dresidual.shape, SHAPE)


# ---- what is kept ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_saved_lists_the_residual(strategy):
    residual = batch(2)
    _, ctx = with_residual(residual, strategy=strategy)
    assert list(ctx.saved)[:2] == [reference.KEEPS[strategy], "residual"]
    assert ctx.saved["residual"] is residual
    assert ctx.nbytes == sum(array.nbytes for array in ctx.saved.values())
    assert f"keeps {reference.KEEPS[strategy]} and residual" in repr(ctx)
    assert any(seen is residual for seen in gc.get_referents(ctx))
    ctx.release()
    with pytest.raises(RuntimeError, match=r"this context was freed by release\(\)"):
        _ = ctx.saved
    assert ctx.nbytes == 0


CHANGES = {
    "smaller": (lambda r: r.resize(60, refcheck=False), "resized or given other memory: it had 480"),
    "larger": (lambda r: r.resize(1 << 22, refcheck=False), "and now has 16777216 bytes"),
    "state": (
        lambda r: r.__setstate__((1, SHAPE, np.dtype(np.float64), False, bytes(960))),
        "resized or given other memory",
    ),
    "dtype": (lambda r: setattr(r, "dtype", np.int32), "given another dtype: it was float32"),
    "unlocked": (lambda r: r.setflags(write=True), "unlocked: flags.writeable is True, and was False"),
}  # fmt: skip


@pytest.mark.parametrize("strategy", ["checkpoint", "checkpoint_xhat", "pre_activation", "inplace"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_residual_that_was_changed(change, strategy):
    residual, sums, dz = batch(2), np.zeros(C), batch(1)
    _, ctx = with_residual(residual, strategy=strategy)
    act, message = CHANGES[change]
    act(residual)
    for call in (
        lambda: functional.backward(ctx, dz),
        lambda: functional.backward_reduce(ctx, dz),
        lambda: functional.backward_apply(
            ctx, dz, sum_dy=sums, sum_dy_xhat=sums, count=40, residual_grad=batch(3)
        ),
        ctx.recompute,
    ):
        with pytest.raises(RuntimeError, match=f"the residual that ctx keeps was .*{message}"):
            call()
    assert not ctx.freed
    ctx.release()


SIDED = ["silu", "gelu", "gelu_tanh", "mish"]


@pytest.mark.parametrize("activation", SIDED)
def test_branch_mask_has_one_bit_per_element(activation):
    x = batch()
    _, ctx = functional.forward(x, activation=activation)
    sides = ctx.saved["branch_mask"]
    assert sides.dtype == np.uint8
    assert sides.nbytes == (x.size + 7) // 8
    assert not sides.flags.writeable
    with pytest.raises(ValueError, match="does not own its data"):
        sides.resize(1 << 20, refcheck=False)
    for strategy in ("standard", "checkpoint_xhat"):
        _, ctx = functional.forward(batch(), activation=activation, strategy=strategy)
        assert len(ctx.saved) == 1


# ---- no code runs between the checks and the kernels-------------------------------------------------------


@pytest.mark.parametrize("what", ARRAY_CHANGES)
@pytest.mark.parametrize("victim", ["residual", "slope"])
@pytest.mark.parametrize("scalar", SCALARS)
def test_forward_reads_arrays_after_all_numbers(scalar, victim, what):
    arrays = {"residual": batch(2), "slope": np.ones(C, np.float32)}
    number = CallsBack(SCALARS[scalar], changes_of(arrays[victim])[what])
    arguments = forward_arguments(**arrays, activation="prelu", **{scalar: number})
    if what == "lock":
        functional.forward(**arguments)  # read only: no harm
    else:
        with pytest.raises(REFUSED, match=victim):
            functional.forward(**arguments)


@pytest.mark.parametrize("what", ARRAY_CHANGES)
@pytest.mark.parametrize("victim", ["residual", "residual_grad"])
def test_backward_reads_arrays_after_all_numbers(victim, what):
    arrays = {"residual": batch(2), "residual_grad": batch(3)}
    _, ctx = with_residual(arrays["residual"])
    threads = CallsBack(1, changes_of(arrays[victim])[what])
    call = {"ctx": ctx, "dz": batch(1), "residual_grad": arrays["residual_grad"], "threads": threads}
    if victim == "residual" and what in ("lock", "reshape"):
        functional.backward(**call)  # the same memory
    else:
        with pytest.raises(REFUSED, match=r"the residual that ctx keeps|residual_grad"):
            functional.backward(**call)


# ---- references --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("free", FREES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_reference_counts_are_restored(strategy, free):
    x, residual, slope, dz = batch(), batch(2), np.ones(1, np.float32), batch(1)
    objects = [x, residual, slope, dz, functional.Context, _core]
    before = counts(objects)
    for _ in range(10):
        z, ctx = functional.forward(x, residual=residual, activation="prelu", slope=slope, strategy=strategy)
        FREES[free](ctx, dz)
        del z, ctx
    assert counts(objects) == before


def test_reference_counts_are_restored_after_refused_calls():
    x, residual, slope, dz, added = batch(), batch(2), np.ones(C, np.float32), batch(1), batch(3)
    bad = np.ones((4, 3, 6), np.float32)
    _, ctx = with_residual(batch(4))
    _, plain = functional.forward(batch(5))
    nan = np.full(C, np.nan, np.float32)
    objects = [x, residual, slope, dz, added, bad, nan, ctx, plain, functional.Context, _core]
    before = counts(objects)
    for call in (
        lambda: functional.forward(x, residual=bad),
        lambda: functional.forward(x, residual=x),
        lambda: functional.forward(x, residual=residual, slope=slope),
        lambda: functional.forward(x, residual=residual, activation="prelu"),
        lambda: functional.forward(x, residual=residual, activation="prelu", slope=nan),
        lambda: functional.forward(x, residual=residual, activation="prelu", slope=slope[:2]),
        lambda: functional.forward(
            x, running_mean=slope, running_var=residual[0, :, 0, 0], residual=residual
        ),
        lambda: functional.normalize(x, mean=slope, var=slope, count=20, residual=residual),
        lambda: functional.backward(ctx, dz, residual_grad=bad),
        lambda: functional.backward(ctx, dz, residual_grad=dz),
        lambda: functional.backward(plain, dz, residual_grad=added),
        lambda: functional.backward_apply(
            ctx, dz, sum_dy=slope, sum_dy_xhat=slope, count=40, residual_grad=added
        ),
        lambda: functional.backward_apply(ctx, dz, sum_dy=slope, sum_dy_xhat=slope, count=40),
    ):
        for _ in range(10):
            with pytest.raises((TypeError, ValueError)):
                call()
    assert counts(objects) == before
