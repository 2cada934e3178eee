"""out=, hold=False, keep=True, residual_out=, and arrays given by their address."""

import numpy as np
import pytest
from batches import DTYPES, parameter_dtype, random_batch, with_residual
from keywords import as_sums

from inplace_abn import _core, functional, reference
from inplace_abn._activations import KEEPS

STRATEGIES = [name for name in KEEPS if name != "inplace"]


def batch_of(dtype="float32", shape=(4, 3, 5)):
    return with_residual(random_batch(shape, dtype))


def options(batch, strategy, residual=True):
    return {
        "weight": batch.weight, "bias": batch.bias, "strategy": strategy, "activation": "leaky_relu",
        "residual": batch.residual.copy() if residual else None,
    }  # fmt: skip


def same(got, want):
    for one, other in zip(got, want, strict=True):
        assert (one is None) == (other is None)
        assert one is None or np.array_equal(one, other)


def addressed(array, dtype=None):
    strides = tuple(stride // array.itemsize for stride in array.strides)
    return array.ctypes.data, array.shape, strides, dtype or array.dtype.name


# ---- out= ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if KEEPS[name] != "z"])
def test_forward_writes_z_to_out(strategy):
    batch = batch_of()
    want, _ = functional.forward(batch.x.copy(), **options(batch, strategy))
    out = np.empty_like(batch.x)
    z, ctx = functional.forward(batch.x.copy(), out=out, **options(batch, strategy))
    assert z is out
    assert np.array_equal(z, want)
    assert z.flags.writeable
    ctx.release()


def test_out_of_forward_is_checked():
    batch = batch_of()
    x = batch.x.copy()
    kept, ctx = functional.forward(batch.x.copy())
    for strategy, out, message in [
        (
            "inplace",
            np.empty_like(x),
            "out goes with the strategies that do not write z over x; .*'inplace' does",
        ),
        ("standard", np.empty((4, 3, 6), np.float32), "out must have the shape of x"),
        ("standard", x, "out is written and shares memory with x"),
        ("pre_activation", x, "out is written and shares memory with x"),
        ("standard", batch.dz, "out is written in place, but it is read-only"),
        ("standard", kept[...], "out is written in place by forward, but functional.forward"),
    ]:
        with pytest.raises(ValueError, match=message):
            functional.forward(x, out=out, strategy=strategy)
    with pytest.raises(ValueError, match="out is written and shares memory with residual"):
        functional.forward(x, out=(residual := x.copy()), residual=residual, strategy="standard")
    assert np.array_equal(x, batch.x)
    ctx.release()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_backward_writes_to_the_given_arrays(strategy):
    batch = batch_of()
    _, ctx = functional.forward(batch.x.copy(), **options(batch, strategy))
    want = functional.backward(ctx, batch.dz)
    _, ctx = functional.forward(batch.x.copy(), **options(batch, strategy))
    out, dz = np.empty_like(batch.x), batch.dz.copy()
    got = functional.backward(ctx, dz, out=out, residual_out=dz)
    assert got.dx is out
    assert got.dresidual is dz
    same(got, want)
    assert np.array_equal(dz, want.dresidual)


def test_outputs_of_backward_are_checked():
    batch = batch_of()
    x = batch.x.copy()
    _, ctx = functional.forward(x, **options(batch, "pre_activation"))
    dz, other = batch.dz.copy(), np.empty_like(batch.x)
    for arguments, message in [
        ({"overwrite": True, "out": other}, "give one of them"),
        ({"residual_grad": other, "residual_out": other}, "give one of them"),
        ({"out": dz}, "out is written and shares memory with dz"),
        ({"out": x}, "out is written in place by backward, but functional.forward"),
        ({"overwrite": True, "residual_out": dz}, "residual_out is written and shares memory with dz"),
        ({"out": other, "residual_out": other[...]}, "residual_out is written and shares memory with out"),
        ({"residual_grad": dz}, "residual_grad is written and shares memory with dz"),
        ({"residual_out": np.empty(3, np.float32)}, "residual_out must have the shape of x"),
    ]:
        with pytest.raises(ValueError, match=message):
            functional.backward(ctx, dz, **arguments)
    assert np.array_equal(dz, batch.dz)
    functional.backward(ctx, dz)
    _, ctx = functional.forward(batch.x.copy())
    with pytest.raises(ValueError, match="residual_out goes with a ctx of a forward that was given residual"):
        functional.backward(ctx, dz, residual_out=other)


# ---- hold=False ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_context_that_holds_nothing(strategy, dtype, residual):
    batch = batch_of(dtype)
    z, ctx = functional.forward(batch.x.copy(), **options(batch, strategy, residual))
    before = z.copy()
    want = functional.backward(ctx, batch.dz)
    x, given, entries = batch.x.copy(), options(batch, strategy, residual), _core.saved_count()
    z, ctx = functional.forward(x, hold=False, **given)
    assert np.array_equal(z, before)
    assert x.flags.writeable
    assert _core.saved_count() == entries
    assert not {"x", "xhat", "y", "z", "residual"} & set(ctx.saved)
    assert "keeps no array of the size of x" in repr(ctx)
    elsewhere = {"kept": np.array(x), "residual": given["residual"]}
    x[...] = 7
    if KEEPS[strategy] != "z":
        needs = {} if strategy == "pre_activation" else {"residual": elsewhere["residual"]}
        assert np.array_equal(ctx.recompute(kept=elsewhere["kept"], **needs), before)
    got = functional.backward(ctx, batch.dz, **elsewhere)
    same((*got, got.dresidual), (*want, want.dresidual))
    assert ctx.freed


def test_dx_may_replace_the_given_array():
    batch = batch_of()
    _, ctx = functional.forward(batch.x.copy(), **options(batch, "pre_activation"))
    want = functional.backward(ctx, batch.dz)
    x, given = batch.x.copy(), options(batch, "pre_activation")
    _, ctx = functional.forward(x, hold=False, **given)
    dz = batch.dz.copy()
    with pytest.raises(ValueError, match="out is written and shares memory with kept"):
        functional.backward(ctx, dz, out=x, kept=x, residual=given["residual"], keep=True)
    got = functional.backward(ctx, dz, out=x, residual_out=dz, kept=x, residual=given["residual"])
    assert got.dx is x
    assert got.dresidual is dz
    same((*got, got.dresidual), (*want, want.dresidual))


def test_given_arrays_are_required_and_refused():
    batch = batch_of()
    dz = batch.dz.copy()
    held = functional.forward(batch.x.copy())[1]
    with pytest.raises(ValueError, match=r"kept goes with a ctx of forward\(..., hold=False\); leave it out"):
        functional.backward(held, batch.dz, kept=batch.x)
    _, ctx = functional.forward(batch.x.copy(), hold=False)
    with pytest.raises(ValueError, match=r"kept is needed by a ctx of forward\(..., hold=False\), got None"):
        functional.backward(ctx, batch.dz)
    with pytest.raises(ValueError, match=r"residual goes with a ctx .* that was given one; leave it out"):
        functional.backward(ctx, batch.dz, kept=batch.x, residual=batch.x)
    with pytest.raises(ValueError, match="kept must have the shape of x"):
        functional.backward(ctx, batch.dz, kept=batch.x[:2])
    with pytest.raises(ValueError, match="dz is written and shares memory with kept"):
        functional.backward(ctx, dz, kept=dz, overwrite=True)
    held.release()


def test_the_steps_of_a_synchronized_backward():
    batch = batch_of()
    x, residual = batch.x.copy(), batch.residual
    z, held = functional.forward(x, residual=residual, activation="relu", strategy="pre_activation")
    y = x.copy()
    want = functional.backward(held, batch.dz)
    _, ctx = functional.forward(
        batch.x.copy(), residual=residual, activation="relu", strategy="pre_activation", hold=False
    )
    given = {"kept": y, "residual": residual}
    sums = functional.backward_reduce(ctx, batch.dz, **given)
    dresidual = np.empty_like(z)
    dx = functional.backward_apply(ctx, batch.dz, **as_sums(sums), count=20, residual_out=dresidual, **given)
    np.testing.assert_allclose(dx, want.dx, rtol=1e-5, atol=1e-6)
    assert np.array_equal(dresidual, want.dresidual)


# ---- keep=True -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_second_backward(strategy):
    batch = batch_of()
    x = batch.x.copy()
    _, ctx = functional.forward(x, **options(batch, strategy))
    first = functional.backward(ctx, batch.dz, keep=True)
    assert not ctx.freed
    assert not x.flags.writeable
    second = functional.backward(ctx, batch.dz)
    assert ctx.freed
    same((*first, first.dresidual), (*second, second.dresidual))


# ---- addresses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_arrays_by_address(strategy, dtype):
    batch = batch_of(dtype)
    running = np.zeros(3, parameter_dtype(dtype)), np.ones(3, parameter_dtype(dtype))
    given = options(batch, strategy) | {"running_mean": running[0], "running_var": running[1]}
    z, ctx = _core.forward(batch.x.copy(), **given)
    before, updated = z.copy(), [array.copy() for array in running]
    want = _core.backward(ctx, batch.dz)
    running[0][...], running[1][...] = 0, 1

    x, out, dz = batch.x.copy(), np.empty_like(batch.x), batch.dz.copy()
    dx, dresidual = np.empty_like(x), np.empty_like(x)
    arrays = {name: value for name, value in given.items() if isinstance(value, np.ndarray)}
    tuples = given | {name: addressed(array) for name, array in arrays.items()}
    if KEEPS[strategy] != "z":
        tuples["out"] = addressed(out)
    of_x = addressed(x)
    z, ctx = _core.forward(of_x, hold=False, **tuples)
    assert z is (of_x if KEEPS[strategy] == "z" else tuples["out"])
    assert np.array_equal(x if KEEPS[strategy] == "z" else out, before)
    same(running, updated)
    got = _core.backward(
        ctx, addressed(dz), kept=of_x, residual=tuples["residual"], out=(to := addressed(dx)),
        residual_out=addressed(dresidual),
    )  # fmt: skip
    assert got[0] is to
    same((dx, *got[1:4], dresidual), want)


def test_bfloat16_without_ml_dtypes():
    """The elements are uint16; compared with float32 of the same values."""
    values = np.random.default_rng(0).normal(size=(8, 3, 7)).astype(np.float32)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    rounded = (bits.astype(np.uint32) << 16).view(np.float32)
    want, _ = functional.forward(rounded.copy(), activation="relu", strategy="standard")
    z, ctx = _core.forward(
        addressed(bits, "bfloat16"), activation="relu", strategy="pre_activation", hold=False
    )
    assert z.dtype == np.uint16
    np.testing.assert_allclose((z.astype(np.uint32) << 16).view(np.float32), want, rtol=2**-6, atol=0.02)
    dx = _core.backward(ctx, addressed(bits, "bfloat16"), kept=addressed(bits, "bfloat16"))[0]
    assert dx.dtype == np.uint16
    with pytest.raises(TypeError, match=r"x must be float32, .*, got uint16"):
        functional.forward(bits)


def test_wrong_addresses_are_refused():
    x = np.ones((4, 3), np.float32)
    address, shape, strides, dtype = addressed(x)
    for given, error, message in [
        ((address, shape, strides), TypeError, r"must be given as \(address, shape, strides, dtype\)"),
        ((address, shape, strides, "int8"), TypeError, "dtype must be 'float32', .* got 'int8'"),
        ((address, shape, strides, np.float32), TypeError, "dtype must be 'float32'"),
        ((address, shape, (3,), dtype), TypeError, "strides must be a tuple of 2 integers"),
        ((address, [4, 3], strides, dtype), TypeError, "must be a tuple of"),
        ((address, (4, -3), strides, dtype), ValueError, "shape must not be negative"),
        ((0, shape, strides, dtype), ValueError, "address must not be 0"),
        (("x", shape, strides, dtype), TypeError, "address must be an integer, got 'x'"),
        ((address + 2, shape, strides, dtype), ValueError, "x must be aligned"),
        ((address, shape, (0, 1), dtype), ValueError, "x overlaps itself"),
        ((address, (12,), (1,), dtype), ValueError, "x must have 2 to 5 dimensions"),
    ]:
        with pytest.raises(error, match=message):
            _core.forward(given, hold=False)
    with pytest.raises(ValueError, match="hold must be False if x is given by its address"):
        _core.forward((address, shape, strides, dtype))
    with pytest.raises(ValueError, match="hold must be False if residual is given by its address"):
        _core.forward(x, residual=addressed(x.copy()))
    assert (x == 1).all()


def test_an_empty_batch_by_address():
    z, ctx = _core.forward((0, (0, 3), (3, 1), "float32"), hold=False)
    dx = _core.backward(ctx, np.empty((0, 3), np.float32), kept=np.empty((0, 3), np.float32))[0]
    assert z[1] == dx.shape == (0, 3)


def test_statistics_by_address():
    x = random_batch((4, 3, 5), "float32").x
    mean, var, count = functional.statistics(x)
    same(_core.statistics(addressed(x)), (mean, var, count))
    assert np.allclose(mean, reference.statistics(x)[0])
