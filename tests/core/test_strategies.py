"""The strategies compared with each other: equal gradients from different kept arrays."""

from functools import cache

import numpy as np
import pytest
from batches import (
    ACTIVATIONS,
    CHECKPOINTS,
    DTYPES,
    INVERTIBLE,
    LAYOUTS,
    PARAM,
    STRATEGIES,
    THOROUGH,
    forward,
    lay_out,
    parameter_dtype,
    random_batch,
    relative_l2,
    run,
    sampled,
)
from bounds import EPS, assert_within, expected, without_kinks
from cases import each
from keywords import as_running

from inplace_abn import functional, reference


@cache
def batch_without_kinks(dtype, activation):
    """Return a batch with dz = 0 where rounding may move y across a kink with some strategy."""
    batch = random_batch((4, 17, 5, 7), dtype)
    for keeps in ("x", "xhat", "y", "z"):
        batch = without_kinks(batch, dtype, keeps, activation)
    return batch


@cache
def expected_without_kinks(dtype, keeps, activation):
    return expected(batch_without_kinks(dtype, activation), dtype, keeps, activation)


@sampled(dtype=DTYPES, layout=LAYOUTS, activation=INVERTIBLE, strategy=STRATEGIES[1:])
def test_results_equal_those_of_standard_within_rounding(strategy, activation, layout, dtype):
    """Within the errors that both may have: half types keep 3 or 2 digits of z or xhat."""
    batch = batch_without_kinks(dtype, activation)
    options = {"activation": activation, "activation_param": PARAM[activation]}
    standard = run(batch, layout, strategy="standard", **options)
    other = run(batch, layout, strategy=strategy, **options)
    may = [expected_without_kinks(dtype, keeps, activation) for keeps in ("x", reference.KEEPS[strategy])]
    for name in ("z", "dx", "dweight", "dbias"):
        error = sum(getattr(m, f"{name}_error") for m in may)
        want = getattr(standard, name).astype(error.dtype)
        assert_within(getattr(other, name), want, error, name)
    # Where a curve is flat z has lost digits of y: see test_smooth.
    flat = {"float32": 2e-6, "float64": 1e-11}.get(dtype, 8 * EPS[dtype])
    assert relative_l2(other.dx, standard.dx) < (2 * EPS[dtype] if activation in THOROUGH else flat)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_inplace_is_inplace_2(dtype, layout):
    batch = random_batch((4, 17, 5), dtype)
    for got, want in zip(
        run(batch, layout, strategy="inplace"), run(batch, layout, strategy="inplace_2"), strict=True
    ):
        assert np.array_equal(got, want)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_kept(dtype, strategy):
    """One full-size buffer, by name; nothing else for ordinary weights and leaky_relu."""
    batch = random_batch((4, 17, 5), dtype)
    x = batch.x.copy()
    z, ctx = functional.forward(
        x, weight=batch.weight, bias=np.zeros(17, parameter_dtype(dtype)), strategy=strategy
    )
    ((name, array),) = ctx.saved.items()
    assert name == reference.KEEPS[strategy]
    assert array is x
    assert ctx.nbytes == x.nbytes
    assert np.shares_memory(z, array) == (name == "z")


@sampled(
    dtype=DTYPES,
    layout=LAYOUTS,
    activation=ACTIVATIONS,
    strategy=CHECKPOINTS,
)
@each(out=[False, True])
def test_recompute_returns_z(strategy, activation, layout, dtype, out):
    """Bitwise equal from x and y; equal to rounding from xhat, which was rounded to the storage type."""
    batch = random_batch((4, 17, 5), dtype)
    options = {"activation": activation, "activation_param": PARAM[activation]}
    z, ctx = forward(batch, layout, strategy=strategy, **options)
    buffer = np.full_like(z, 7) if out else None
    again = ctx.recompute(out=buffer) if out else ctx.recompute()
    assert out == (again is buffer)
    assert again.shape == z.shape
    assert again.dtype == z.dtype
    assert not np.shares_memory(again, ctx.saved[reference.KEEPS[strategy]])
    if strategy != "checkpoint_xhat":
        assert np.array_equal(again, z)
    want = expected(batch, dtype, reference.KEEPS[strategy], activation)
    assert_within(np.moveaxis(again, ctx.channel_axis, 1), want.z, want.z_error, "z")
    assert np.array_equal(ctx.recompute(), again)
    functional.backward(ctx, lay_out(batch.dz, layout))


def test_recompute_in_evaluation():
    batch = random_batch((4, 5, 7), "float32")
    running = batch.bias, np.abs(batch.weight)
    z, ctx = functional.forward(
        batch.x.copy(),
        weight=batch.weight,
        bias=batch.bias,
        **as_running(running),
        training=False,
        strategy="checkpoint",
    )
    assert np.array_equal(ctx.recompute(), z)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_chain_of_layers_has_the_same_gradients_for_every_strategy(dtype):
    """x -> ABN -> times a matrix -> ABN -> loss: each z is the input of the next layer, as in a network."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(64, 6)).astype(dtype)
    matrix = rng.normal(size=(6, 6)).astype(dtype)
    weight = rng.uniform(0.5, 1.5, (2, 6)).astype(dtype) * np.array([1, -1, 1, -1, 1, -1], dtype)
    bias = rng.normal(size=(2, 6)).astype(dtype)
    results = {}
    for strategy in STRATEGIES:
        first, ctx_1 = functional.forward(x.copy(), weight=weight[0], bias=bias[0], strategy=strategy)
        second, ctx_2 = functional.forward(first @ matrix, weight=weight[1], bias=bias[1], strategy=strategy)
        back = functional.backward(ctx_2, second**2, overwrite=True)
        z = ctx_1.recompute() if strategy in CHECKPOINTS else first
        dmatrix = z.T @ back.dx
        gradients = functional.backward(ctx_1, back.dx @ matrix.T)
        results[strategy] = [gradients.dx, gradients.dweight, dmatrix, back.dweight]
    for strategy in STRATEGIES[1:]:
        for got, want in zip(results[strategy], results["standard"], strict=True):
            assert relative_l2(got, want) < 32 * EPS[dtype], strategy
