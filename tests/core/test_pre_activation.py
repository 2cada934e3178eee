"""Strategy "pre_activation": y is kept, z is written elsewhere; the residual as another layer's y."""

import itertools

import numpy as np
import pytest
from batches import (
    DTYPES,
    HARD,
    ISAS,
    LAYOUTS,
    dtype_of,
    forward,
    lay_out,
    parameter_dtype,
    random_batch,
    run,
    with_residual,
)
from bounds import EPS, assert_backward, assert_forward, expected, without_kinks
from cases import each

from inplace_abn import _core, functional, reference

pytestmark = pytest.mark.arithmetic

KEEPS_Y = {"strategy": "pre_activation"}


@pytest.mark.parametrize("shape", [(3, 19, 33), (5, 3, 7), (1, 2, 4097), (33, 70)])
@pytest.mark.parametrize("dtype", DTYPES)
@each(residual=[False, True], activation=["relu", *HARD])
def test_kernels_of_whole_tiles(dtype, shape, activation, residual):
    """Lengths that are no multiple of a vector, in every layout and instruction set."""
    batch = random_batch(shape, dtype)
    batch = with_residual(batch, 0.5) if residual else batch
    batch = without_kinks(batch, dtype, "y", activation)
    want = expected(batch, dtype, "y", activation)
    for layout, isa, threads in itertools.product(LAYOUTS, ISAS, (1, 3)):
        overwrite = threads == 3
        got = run(
            batch, layout, isa=isa, threads=threads, overwrite=overwrite, activation=activation, **KEEPS_Y
        )
        assert_forward(got, want)
        assert_backward(got, want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_x_holds_y_and_z_is_the_activation_of_it(activation, dtype):
    batch = with_residual(random_batch((4, 5, 7), dtype))
    for layout in LAYOUTS:
        x, axis = LAYOUTS[layout](batch.x)
        z, ctx = _core.forward(
            x, weight=batch.weight, bias=batch.bias, activation=activation, channel_axis=axis,
            residual=lay_out(batch.residual, layout), **KEEPS_Y,
        )  # fmt: skip
        assert ctx.saved["y"] is x
        want = reference.ACTIVATIONS[activation].phi(x.astype(np.float64), None)
        np.testing.assert_allclose(z.astype(np.float64), want, rtol=4 * EPS[dtype], atol=1e-30)
        if activation == "relu":
            assert np.array_equal(z, np.maximum(x, x.dtype.type(0)))
        assert np.array_equal(ctx.recompute(), z)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["first", "last"])
def test_a_weight_of_zero_is_exact(layout, dtype):
    """As at the end of a zero-initialized residual branch: y is bias + residual, and xhat is kept."""
    batch = with_residual(random_batch((6, 19, 5, 5), dtype))
    weight = np.where(np.arange(19) % 3, batch.weight, 0).astype(parameter_dtype(dtype))
    batch = without_kinks(batch._replace(weight=weight), dtype, "y", "relu")
    want = expected(batch, dtype, "y", "relu")
    for isa in ISAS:
        got = run(batch, layout, isa=isa, activation="relu", **KEEPS_Y)
        assert_forward(got, want)
        assert_backward(got, want)
        assert not got.dx[:, ::3].any()
        assert np.abs(got.dweight[::3]).min() > 0


# ---- the residual as another layer's y -------------------------------------------------------------------


@pytest.mark.parametrize("of_residual", ["relu", "relu6", "hardswish", "silu", "leaky_relu"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_residual_may_be_an_activation_of_what_is_given(dtype, activation, of_residual):
    batch = random_batch((5, 19, 7), dtype)
    other = (2 * np.random.default_rng(1).normal(size=batch.x.shape)).astype(batch.x.dtype)
    for layout, isa in itertools.product(LAYOUTS, ISAS):
        given = lay_out(other, layout)
        _, same = LAYOUTS[layout](batch.x)
        one = np.ones(19, parameter_dtype(dtype))
        residual, _ = _core.forward(
            given.copy(), running_mean=0 * one, running_var=one, eps=1e-300, training=False,
            channel_axis=same,
            activation=of_residual, activation_param=0.3, strategy="standard", isa=isa,
        )  # fmt: skip
        as_given = np.empty_like(given)
        as_given[...] = residual
        found = []
        for hold in (True, False):
            x, axis = LAYOUTS[layout](batch.x)
            _, ctx = _core.forward(
                x, weight=batch.weight, bias=batch.bias, activation=activation, channel_axis=axis, isa=isa,
                residual=_like(x, as_given), hold=hold, **KEEPS_Y,
            )  # fmt: skip
            again = {} if hold else {
                "kept": x, "residual": _like(x, given), "residual_activation": of_residual,
                "residual_activation_param": 0.3,
            }  # fmt: skip
            found.append(_core.backward(ctx, _like(x, lay_out(batch.dz, layout)), isa=isa, **again))
        for got, want in zip(*found, strict=True):
            if want is not None:
                assert np.array_equal(got, want) or np.abs(np.subtract(got, want, dtype=float)).max() <= (
                    16 * EPS[dtype] * np.abs(want.astype(float)).max()
                )


def _like(x, values):
    """Return the values in an array with the memory layout of x."""
    array = np.empty_like(x)
    array[...] = values
    return array


def test_residual_activation_is_refused_elsewhere():
    x = np.random.default_rng(0).normal(size=(4, 3))
    _, ctx = functional.forward(x.copy(), residual=x.copy(), activation="relu", **KEEPS_Y)
    with pytest.raises(ValueError, match="residual_activation goes with residual= and a ctx of"):
        functional.backward(ctx, x, residual_activation="relu")
    _, ctx = functional.forward(x.copy(), residual=x.copy(), activation="relu", hold=False, **KEEPS_Y)
    given = {"kept": x.copy(), "residual": x.copy()}
    with pytest.raises(ValueError, match="'prelu' is not possible"):
        functional.backward(ctx, x, residual_activation="prelu", **given)
    with pytest.raises(ValueError, match="residual_activation must be"):
        functional.backward(ctx, x, residual_activation="swish", **given)


def test_a_mask():
    batch = with_residual(random_batch((4, 3, 11), "float32"))
    mask = np.random.default_rng(3).random((4, 11)) < 0.6
    found = {}
    for strategy in ("standard", "pre_activation"):
        z, ctx = forward(batch, mask=mask, activation="relu", strategy=strategy)
        found[strategy] = [z, *(g for g in _core.backward(ctx, batch.dz.copy()) if g is not None)]
    for got, want in zip(found["pre_activation"], found["standard"], strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)


def test_dtype_of_a_context():
    x = np.ones((4, 3), dtype_of("float16"))
    x[0] = 0
    _, ctx = functional.forward(x, activation="hardswish", **KEEPS_Y)
    assert (ctx.strategy, ctx.dtype, list(ctx.saved)) == ("pre_activation", x.dtype, ["y"])
