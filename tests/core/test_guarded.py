"""Any weights: channels whose xhat cannot be recovered from z, and extremely small and large weights."""

import itertools

import numpy as np
import pytest
from batches import (
    DTYPES,
    ISAS,
    LAYOUTS,
    STRATEGIES,
    lay_out,
    parameter_dtype,
    random_batch,
    relative_l2,
    run,
)
from bounds import EPS, FLAT, SMALLEST, without_kinks, working_type
from cases import each
from keywords import as_sums

from inplace_abn import functional, reference

INPLACE = ["inplace_1", "inplace_2"]


def most(dtype, activation, keeps="z"):
    """Return the largest allowed relative L2 error of dx of a channel, against float64.

    Half types: storing dx has an error of about eps / 4. For elu, y and the slope come from 1 + z / alpha,
    which has lost digits, up to 1 / FLAT, when z nears -alpha; and a small weight magnifies the error of y.
    From a stored y, the slope exp(y) has an error of |y| * eps / 2, with |y| near 10 for a bias of -10.
    """
    if activation == "elu" and keeps == "y" and dtype not in ("float32", "float64"):
        return 10 * EPS[dtype] / 2
    if activation == "elu":
        return {"float32": EPS["float32"] / FLAT["float32"], "float64": 1e-7}.get(dtype, 2 * EPS[dtype])
    return {"float32": 1e-6, "float64": 1e-10}.get(dtype, EPS[dtype] / 2)


def gradients(batch, dtype, **options):
    """Return z and the gradients of the reference."""
    z, ctx = reference.forward(
        batch.x,
        weight=batch.weight,
        bias=batch.bias,
        strategy="standard",
        dtype=working_type(dtype),
        **options,
    )
    return z, reference.backward(ctx, batch.dz)


def with_weights(dtype, weight, bias, shape=(8, None, 9, 9), seed=0):
    """Return a batch with these weights, and x with mean 0 and standard deviation 1."""
    channels = len(weight)
    batch = random_batch((shape[0], channels, *shape[2:]), dtype, seed, mean=0.0)
    parameter = parameter_dtype(dtype)
    return batch._replace(weight=np.array(weight, parameter), bias=np.array(bias, parameter))


def grid(dtype):
    """Return a batch with |gamma| from 1e-6 to 10, both signs, and zero; beta from -10 to 10."""
    sizes = [0, *np.logspace(-6, 1, 22)]
    pairs = [(sign * g, b) for g in sizes for sign in (1, -1) for b in (0, 1e-6, 0.1, -1, 10, -10)]
    return with_weights(dtype, *zip(*pairs, strict=True))


@pytest.mark.parametrize("keeps", ["x", "xhat", "y", "z"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["identity", "leaky_relu", "elu"])
def test_dx_is_correct_for_all_weights(activation, dtype, keeps):
    """Compared by channel: in a norm over all channels, weight 1e-6 would be negligible beside 10."""
    param = 1.0 if activation == "elu" else 0.1
    options = {"activation": activation, "activation_param": param}
    batch = without_kinks(grid(dtype), dtype, keeps, activation, param)
    _, want = gradients(batch, dtype, **options)
    size = np.sqrt((want.dx**2).mean(axis=(0, 2, 3)))
    tiny = size < 1e4 * SMALLEST[dtype]  # dx is subnormal or zero in the storage type
    assert (~tiny).sum() > 100
    kept_by = [strategy for strategy in STRATEGIES if reference.KEEPS[strategy] == keeps]
    for strategy, layout in itertools.product(kept_by, ["first", "last"]):
        dx = run(batch, layout, strategy=strategy, **options).dx
        if dtype in ("float32", "float64"):
            assert relative_l2(dx, want.dx) <= {"float32": 1e-5, "float64": 1e-12}[dtype], (strategy, layout)
        assert np.abs(dx[:, tiny].astype(float)).max(initial=0) <= 1e5 * SMALLEST[dtype], (strategy, layout)
        off = np.sqrt(((dx.astype(want.dx.dtype) - want.dx) ** 2).mean(axis=(0, 2, 3)))[~tiny] / size[~tiny]
        worst = np.argmax(off)
        pair = batch.weight[~tiny][worst], batch.bias[~tiny][worst]
        assert off[worst] <= most(dtype, activation, keeps), (strategy, layout, pair)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strategy", INPLACE)
@each(layout=LAYOUTS)
def test_zero_weights_get_gradients(strategy, dtype, isa, layout):
    """Residual branches start with gamma = 0: dx is 0, dgamma is not."""
    weight, bias = [0, 1, 0, 0, -1, 2, 0, 0.5, 0], [0.5, 0.5, -3, 10, 0.25, -1, -1e-3, 0, 2]
    batch = with_weights(dtype, weight, bias, (4, None, 5, 7))
    want_z, want = gradients(batch, dtype)
    got = run(batch, layout, isa=isa, strategy=strategy)
    zero = np.array(weight) == 0
    assert not got.dx[:, zero].any()
    off = np.abs(got.z.astype(np.float64) - want_z)[:, zero]
    assert (off <= EPS[dtype] * np.abs(want_z[:, zero]) + SMALLEST[dtype]).all()
    assert (np.abs(want.dweight[zero]) > 0.1).any()
    # xhat is rounded to the storage type: an error of eps / 2 of each term of the sum.
    size = np.abs(batch.dz.astype(np.float64)).sum(axis=(0, 2, 3))
    assert (np.abs(got.dweight - want.dweight)[zero] <= 2 * EPS[dtype] * size[zero]).all()
    assert (np.abs(got.dbias - want.dbias)[zero] <= 1e-6 * size[zero]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_only_channels_that_need_it_are_guarded(strategy, dtype):
    """In addition to y or z, only x-hat of guarded channels; nothing where x or x-hat is kept."""
    batch = with_weights(dtype, [1, 0, 0.5, -1, 1e-30, -2], [0, 1, 0.5, -1, 1, 2], (4, None, 5, 5))
    x = batch.x.copy()
    _, ctx = functional.forward(x, weight=batch.weight, bias=batch.bias, strategy=strategy)
    saved = {name: (array, array.nbytes) for name, array in ctx.saved.items()}
    if reference.KEEPS[strategy] not in ("y", "z"):
        assert list(saved) == [reference.KEEPS[strategy]]
        return
    array, size = saved["guarded_xhat"]
    assert array.dtype == batch.x.dtype
    assert array.size == 2 * 4 * 5 * 5
    assert size == array.nbytes
    assert ctx.nbytes == x.nbytes + size


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("isa", ISAS)
@each(pattern=["alternating", "first", "last", "middle", "all", "none", "blocks"], channels=[1, 3, 17, 70])
def test_guarded_channels_anywhere_among_the_others(channels, pattern, isa, layout):
    """Adjacent channels share a vector; each must use its own constants and its own side array."""
    c = np.arange(channels)
    guarded = {
        "alternating": c % 2 == 0, "first": c == 0, "last": c == channels - 1, "middle": c == channels // 2,
        "all": c >= 0, "none": c < 0, "blocks": c // 5 % 2 == 0,
    }[pattern]  # fmt: skip
    weight = np.where(guarded, 1e-9, 0.5 + c / channels)
    batch = with_weights("float32", weight, np.where(guarded, 1, 0.1), (3, None, 7, 5), seed=channels)
    want_z, want = gradients(batch, "float32")
    got = run(batch, layout, isa=isa)
    assert relative_l2(got.z, want_z) < 2e-7
    for c in range(channels):
        assert relative_l2(got.dx[:, c], want.dx[:, c]) < 2e-6
    np.testing.assert_allclose(got.dweight, want.dweight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gamma_may_cross_zero_from_step_to_step(strategy):
    """Training in which gamma passes through exactly 0 gives the same results as the standard strategy."""
    batch = random_batch((16, 3, 5, 5), "float32", mean=0.0)
    courses = []
    for scheme in ("standard", strategy):
        weight, bias = np.array([0.5, 0.25, -0.5], np.float32), np.array([0.1, -0.2, 0.3], np.float32)
        course = []
        for _ in range(9):
            _, ctx = functional.forward(batch.x.copy(), weight=weight, bias=bias, strategy=scheme)
            step = functional.backward(ctx, batch.dz)
            course.append(np.concatenate([step.dx.ravel(), step.dweight, step.dbias]))
            weight = weight - np.array([0.125, 0.125, -0.125], np.float32)
        courses.append(course)
        assert weight[0] == -0.625
    for ours, standard in zip(*courses, strict=True):
        assert relative_l2(ours, standard) < 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reduce_and_apply_use_the_guarded_channels(layout):
    batch = with_weights("float32", [1, 0, 1e-12, -2, 0.5], [0, 1, 1, -1, 0.1], (4, None, 5, 5))
    want = run(batch, layout)
    x, axis = LAYOUTS[layout](batch.x)
    _, ctx = functional.forward(x, weight=batch.weight, bias=batch.bias, channel_axis=axis)
    dz = lay_out(batch.dz, layout)
    sums = functional.backward_reduce(ctx, dz)
    np.testing.assert_allclose(sums[1], want.dweight, rtol=1e-6)
    dx = functional.backward_apply(ctx, dz, **as_sums(sums), count=100)
    np.testing.assert_allclose(np.moveaxis(dx, axis, 1), want.dx, rtol=1e-5, atol=1e-7)
