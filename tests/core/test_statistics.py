"""Means and variances, of whole batches and merged from parts: ill-conditioned data, all sizes."""

import numpy as np
import pytest
from batches import DTYPES, ISAS, LAYOUTS, SHAPES, dtype_of, lay_out, parameter_dtype, random_batch
from bounds import SUMMING, assert_within, eps_of_compute
from cases import each
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from keywords import as_running, as_sums

from inplace_abn import _core, functional, reference

pytestmark = pytest.mark.arithmetic

N, S = 8, 1000
FIRST_SAMPLE = np.arange(N)[:, None, None] == 0
FIRST = FIRST_SAMPLE & (np.arange(S) == 0)
INSIDE = (np.arange(N)[:, None, None] == 3) & (np.arange(S) == 77)


def ordinary(rng, mean=1):
    return rng.normal(mean, 1, (N, 3, S))


# A variance in one pass around a bad centre, or from sums in float32 alone, is wrong for these.
HARD = {
    "mean far above the spread": lambda rng: ordinary(rng, 1e4),
    "tiny": lambda rng: ordinary(rng, 10) * 1e-20,
    "huge": lambda rng: ordinary(rng) * 1e15,
    "first sample zero, then mean 5": lambda rng: np.where(FIRST_SAMPLE, 0, ordinary(rng, 5)),
    "first values zero, then mean 1e4": lambda rng: np.where(np.arange(S) < 64, 0, ordinary(rng, 1e4)),
    "first value far off": lambda rng: np.where(FIRST, 1e8, ordinary(rng)),
    "one outlier of 1e30": lambda rng: np.where(INSIDE, 1e30, ordinary(rng)),
    "outlier of 1e30 first": lambda rng: np.where(FIRST, 1e30, ordinary(rng)),
    "slow drift": lambda rng: np.linspace(-1e3, 1e3, N * 3 * S).reshape(N, 3, S) + ordinary(rng),
    "alternating signs": lambda rng: np.where(np.arange(S) % 2, 1e3, -1e3) + ordinary(rng),
    "constant": lambda rng: np.full((N, 3, S), 0.1),
}


def assert_statistics(got, x, dtype, units, merged=False):
    """Assert errors: of the mean, relative to the standard deviation; of the variance, to itself.

    In addition, a float64 mean has a relative error of eps, and so have the differences of merged means.
    """
    work = np.longdouble
    mean, var, count = reference.statistics(x, dtype=work)
    u, double = eps_of_compute(dtype) / 2, np.finfo(np.float64).eps
    assert got[2] == count
    assert got[0].dtype == got[1].dtype == np.float64
    spread = np.sqrt(var)
    assert_within(got[0], mean, units * u * spread + 4 * double * np.abs(mean), "mean")
    moved = 4 * double * np.abs(mean)
    assert_within(got[1], var, units * u * var + moved**2 + merged * moved * spread, "var")


@pytest.mark.parametrize("data", HARD)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("isa", ISAS)
@each(layout=LAYOUTS)
def test_hard_data(isa, layout, dtype, data):
    x = HARD[data](np.random.default_rng(1)).astype(dtype)
    array, axis = LAYOUTS[layout](x)
    # The centre of the sums may be a few standard deviations off, and one huge square absorbs digits of those
    # that come after it: 160 units are 1e-5 in float32.
    assert_statistics(_core.statistics(array, channel_axis=axis, isa=isa), x, dtype, units=160)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("isa", ISAS)
@each(positions=[(), (1,), (2,), (5,)], layout=LAYOUTS)
def test_images_of_few_positions(isa, layout, dtype, positions):
    """The first image, 2 std off, is a bad centre. Short rows must not be added up one after the other."""
    for seed in range(5):
        x = np.random.default_rng(seed).normal(size=(256, 8, *positions)).astype(dtype)
        x[0] = 1.9
        array, axis = LAYOUTS[layout](x)
        # float64 images are added in float64: there is no wider type.
        units = 32 if dtype == "float64" else 16
        assert_statistics(_core.statistics(array, channel_axis=axis, isa=isa), x, dtype, units)


@pytest.mark.parametrize("data", HARD)
@pytest.mark.parametrize("layout", ["first", "last"])
def test_forward_has_the_same_statistics(layout, data):
    """Read from running statistics with momentum 1; in float64, where these keep all digits."""
    x = HARD[data](np.random.default_rng(1))
    mean, var, count = functional.statistics(x)
    running = np.zeros(3), np.zeros(3)
    array, axis = LAYOUTS[layout](x)
    functional.forward(array, **as_running(running), momentum=1, channel_axis=axis)
    np.testing.assert_allclose(running[0], mean, rtol=1e-13, atol=1e-13 * np.sqrt(var).max())
    np.testing.assert_allclose(running[1], var * count / (count - 1), rtol=1e-13, atol=1e-25)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["first", "last"])
@each(shape=SHAPES)
def test_every_size(layout, shape, dtype):
    x = random_batch(shape, dtype).x
    array, axis = LAYOUTS[layout](x)
    got = functional.statistics(array, channel_axis=axis)
    assert_statistics(
        got, x, dtype, units=2 * SUMMING[dtype]
    )  # the relative error of a square is twice as large


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_statistics_do_not_write_to_x_and_accept_read_only_x(layout, dtype):
    x, axis = LAYOUTS[layout](random_batch((3, 17, 5), dtype).x)
    before = x.copy()
    x.flags.writeable = False
    functional.statistics(x, channel_axis=axis)
    assert np.array_equal(x, before)


def test_one_value_per_channel_has_statistics():
    mean, var, count = functional.statistics(np.array([[3.0, -1.0]], np.float32))
    assert mean.tolist() == [3, -1]
    assert var.tolist() == [0, 0]
    assert count == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nan_and_infinity_stay_in_their_channel(layout, bad):
    x = random_batch((3, 5, 7), "float32").x.copy()
    x[2, 3, 4] = bad
    array, axis = LAYOUTS[layout](x)
    mean, var, _ = functional.statistics(array, channel_axis=axis)
    want, _, _ = reference.statistics(x)
    others = [0, 1, 2, 4]
    assert np.isfinite(mean[others]).all()
    assert np.isfinite(var[others]).all()
    assert np.array_equal(mean[3], want[3], equal_nan=True)
    assert np.isnan(var[3])


# ---- merging -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [(1, 2), (4,), (0, 4), (3, 3), (1, 2, 3, 4, 5, 6, 7)], ids=str)
@pytest.mark.parametrize("data", ["mean far above the spread", "first sample zero, then mean 5", "huge"])
def test_merged_statistics_equal_those_of_the_whole(data, cuts):
    """Unequal counts, and parts without any values."""
    x = HARD[data](np.random.default_rng(2))
    parts = [functional.statistics(part) for part in np.split(x, cuts)]
    got = functional.merge_statistics(*zip(*parts, strict=True))
    assert_statistics(got, x, "float64", units=160, merged=True)


@given(
    values=arrays(
        np.float64, st.tuples(st.integers(2, 30), st.integers(1, 3)), elements=st.floats(-1e6, 1e6)
    ),
    cuts=st.lists(st.integers(1, 29), max_size=4),
)
def test_merging_any_parts(values, cuts):
    parts = [part for part in np.split(values, sorted(cuts)) if len(part)]
    got = functional.merge_statistics(*zip(*(functional.statistics(part) for part in parts), strict=True))
    want = reference.statistics(values, dtype=np.longdouble)
    size = np.abs(values).max(axis=0) + 1e-300
    assert got[2] == want[2]
    assert_within(got[0], want[0], 1e-14 * size, "mean")
    assert_within(got[1], want[1], 1e-13 * want[1] + (1e-13 * size) ** 2 + 1e-300, "var")


def test_merging_one_part_changes_nothing():
    mean, var, count = functional.statistics(random_batch((3, 5, 7), "float32").x)
    merged = functional.merge_statistics([mean], [var], [count])
    assert np.array_equal(merged[0], mean)
    assert np.array_equal(merged[1], var)
    assert merged[2] == count


# ---- synchronised batch norm over three simulated ranks ----------------------------------------------------


@pytest.mark.parametrize(
    "strategy", ["standard", "checkpoint_xhat", "pre_activation", "inplace_1", "inplace_2"]
)
@pytest.mark.parametrize("activation", ["leaky_relu", "elu"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@each(layout=LAYOUTS)
def test_three_ranks_equal_one_batch(dtype, layout, activation, strategy):
    """statistics, merge, normalize, backward_reduce, sum, backward_apply on parts of 1, 2 and 5 samples."""
    batch = random_batch((8, 17, 5, 3), dtype)
    options = {"activation": activation, "strategy": strategy, "momentum": 0.3}
    options["activation_param"] = 0.5
    running = [(np.zeros_like(batch.weight), np.ones_like(batch.weight)) for _ in range(4)]
    whole, axis = LAYOUTS[layout](batch.x)
    options["channel_axis"] = axis
    want_z, ctx = functional.forward(
        whole, weight=batch.weight, bias=batch.bias, **as_running(running[3]), **options
    )
    want_z = want_z.copy()
    want = functional.backward(ctx, lay_out(batch.dz, layout))

    cuts = [slice(0, 1), slice(1, 3), slice(3, 8)]
    ranks = [(lay_out(batch.x[cut], layout), lay_out(batch.dz[cut], layout)) for cut in cuts]
    mean, var, count = functional.merge_statistics(
        *zip(*(functional.statistics(x, channel_axis=axis) for x, _ in ranks), strict=True)
    )
    assert count == 8 * 5 * 3
    forwards = [
        functional.normalize(
            x,
            mean=mean,
            var=var,
            count=count,
            weight=batch.weight,
            bias=batch.bias,
            **as_running(r),
            **options,
        )
        for (x, _), r in zip(ranks, running[:3], strict=True)
    ]
    rtol = 64 * eps_of_compute(dtype)
    np.testing.assert_allclose(np.concatenate([z for z, _ in forwards]), want_z, rtol=rtol, atol=rtol)
    sums = [functional.backward_reduce(c, dz) for (_, c), (_, dz) in zip(forwards, ranks, strict=True)]
    sum_dy, sum_dy_xhat = (np.sum(s, axis=0) for s in zip(*sums, strict=True))
    np.testing.assert_allclose(sum_dy, want.dbias, rtol=rtol, atol=10 * rtol)
    np.testing.assert_allclose(sum_dy_xhat, want.dweight, rtol=rtol, atol=10 * rtol)
    dx = [
        functional.backward_apply(c, dz, sum_dy=sum_dy, sum_dy_xhat=sum_dy_xhat, count=count, overwrite=True)
        for (_, c), (_, dz) in zip(forwards, ranks, strict=True)
    ]
    np.testing.assert_allclose(np.concatenate(dx), want.dx, rtol=rtol, atol=rtol)
    for rank in running[:3]:
        np.testing.assert_allclose(rank, running[3], rtol=rtol)


def test_a_rank_without_values_takes_part():
    batch = random_batch((4, 3, 5), "float32")
    mean, var, count = functional.merge_statistics(
        *zip(functional.statistics(batch.x), functional.statistics(batch.x[:0]), strict=True)
    )
    assert count == 20
    assert np.isfinite(mean).all()
    empty = np.zeros((0, 3, 5), np.float32)
    z, ctx = functional.normalize(
        empty, mean=mean, var=var, count=count, weight=batch.weight, bias=batch.bias
    )
    sums = functional.backward_reduce(ctx, np.zeros_like(empty))
    assert not np.any(sums)
    assert functional.backward_apply(ctx, np.zeros_like(empty), **as_sums(sums), count=count).shape == z.shape


@pytest.mark.parametrize("dtype", DTYPES)
def test_normalize_writes_unbiased_running_statistics_of_the_whole(dtype):
    x = random_batch((4, 3, 5), dtype).x.copy()
    running = [np.zeros(3, parameter_dtype(dtype)) for _ in range(2)]
    functional.normalize(
        x, mean=np.full(3, 2.0), var=np.full(3, 3.0), count=4, **as_running(running), momentum=1
    )
    assert running[0].tolist() == [2] * 3
    assert running[1].tolist() == [4] * 3
    assert x.dtype == dtype_of(dtype)
