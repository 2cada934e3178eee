"""NaN propagates: every activation, strategy and side array keeps it NaN, and only in its own channel."""

import itertools

import numpy as np
import pytest
from batches import (
    ACTIVATIONS,
    DTYPES,
    ISAS,
    Batch,
    Run,
    dtype_of,
    each_scheme,
    forward,
    lay_out,
    parameter_dtype,
    run,
)
from cases import each

from inplace_abn import _core, reference

pytestmark = pytest.mark.arithmetic

SHAPE = (3, 4, 40)
ARRAYS = ["x", "dz", "residual", "weight", "bias"]


def drawn(dtype, where):
    """Return a batch with NaN in channel 1 of array `where`, escaped elements and guarded channels."""
    rng = np.random.default_rng(0)
    arrays = dict(zip(ARRAYS, 3 * rng.normal(size=(3, *SHAPE)), strict=False))
    arrays["residual"][1, 1, 20] = 6e4
    arrays["weight"], arrays["bias"] = rng.normal(size=4) * [1, 1, 1e-3, 0], rng.normal(size=4)
    arrays[where][(1, 1, slice(12, 18)) if arrays[where].ndim == 3 else 1] = np.nan
    of = {"weight": parameter_dtype, "bias": parameter_dtype}
    return Batch(**{name: array.astype(of.get(name, dtype_of)(dtype)) for name, array in arrays.items()})


def expected(batch, activation, **options):
    z, ctx = reference.forward(
        batch.x, weight=batch.weight, bias=batch.bias, activation=activation, residual=batch.residual,
        slope=batch.slope_of(activation), strategy="standard", **options,
    )  # fmt: skip
    gradients = reference.backward(ctx, batch.dz)
    return Run(z, *gradients, gradients.dslope, gradients.dresidual)


def where_nan(result):
    return {
        name: np.isnan(array.astype(float)) for name, array in result._asdict().items() if array is not None
    }


@pytest.mark.parametrize("dtype", DTYPES)
@each_scheme
@each(training=[True, False])
def test_nan_is_where_the_reference_has_nan(activation, strategy, dtype, training):
    options = {"activation": activation, "training": training}
    given = parameter_dtype(dtype)
    if not training:
        options |= {"running_mean": np.zeros(4, given), "running_var": np.ones(4, given)}
    for where in ARRAYS:
        batch = drawn(dtype, where)
        want = where_nan(expected(batch, **options))
        assert want["z"].any() == (where != "dz")
        for layout, isa in itertools.product(("first", "last"), ISAS):
            got = where_nan(run(batch, layout, isa=isa, strategy=strategy, **options))
            for name, nan in want.items():
                if where == "residual":  # more elements of its channel may be NaN if xhat is recovered from z
                    assert not (nan & ~got[name]).any(), (layout, isa, name)
                    assert not np.delete(got[name], 1, axis=nan.ndim // 2).any(), (layout, isa, name)
                else:
                    assert np.array_equal(got[name], nan), (where, layout, isa, name)


@pytest.mark.parametrize("dtype", DTYPES)
@each_scheme
@each(training=[True, False])
def test_backward_apply_has_nan_where_backward_has(activation, strategy, dtype, training):
    options = {"activation": activation, "training": training, "strategy": strategy}
    given = parameter_dtype(dtype)
    if not training:
        options |= {"running_mean": np.array([0, 0, np.nan, 0], given), "running_var": np.ones(4, given)}
    for where, layout, isa in itertools.product(ARRAYS, ("first", "last"), ISAS):
        batch = drawn(dtype, where)
        dz = lay_out(batch.dz, layout)
        whole = _core.backward(forward(batch, layout, isa=isa, **options)[1], dz, isa=isa)[0]
        _, ctx = forward(batch, layout, isa=isa, **options)
        sum_dy, sum_dy_xhat, *_ = _core.backward_reduce(ctx, dz, isa=isa)
        to = {"residual_grad": np.zeros_like(dz), "isa": isa}
        halves = _core.backward_apply(
            ctx, dz, sum_dy=sum_dy, sum_dy_xhat=sum_dy_xhat, count=batch.x.size // 4, **to
        )
        assert np.array_equal(np.isnan(halves.astype(float)), np.isnan(whole.astype(float))), (
            where,
            layout,
            isa,
        )


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strategy", ["checkpoint", "checkpoint_xhat", "pre_activation"])
def test_recompute_restores_nan_and_its_sign(strategy, dtype, training):
    """A sum of two NaN may be either of them: forward and recompute must give the same one."""
    rng = np.random.default_rng(0)
    given = parameter_dtype(dtype)
    options = {"training": training, "strategy": strategy}
    if not training:
        options |= {"running_mean": np.zeros(4, given), "running_var": np.ones(4, given)}
    for activation, layout, isa, size in itertools.product(ACTIVATIONS, ("first", "last"), ISAS, (1, 3, 40)):
        batch = drawn(dtype, "x")
        batch = batch._replace(x=batch.x[..., :size].copy(), residual=batch.residual[..., :size].copy())
        for array in batch.x, batch.residual, batch.bias:
            array[rng.random(array.shape) < 0.3] = np.nan
            np.negative(array, out=array, where=rng.random(array.shape) < 0.5)
        z, ctx = forward(batch, layout, isa=isa, activation=activation, **options)
        assert ctx.recompute(isa=isa).tobytes() == z.tobytes(), (activation, layout, isa, size)
