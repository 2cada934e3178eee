"""mask=: statistics, z and gradients equal the reference's on a batch of the valid positions alone."""

from functools import cache

import numpy as np
import pytest
from batches import (
    ACTIVATIONS,
    DTYPES,
    ISAS,
    LAYOUTS,
    PARAM,
    SCHEMES,
    lay_out,
    random_batch,
    with_residual,
)
from bounds import (
    EPS,
    SUMMING,
    assert_backward,
    assert_forward,
    eps_of_compute,
    expected,
    without_kinks,
    working_type,
)
from cases import each
from masks import FINITE, MASKS, compact, draw_mask, fill_in, run_masked, valid

from inplace_abn import _core, functional, reference
from inplace_abn.reference import KEEPS

pytestmark = pytest.mark.arithmetic

# Rows and columns, few and many channels, short rows, rows of several tiles, more than one gathered array.
SHAPES = [(3, 5, 70), (5, 3, 17), (2, 129, 33), (4, 3, 5, 7), (90, 5), (300, 1), (2, 40, 90), (1, 2, 17000)]
SMALL = SHAPES[:5]


@cache
def masked_case(shape, kind, dtype, activation, keeps, residual=False):
    """Return a batch with garbage at masked positions, its mask, and the reference's results."""
    batch, mask = random_batch(shape, dtype), draw_mask(kind, shape)
    batch = with_residual(batch) if residual else batch
    alone = without_kinks(compact(batch, mask), dtype, keeps, activation)
    with np.errstate(all="ignore"):
        return fill_in(batch, mask, alone), mask, expected(alone, dtype, keeps, activation)


def check(case, layout="first", **options):
    batch, mask, want = case
    got = run_masked(batch, mask, layout, **options)
    assert_forward(got, want)
    assert_backward(got, want)
    other = fill_in(batch, mask, compact(batch, mask), FINITE)
    for one, same in zip(got, run_masked(other, mask, layout, **options), strict=True):
        assert np.array_equal(one, same)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scheme", range(len(SCHEMES)))
def test_every_scheme(scheme, dtype):
    activation, strategy = SCHEMES[scheme]
    options = {"activation": activation, "activation_param": PARAM[activation], "strategy": strategy}
    for i, kind in enumerate(["padded", "scattered"]):
        turn = scheme + i + ["float32", "float64", "float16", "bfloat16"].index(dtype)
        case = masked_case(SMALL[turn % len(SMALL)], kind, dtype, activation, KEEPS[strategy], turn % 3 == 0)
        layout = list(LAYOUTS)[(scheme + 2 * i) % len(LAYOUTS)]
        check(case, layout, overwrite=bool(turn % 2), isa=ISAS[scheme % len(ISAS)], **options)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@each(layout=LAYOUTS)
def test_every_layout(shape, kind, layout):
    for activation in ("leaky_relu", "silu"):
        case = masked_case(shape, kind, "float32", activation, "z")
        check(case, layout, activation=activation, threads=2)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_instruction_set(dtype, isa):
    for activation, shape in [("leaky_relu", (3, 5, 70)), ("gelu", (5, 3, 17))]:
        for layout in ("first", "last"):
            check(
                masked_case(shape, "scattered", dtype, activation, "z"),
                layout,
                isa=isa,
                activation=activation,
            )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["leaky_relu", "elu", "gelu", "prelu"])
@each(layout=LAYOUTS)
def test_guarded_channels_and_escaped_elements(activation, dtype, layout):
    """Guarded channels, and escaped elements: where elu is flat, and at gelu's minimum."""
    batch = with_residual(random_batch((4, 6, 50), dtype, mean=1, spread=2))
    weight, bias = batch.weight.copy(), batch.bias.copy()
    weight[1], bias[1], weight[4], weight[5] = 0, 0.5, 1e-4, 8
    batch = batch._replace(weight=weight, bias=bias)
    mask = draw_mask("scattered", (4, 6, 50), seed=1)
    alone = without_kinks(compact(batch, mask), dtype, "z", activation)
    want = expected(alone, dtype, "z", activation)
    check(
        (fill_in(batch, mask, alone), mask, want), layout, activation=activation,
        activation_param=PARAM[activation],
    )  # fmt: skip


def test_side_arrays_hold_valid_positions_only():
    shape, mask = (4, 6, 50), draw_mask("scattered", (4, 6, 50))
    batch = random_batch(shape, "float32")
    weight = batch.weight.copy()
    weight[[1, 3]] = 0
    _, ctx = _core.forward(batch.x.copy(), weight=weight, bias=batch.bias, mask=mask, activation="silu")
    saved, count = ctx.saved, int(mask.sum())
    assert saved["guarded_xhat"].size == 2 * count
    assert np.array_equal(bits_of(saved["mask"], mask.size), mask.ravel())
    assert ctx.nbytes == sum(array.nbytes for array in saved.values())


def bits_of(words, count):
    return np.unpackbits(words.view(np.uint8), bitorder="little")[:count].astype(bool)


# ---- the functions, one by one -----------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_masked_reference_equals_the_reference_of_the_valid_positions(activation):
    batch, mask = with_residual(random_batch((3, 4, 9), "float64")), draw_mask("scattered", (3, 4, 9))
    alone = compact(batch, mask)
    batch = fill_in(batch, mask, alone)
    options = {
        "weight": batch.weight, "bias": batch.bias, "activation": activation, "strategy": "standard",
        "slope": batch.slope_of(activation),
    }  # fmt: skip
    z, ctx = reference.forward(batch.x, residual=batch.residual, mask=mask, **options)
    want, want_ctx = reference.forward(alone.x, residual=alone.residual, **options)
    assert np.array_equal(valid(z, mask), want)
    assert np.array_equal(reference.recompute(ctx), z)
    gradients = reference.backward(ctx, batch.dz)
    want = reference.backward(want_ctx, alone.dz)
    for name in ("dx", "dresidual"):
        got = getattr(gradients, name)
        assert np.array_equal(valid(got, mask), getattr(want, name))
        assert not np.moveaxis(got, 1, -1)[~mask].any()
    for name in ("dweight", "dbias", "dslope"):
        assert np.array_equal(getattr(gradients, name), getattr(want, name))


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_statistics(layout, kind):
    for dtype in ("float32", "float64"):
        for shape in SHAPES:
            batch, mask, _ = masked_case(shape, kind, dtype, "identity", "x")
            x, axis = LAYOUTS[layout](batch.x)
            mean, var, count = functional.statistics(x, channel_axis=axis, mask=mask)
            other = fill_in(batch, mask, compact(batch, mask), FINITE)
            other = functional.statistics(lay_out(other.x, layout), channel_axis=axis, mask=mask)
            assert np.array_equal((mean, var), other[:2])
            want_mean, want_var, want_count = reference.statistics(
                batch.x, mask=mask, dtype=working_type(dtype)
            )
            assert count == want_count == mask.sum()
            bound = 2 * SUMMING[dtype] * eps_of_compute(dtype) / 2  # relative to the standard deviation
            assert (
                np.abs(mean - want_mean) <= bound * np.sqrt(want_var) + 2 * EPS["float64"] * np.abs(mean)
            ).all()
            assert (np.abs(var - want_var) <= bound * want_var).all()


def test_running_statistics_take_the_count_of_valid_positions():
    batch, mask, _ = masked_case((3, 5, 70), "padded", "float64", "identity", "x")
    running_mean, running_var = np.zeros(5), np.ones(5)
    functional.forward(batch.x.copy(), running_mean=running_mean, running_var=running_var, mask=mask)
    mean, var, count = reference.statistics(batch.x, mask=mask)
    want = reference.update_running(np.zeros(5), np.ones(5), mean, var, count)
    assert np.allclose((running_mean, running_var), want, rtol=1e-13)


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("strategy", ["standard", "checkpoint_xhat", "pre_activation", "inplace"])
def test_evaluation(strategy, layout):
    batch, mask = random_batch((3, 5, 70), "float32"), draw_mask("scattered", (3, 5, 70))
    alone = compact(batch, mask)
    mean, var = np.linspace(-1, 1, 5, dtype=np.float32), np.linspace(0.5, 2, 5, dtype=np.float32)
    keeps = KEEPS[strategy]
    alone = without_kinks(alone, "float32", keeps, "leaky_relu", statistics=(mean, var))
    want = expected(alone, "float32", keeps, "leaky_relu", statistics=(mean, var))
    check(
        (fill_in(batch, mask, alone), mask, want), layout, strategy=strategy, training=False,
        running_mean=mean, running_var=var,
    )  # fmt: skip


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("strategy", ["checkpoint", "checkpoint_xhat", "pre_activation"])
def test_recompute_returns_z(strategy, layout):
    for kind in MASKS:
        batch, mask, _ = masked_case((5, 3, 17), kind, "float32", "gelu", KEEPS[strategy])
        x, axis = LAYOUTS[layout](batch.x)
        z, ctx = functional.forward(x, mask=mask, activation="gelu", strategy=strategy, channel_axis=axis)
        again = ctx.recompute(out=np.full_like(z, np.nan))
        assert again.tobytes() == z.tobytes()
        if strategy == "checkpoint_xhat":
            assert not np.moveaxis(x, axis, -1)[~mask].any()


@pytest.mark.parametrize("layout", ["first", "last"])
def test_reduce_and_apply_equal_backward(layout):
    batch, mask, _ = masked_case((5, 3, 17), "scattered", "float32", "elu", "z")
    options = {"mask": mask, "activation": "elu", "channel_axis": LAYOUTS[layout](batch.x)[1]}
    dz = lay_out(batch.dz, layout)
    _, ctx = functional.forward(lay_out(batch.x, layout), **options)
    whole = functional.backward(ctx, dz)
    _, ctx = functional.forward(lay_out(batch.x, layout), **options)
    sums = functional.backward_reduce(ctx, dz)
    dx = functional.backward_apply(
        ctx, dz, sum_dy=sums.sum_dy, sum_dy_xhat=sums.sum_dy_xhat, count=int(mask.sum())
    )
    assert dx.tobytes() == whole.dx.tobytes()


def test_two_masked_batches_are_normalized_as_one():
    batch, mask, want = masked_case((4, 3, 5, 7), "scattered", "float64", "leaky_relu", "z")
    halves = [(batch.x[n].copy(), batch.dz[n].copy(), mask[n]) for n in (slice(0, 2), slice(2, 4))]
    means, variances, counts = zip(*(functional.statistics(x, mask=m) for x, _, m in halves), strict=True)
    mean, var, count = functional.merge_statistics(means, variances, counts)
    assert count == mask.sum()
    parameters = {"mean": mean, "var": var, "count": count, "weight": batch.weight, "bias": batch.bias}
    contexts = [functional.normalize(x, mask=m, **parameters)[1] for x, _, m in halves]
    sums = [functional.backward_reduce(ctx, dz) for ctx, (_, dz, _) in zip(contexts, halves, strict=True)]
    sum_dy, sum_dy_xhat = (sum(getattr(s, name) for s in sums) for name in ("sum_dy", "sum_dy_xhat"))
    given = {"sum_dy": sum_dy, "sum_dy_xhat": sum_dy_xhat, "count": count}
    dx = [functional.backward_apply(ctx, h[1], **given) for ctx, h in zip(contexts, halves, strict=True)]
    got = valid(np.concatenate(dx), mask)
    assert (np.abs(got - want.dx) <= 2 * want.dx_error).all()


@pytest.mark.parametrize("layout", ["first", "last"])
def test_the_gradient_of_a_residual_is_added_where_positions_are_valid(layout):
    batch, mask, want = masked_case((5, 3, 17), "scattered", "float32", "leaky_relu", "z", residual=True)
    x, axis = LAYOUTS[layout](batch.x)
    _, ctx = functional.forward(
        x, weight=batch.weight, bias=batch.bias, mask=mask, residual=lay_out(batch.residual, layout),
        channel_axis=axis,
    )  # fmt: skip
    total = np.full_like(x, 3)
    functional.backward(ctx, lay_out(batch.dz, layout), residual_grad=total)
    total = np.moveaxis(total, axis, -1)
    assert (total[~mask] == 3).all()
    assert np.allclose(total[mask], 3 + want.dresidual, atol=1e-6)


def test_sums_beyond_float():
    """Channels whose sums leave the range of float32, next to an ordinary one."""
    batch, mask = random_batch((3, 4, 60), "float32"), draw_mask("scattered", (3, 4, 60))
    scale = np.array([1, 1e25, 1e-30, 1], np.float32)[:, None]
    batch = batch._replace(x=batch.x * scale, dz=batch.dz * np.float32([[1], [1], [1], [1e36]]))
    alone = compact(batch, mask)
    for strategy in ("standard", "inplace"):
        alone = without_kinks(alone, "float32", KEEPS[strategy], "leaky_relu")
        want = expected(alone, "float32", KEEPS[strategy], "leaky_relu")
        check((fill_in(batch, mask, alone), mask, want), strategy=strategy)


# ---- few valid positions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("strategy", ["standard", "checkpoint_xhat", "pre_activation", "inplace"])
def test_no_valid_positions_are_an_empty_batch(strategy, layout):
    x, axis = LAYOUTS[layout](np.full((3, 4, 50), np.nan, np.float32))
    mask, running = np.zeros((3, 50), bool), (np.zeros(4, np.float32), np.ones(4, np.float32))
    weight = np.zeros(4, np.float32)
    options = {"weight": weight, "mask": mask, "channel_axis": axis, "residual": x.copy("K")}
    mean, var, count = functional.statistics(x, mask=mask, channel_axis=axis)
    assert count == 0
    assert not mean.any()
    assert not var.any()
    z, ctx = functional.forward(
        x, running_mean=running[0], running_var=running[1], strategy=strategy, **options
    )
    assert not z.any()
    assert (running[0] == 0).all()
    assert (running[1] == 1).all()
    gradients = functional.backward(ctx, np.full_like(z, np.inf))
    for array in (gradients.dx, gradients.dweight, gradients.dresidual):
        assert not array.any()


def test_one_valid_position():
    mask = np.zeros((3, 50), bool)
    mask[1, 7] = True
    x = np.arange(3 * 4 * 50, dtype=np.float32).reshape(3, 4, 50)
    before = x.copy()
    with pytest.raises(
        ValueError, match=r"mask must leave more than 1 valid position in training, got 1 of 150"
    ):
        functional.forward(x, mask=mask)
    with pytest.raises(ValueError, match="mask"):
        reference.forward(x, mask=mask)
    assert np.array_equal(x, before)
    ones = np.ones(4, np.float32)
    z, _ = functional.forward(x, mask=mask, training=False, running_mean=ones, running_var=ones)
    assert np.allclose(z[1, :, 7], (before[1, :, 7] - 1) / np.sqrt(1 + 1e-5))
    assert np.count_nonzero(z) == 4


# ---- threads, bits, strides, lifetime of the mask ----------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", MASKS)
def test_results_do_not_depend_on_the_number_of_threads(kind, layout):
    for shape, activation in [((6, 10, 90), "gelu"), ((1, 3, 34000), "leaky_relu"), ((3000, 6), "silu")]:
        batch = with_residual(random_batch(shape, "float32"))
        mask = draw_mask(kind, shape)
        batch = fill_in(batch, mask, compact(batch, mask))
        runs = [run_masked(batch, mask, layout, threads=n, activation=activation) for n in (1, 2, 7)]
        for other in runs[1:]:
            for got, want in zip(other, runs[0], strict=True):
                assert np.array_equal(got, want)


@pytest.mark.parametrize("activation", ["leaky_relu", "gelu"])
def test_a_full_mask_gives_the_same_bits_if_the_tiles_are_the_same(activation):
    for layout, shape in [("first", (3, 5, 700)), ("last", (5, 3, 17)), ("last", (3, 200, 50))]:
        batch = random_batch(shape, "float32")
        x, axis = LAYOUTS[layout](batch.x)
        options = {"activation": activation, "channel_axis": axis}
        z, _ = functional.forward(x.copy("K"), mask=np.ones((shape[0], *shape[2:]), bool), **options)
        assert z.tobytes() == functional.forward(x, **options)[0].tobytes()


def test_any_strides_of_a_mask():
    batch, mask, _ = masked_case((4, 3, 5, 7), "scattered", "float32", "leaky_relu", "z")
    want = functional.forward(batch.x.copy(), mask=mask)[0]
    larger = np.zeros((8, 15, 7), bool)
    larger[::2, ::3] = mask
    views = [larger[::2, ::3], np.asfortranarray(mask), mask[::-1, :, ::-1].copy()[::-1, :, ::-1]]
    for view in [*views, (mask.view(np.uint8) * 2).view(bool)]:
        assert functional.forward(batch.x.copy(), mask=view)[0].tobytes() == want.tobytes()
    one = mask[:1]
    repeated = functional.forward(batch.x.copy(), mask=np.broadcast_to(one, mask.shape))[0]
    copied = functional.forward(batch.x.copy(), mask=np.repeat(one, 4, axis=0))[0]
    assert repeated.tobytes() == copied.tobytes()


def test_the_mask_may_change_after_the_forward():
    batch, mask, _ = masked_case((3, 5, 70), "padded", "float32", "leaky_relu", "z")
    want = run_masked(batch, mask)
    changed = mask.copy()
    _, ctx = functional.forward(batch.x.copy(), weight=batch.weight, bias=batch.bias, mask=changed)
    assert changed.flags.writeable
    changed[...] = ~changed
    assert valid(functional.backward(ctx, batch.dz).dx, mask).tobytes() == want.dx.tobytes()
