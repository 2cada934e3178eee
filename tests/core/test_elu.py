"""elu: the library's exp and log1p, and escaped elements, whose z is near -alpha."""

import numpy as np
import pytest
from batches import DTYPES, ISAS, LAYOUTS, dtype_of, lay_out, parameter_dtype, random_batch, relative_l2, run
from bounds import EPS, FLAT, SMALLEST, working_type
from cases import each
from keywords import as_sums

from inplace_abn import _core, functional, reference

INPLACE = ["inplace_1", "inplace_2"]


def apply(values, dtype, alpha=1.0, isa=None):
    """Return elu(values): evaluation with mean 0, var 1 and a negligible eps normalizes x to itself."""
    x = np.asarray(values, dtype_of(dtype)).reshape(-1, 1)
    zero, one = np.zeros(1, parameter_dtype(dtype)), np.ones(1, parameter_dtype(dtype))
    z, _ = _core.forward(
        x.copy(), running_mean=zero, running_var=one, training=False, eps=1e-300, activation="elu",
        activation_param=alpha,
        strategy="standard", isa=isa,
    )  # fmt: skip
    return x.ravel(), z.ravel()


def negative_numbers(dtype):
    """Return values dense near 0, in between, near the smallest numbers, and so far below 0 that exp is 0."""
    smallest = 300 if dtype == "float64" else 37
    parts = (
        np.logspace(-smallest, 2, 40001),
        np.linspace(0, 20, 40001),
        np.linspace(0.3, 0.4, 20001),
        [1e4, 1e30],
    )
    return -np.concatenate(parts).clip(0, 6e4 if dtype == "float16" else np.inf)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("isa", ISAS)
def test_exp_is_within_two_units_in_the_last_place(isa, dtype):
    x, z = apply(negative_numbers(dtype), dtype, isa=isa)
    want = np.expm1(x.astype(np.longdouble))
    ulp = np.spacing(np.abs(want).astype(dtype)).astype(np.longdouble)
    off = np.abs(z - want) / ulp
    worst = int(np.argmax(off))
    assert off[worst] <= 2, f"expm1({x[worst]!r}) = {z[worst]!r}, expected {want[worst]!r}"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("isa", ISAS)
def test_half_types_are_rounded_once(isa, dtype):
    """Computed in float32, so the error is at most slightly more than half a unit in the last place."""
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    x, z = apply(negative_numbers(dtype), dtype, isa=isa)
    want = np.expm1(x.astype(np.float64))
    error = 0.505 * EPS[dtype] * np.abs(want) + 0.51 * SMALLEST[dtype]
    assert (np.abs(z - want) <= error).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("alpha", [0.25, 1.0, 3.0])
def test_y_is_recovered_from_z(alpha, dtype, isa):
    """log1p, measured by dgamma of one element at a time: dz * (z + alpha) * log1p(z / alpha)."""
    count = 4001
    y = -np.linspace(1e-6, 4, count)
    x = np.stack([y, -y]).astype(dtype)
    zero, one = np.zeros(count, dtype), np.ones(count, dtype)
    z, ctx = _core.forward(
        x.copy(), weight=one, bias=zero, running_mean=zero, running_var=one, training=False, eps=1e-300,
        activation="elu", activation_param=alpha, strategy="inplace_2", isa=isa,
    )  # fmt: skip
    dz = np.stack([one, zero])
    z = z[0].astype(np.longdouble)
    dweight = _core.backward(ctx, dz, isa=isa)[1]
    # From the stored z, so that errors come only from log1p (2 units), its argument and the product.
    want = (z + alpha) * np.log1p(z / alpha)
    slope = 1 / np.abs((1 + z / alpha) * np.log1p(z / alpha))
    error = np.abs(want) * EPS[dtype] * (4 + np.abs(z / alpha) * slope + alpha / (z + alpha))
    assert (np.abs(dweight - want) <= error).all()


# ---- escaped elements: y cannot be recovered from z --------------------------------------------------------


def saturating(dtype, alpha=1.0, seed=0, channels=17):
    """Return a batch whose biases put from none to most of a channel's elements where elu is flat."""
    batch = random_batch((4, channels, 9, 7), dtype, seed, mean=0.0)
    parameter = parameter_dtype(dtype)
    weight = np.linspace(0.5, 8, channels) * np.where(np.arange(channels) % 3, 1, -1)
    bias = np.linspace(3, -12, channels)
    return batch._replace(weight=weight.astype(parameter), bias=bias.astype(parameter))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
@each(alpha=[0.5, 1.0, 2.0], layout=LAYOUTS, strategy=INPLACE)
def test_gradients_equal_the_standard_strategy(strategy, isa, layout, dtype, alpha):
    """Compared by channel: where elu is flat, gradients are small; from z alone they were NaN or noise."""
    batch = saturating(dtype, alpha)
    options = {"activation": "elu", "activation_param": alpha}
    work = working_type(dtype)
    _, ctx = reference.forward(
        batch.x, weight=batch.weight, bias=batch.bias, strategy="standard", dtype=work, **options
    )
    want = reference.backward(ctx, batch.dz)
    got = run(batch, layout, isa=isa, strategy=strategy, **options)
    # z near -alpha: the slope z + alpha cancels digits, at most a factor 1 / FLAT; y loses as many.
    most = 4 * EPS[dtype] / FLAT[dtype] if dtype in ("float32", "float64") else 16 * EPS[dtype]
    for c in range(17):
        assert relative_l2(got.dx[:, c], want.dx[:, c]) < most, c
    for name in ("dweight", "dbias"):
        one, other = getattr(got, name), getattr(want, name)
        np.testing.assert_allclose(
            one.astype(work), other, rtol=most, atol=most * np.sqrt(other.size), err_msg=name
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_saturated_elements_escape_with_their_xhat(layout, dtype):
    alpha = 1.0
    batch = saturating(dtype, alpha)
    x, axis = LAYOUTS[layout](batch.x)
    z, ctx = functional.forward(
        x, weight=batch.weight, bias=batch.bias, activation="elu", activation_param=alpha, channel_axis=axis
    )
    saved = dict(ctx.saved)
    flat = np.moveaxis(z, axis, 1).astype(np.float64) < -alpha * (1 - FLAT[dtype])
    assert flat.size / 50 < flat.sum() < flat.size / 1.5
    guarded = 0 if "guarded_xhat" not in saved else saved["guarded_xhat"].size
    assert len(saved["escape_index"]) == len(saved["escape_xhat"])
    assert flat.sum() - guarded <= len(saved["escape_index"]) <= flat.sum()
    assert ctx.nbytes == sum(array.nbytes for array in saved.values())
    assert ctx.nbytes == sum(array.nbytes for array in ctx.saved.values())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("strategy", INPLACE)
def test_no_element_escapes_in_ordinary_data(strategy, layout, dtype):
    """|xhat| < 4 and weights of 1 keep every z above -0.98."""
    x = np.clip(random_batch((4, 17, 9, 7), dtype, mean=0.0).x.astype(np.float64), -2, 2).astype(
        dtype_of(dtype)
    )
    if dtype in ("float16", "bfloat16"):
        x = (x.astype(np.float64) ** 2).astype(x.dtype)  # half types saturate earlier, at y = -3.4 or -2.7
    x, axis = LAYOUTS[layout](x)
    one = np.ones(17, parameter_dtype(dtype))
    _, ctx = functional.forward(
        x,
        weight=one,
        bias=one * 0,
        activation="elu",
        activation_param=1.0,
        strategy=strategy,
        channel_axis=axis,
    )
    assert list(ctx.saved) == ["z"]


@pytest.mark.parametrize("strategy", ["standard", "checkpoint", "checkpoint_xhat", "pre_activation"])
def test_no_element_escapes_if_x_or_xhat_is_kept(strategy):
    batch = saturating("float32")
    _, ctx = functional.forward(
        batch.x.copy(),
        weight=batch.weight,
        bias=batch.bias,
        activation="elu",
        activation_param=1.0,
        strategy=strategy,
    )
    assert list(ctx.saved) == [reference.KEEPS[strategy]]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_fully_saturated_channel(dtype, layout):
    """A channel far below zero: z is -alpha throughout, its gradients vanish, and none is NaN."""
    batch = random_batch((4, 3, 9, 7), dtype, mean=0.0)
    weight, bias = np.ones(3, parameter_dtype(dtype)), np.array([-1000, 0, -200], parameter_dtype(dtype))
    batch = batch._replace(weight=weight, bias=bias)
    got = run(batch, layout, activation="elu", activation_param=1.0)
    assert (got.z[:, [0, 2]] == -1).all()
    for array in got[:4]:
        assert np.isfinite(array.astype(np.float64)).all()
    assert np.abs(got.dx[:, [0, 2]].astype(np.float64)).max() < 1e-30
    assert np.abs(got.dx[:, 1].astype(np.float64)).max() > 0.1


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("overwrite", [False, True])
def test_reduce_and_apply_use_the_escaped_elements(overwrite, layout):
    batch = saturating("float32")
    options = {"activation": "elu", "activation_param": 1.0}
    want = run(batch, layout, **options)
    x, axis = LAYOUTS[layout](batch.x)
    _, ctx = functional.forward(x, weight=batch.weight, bias=batch.bias, channel_axis=axis, **options)
    dz = lay_out(batch.dz, layout)
    sums = functional.backward_reduce(ctx, dz)
    np.testing.assert_allclose(sums[0], want.dbias, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(sums[1], want.dweight, rtol=1e-6, atol=1e-6)
    dx = functional.backward_apply(ctx, dz, **as_sums(sums), count=4 * 9 * 7, overwrite=overwrite)
    np.testing.assert_allclose(np.moveaxis(dx, axis, 1), want.dx, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("layout", ["first", "last"])
def test_escaped_elements_do_not_depend_on_the_number_of_threads(layout, threads):
    batch = saturating("float32", channels=70)
    lists = []
    for count in (1, threads):
        x, axis = LAYOUTS[layout](batch.x)
        _, ctx = functional.forward(
            x,
            weight=batch.weight,
            bias=batch.bias,
            activation="elu",
            activation_param=1.0,
            channel_axis=axis,
            threads=count,
        )
        lists.append({name: array.copy() for name, array in ctx.saved.items()})
    assert lists[0].keys() == lists[1].keys() >= {"z", "escape_index", "escape_xhat"}
    for name, array in lists[0].items():
        assert np.array_equal(array, lists[1][name]), name
