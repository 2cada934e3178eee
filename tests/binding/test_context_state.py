"""Contexts without arrays of the size of x: `Context.state`, `context_from_state`, copies and pickles."""

import copy
import pickle

import numpy as np
import pytest
from batches import random_batch, with_residual

from inplace_abn import _core, functional
from inplace_abn._activations import KEEPS

STRATEGIES = [name for name in KEEPS if name != "inplace"]
WAYS = {
    "state": lambda ctx: functional.context_from_state(ctx.state()),
    "deepcopy": copy.deepcopy,
    "pickle": lambda ctx: pickle.loads(pickle.dumps(ctx)),
}


def assert_same_backward(x, dz, **arguments):
    """Assert that a context and one from its state have the same backward; return the context's state."""
    _, ctx = functional.forward(x, hold=False, **arguments)
    given = {"kept": x, "residual": arguments.get("residual")}
    state = ctx.state()
    other = functional.context_from_state(state)
    assert repr(other) == repr(ctx)
    assert {role: array.tolist() for role, array in other.saved.items()} == {
        role: array.tolist() for role, array in ctx.saved.items()
    }
    got = functional.backward(other, dz, **given)
    want = functional.backward(ctx, dz, **given)
    for one, of_ctx in zip((*got, got.dslope), (*want, want.dslope), strict=True):
        assert one is of_ctx is None or np.array_equal(one, of_ctx)
    return state


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_and_dtype(strategy, dtype):
    batch = with_residual(random_batch((4, 3, 5), dtype))
    state = assert_same_backward(
        batch.x.copy(),
        batch.dz,
        weight=batch.weight,
        bias=batch.bias,
        residual=batch.residual,
        strategy=strategy,
    )
    assert state["constants"].shape == (5, 3)


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("masked", [False, True])
def test_side_arrays(channel_axis, masked):
    rng = np.random.default_rng(0)
    x, dz = rng.normal(size=(2, 4, 9, 9, 5)).astype(np.float32)
    mask = {"mask": rng.random((4, 9, 9) if channel_axis == -1 else (4, 9, 5)) < 0.7} if masked else {}
    weight = np.full(x.shape[channel_axis], 4, np.float32)
    weight[1] = 0
    arguments = {"weight": weight, "channel_axis": channel_axis, **mask}
    state = assert_same_backward(x.copy(), dz, activation="silu", **arguments)
    assert {"branch_mask", "guarded_xhat", "guarded_channels"} <= set(state)
    assert state["guarded_channels"].tolist() == [1]
    state = assert_same_backward(x.copy(), dz, activation="tanh", **arguments)
    assert state["escape_index"].size == state["escape_xhat"].size > 0
    assert ("mask" in state) == masked


def test_channels_last_memory_and_slopes():
    rng = np.random.default_rng(0)
    x, dz = np.moveaxis(rng.normal(size=(2, 4, 5, 6, 3)), -1, 2)
    for slope in (np.full(3, 0.2), np.full(1, 0.3)):
        state = assert_same_backward(x.copy("K"), dz, activation="prelu", slope=slope)
        assert state["constants"].shape == (6, 3)
    statistics = {"running_mean": np.zeros(3), "running_var": np.ones(3), "training": False}
    assert_same_backward(x.copy("K"), dz, **statistics)


@pytest.mark.parametrize("shape", [(0, 3), (4, 3), (4, 1), (1, 3, 5), (2, 3, 1, 1)])
def test_shapes_whose_layout_is_ambiguous(shape):
    assert_same_backward(np.random.default_rng(0).normal(size=shape), np.ones(shape))


@pytest.mark.parametrize("how", WAYS)
def test_a_copy_is_independent(how):
    batch = random_batch((4, 3, 5), "float32")
    x = batch.x.copy()
    _, ctx = functional.forward(x, activation="silu", hold=False)
    other = WAYS[how](ctx)
    want = functional.backward(ctx, batch.dz, kept=x)
    assert ctx.freed
    assert not other.freed
    got = functional.backward(other, batch.dz, kept=x)
    assert np.array_equal(got.dx, want.dx)


def test_memory_by_address():
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    bits = (x.view(np.uint32) >> 16).astype(np.uint16)
    address = (bits.ctypes.data, bits.shape, (3, 1), "bfloat16")
    _, ctx = _core.forward(address, strategy="pre_activation", activation="relu", hold=False)
    got = [_core.backward(each, address, kept=address)[0] for each in (pickle.loads(pickle.dumps(ctx)), ctx)]
    assert got[0].dtype == np.uint16
    assert np.array_equal(*got)


def test_statistics_of_several_batches():
    batch = random_batch((4, 3, 5), "float32")
    mean, var = batch.x.mean((0, 2), dtype=float), batch.x.var((0, 2), dtype=float)
    x = batch.x.copy()
    _, ctx = functional.normalize(x, mean=mean, var=var, count=40, hold=False)
    other = WAYS["pickle"](ctx)
    assert other.owner == "functional.normalize"
    sums = [functional.backward_reduce(each, batch.dz, kept=x) for each in (ctx, other)]
    assert all(map(np.array_equal, *sums))
    with pytest.raises(ValueError, match="statistics of more elements"):
        functional.backward(other, batch.dz, kept=x)


def test_contexts_that_hold_arrays_or_nothing_are_refused():
    _, ctx = functional.forward(np.ones((4, 3)))
    with pytest.raises(ValueError, match=r"state goes with a ctx of forward\(..., hold=False\)"):
        ctx.state()
    ctx.release()
    with pytest.raises(RuntimeError, match="keeps nothing any more"):
        ctx.state()


def state_of(**arguments):
    x = np.random.default_rng(0).normal(size=(4, 3, 8)).astype(np.float32)
    weight = np.array([4, 0, 4], np.float32)
    return functional.forward(x, weight=weight, hold=False, **arguments)[1].state()


def test_other_states_are_refused():
    with pytest.raises(TypeError, match="state must be a dict that"):
        functional.context_from_state([])
    silu = state_of(activation="silu", mask=np.arange(32).reshape(4, 8) % 5 != 0)
    tanh = state_of(activation="tanh")
    for state in (silu, tanh):
        for key in state:
            with pytest.raises((ValueError, TypeError)):
                functional.context_from_state(state | {key: None})
            if isinstance(state[key], np.ndarray):
                for wrong in (state[key][..., :-1], state[key].astype(np.complex64), state[key][..., None]):
                    with pytest.raises(ValueError, match=r"state must be .* its '\w+' is not"):
                        functional.context_from_state(state | {key: wrong.copy()})
        for missing in set(state) - {"mask", "guarded_channels", "escape_index"}:
            with pytest.raises(ValueError, match=f"its '{missing}' is not"):
                functional.context_from_state({key: state[key] for key in state if key != missing})
    for key, wrong in [
        ("mask", ~silu["mask"]),
        ("guarded_channels", silu["guarded_channels"] + 2),
        ("guarded_channels", silu["guarded_channels"] - 2),
    ]:
        with pytest.raises(ValueError, match=f"its '{key}' is not"):
            functional.context_from_state(silu | {key: wrong})
    for wrong in (tanh["escape_index"][::-1], tanh["escape_index"] + 96, tanh["escape_index"] - 96):
        with pytest.raises(ValueError, match="its 'escape_index' is not"):
            functional.context_from_state(tanh | {"escape_index": wrong.copy()})


def test_other_descriptions_are_refused():
    state = state_of(activation="silu")
    description = state["description"]
    wrong = {
        1: ["fastest", 3], 2: ["swish"], 3: [np.nan, "a"], 5: [0.0, -1.0, np.inf], 6: [-1.0, np.nan],
        7: [(4,), (4, 3, 8, 1, 1, 1), (4, -3, 8), (4, 3, 9), (2**40, 3, 2**40), [4, 3, 8]],
        8: ["int8", 3, np.dtype(np.int32), np.dtype(">f4")], 9: [0, 2], 15: [1], 16: [3],
    }  # fmt: skip
    for place, values in wrong.items():
        for value in values:
            changed = (*description[:place], value, *description[place + 1 :])
            with pytest.raises((TypeError, ValueError)):
                functional.context_from_state(state | {"description": changed})
    with pytest.raises(TypeError):
        functional.context_from_state(state | {"description": description[:-1]})
