"""prelu: a trainable slope of any sign for each channel, or one for all."""

import numpy as np
import pytest
from batches import DTYPES, ISAS, LAYOUTS, STRATEGIES, forward, lay_out, parameter_dtype, random_batch, run
from bounds import assert_backward, assert_forward, expected, without_kinks
from cases import each
from finite_differences import numerical_gradient

from inplace_abn import functional, reference

pytestmark = pytest.mark.arithmetic

INPLACE = ["inplace_1", "inplace_2"]
# Both signs, zero, so small that a negative y underflows, and greater than 1.
SLOPES = 0.25, -0.5, 0.0, 1e-30, -1e-30, 3.0, 1e-3, -2.0


def batch_of(shape, dtype, slope=SLOPES, seed=0):
    """Return a batch with one of the slopes for each channel."""
    batch = random_batch(shape, dtype, seed)
    return batch._replace(slope=np.resize(np.array(slope, batch.weight.dtype), shape[1]))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@each(layout=LAYOUTS, strategy=STRATEGIES)
def test_slopes_of_all_signs_and_sizes(strategy, dtype, layout, isa):
    keeps = reference.KEEPS[strategy]
    batch = without_kinks(batch_of((4, 19, 5, 7), dtype), dtype, keeps, "prelu")
    want = expected(batch, dtype, keeps, "prelu")
    got = run(batch, layout, isa=isa, strategy=strategy, activation="prelu")
    assert got.dslope.dtype == parameter_dtype(dtype)
    assert_forward(got, want)
    assert_backward(got, want)


@pytest.mark.parametrize("residual", [False, True])
@each(shape=[(5, 3), (4, 65), (2, 5, 49), (3, 1, 7, 7), (2, 129, 3), (1, 3, 2049)], layout=["first", "last"])
def test_odd_sizes(residual, layout, shape):
    batch = batch_of(shape, "float32")
    if residual:
        batch = batch._replace(residual=np.flip(batch.dz).copy())
    batch = without_kinks(batch, "float32", "z", "prelu")
    want = expected(batch, "float32", "z", "prelu")
    for isa in ISAS:
        got = run(batch, layout, isa=isa, activation="prelu")
        assert_forward(got, want)
        assert_backward(got, want)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_dslope_equals_finite_differences(strategy, layout, shared):
    """The gradient of one slope for all channels, of shape (1,), is the sum over the channels."""
    batch = batch_of((3, 6, 2, 3), "float64", seed=5)
    slope = np.array([0.25]) if shared else np.array([0.25, -0.5, 0.75, 2, -1, 0.125])
    dz = lay_out(batch.dz, layout)

    def both():
        return forward(batch._replace(slope=slope), layout, strategy=strategy, activation="prelu")

    got = functional.backward(both()[1], dz).dslope
    want = numerical_gradient(lambda: (both()[0] * dz).sum(), slope)
    assert got.shape == slope.shape
    np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("slope", [0.25, -0.5, 0.0])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_shared_slope_equals_equal_slopes(strategy, slope):
    batch = random_batch((4, 9, 5, 7), "float32")
    one, each = (
        run(batch._replace(slope=np.full(count, slope, np.float32)), strategy=strategy, activation="prelu")
        for count in (1, 9)
    )
    for name in ("z", "dx", "dweight", "dbias"):
        assert np.array_equal(getattr(one, name), getattr(each, name)), name
    np.testing.assert_allclose(one.dslope, each.dslope.astype(float).sum(keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_equal_slopes_equal_leaky_relu(strategy, layout):
    batch = random_batch((4, 9, 5, 7), "float32")
    prelu = run(batch_of((4, 9, 5, 7), "float32", [0.01]), layout, strategy=strategy, activation="prelu")
    leaky = run(batch, layout, strategy=strategy, activation="leaky_relu", activation_param=0.01)
    for name in ("z", "dx", "dweight", "dbias"):
        one, other = getattr(prelu, name), getattr(leaky, name)
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("strategy", INPLACE)
def test_channels_whose_slope_has_no_inverse_are_guarded(strategy, layout, dtype):
    """xhat is kept for these channels only, in their order."""
    slope = [0.25, -0.5, 0.5, 0.0, 2.0, -1.0]
    batch = batch_of((4, 6, 5, 7), dtype, slope)
    batch = batch._replace(bias=np.zeros_like(batch.bias))
    _, ctx = forward(batch, layout, strategy=strategy, activation="prelu")
    saved = dict(ctx.saved)
    guarded = [c for c in range(6) if slope[c] <= 0]
    assert list(saved) == ["z", "guarded_xhat"]
    assert saved["guarded_xhat"].nbytes == ctx.nbytes - saved["z"].nbytes == batch.x[:, guarded].nbytes
    xhat = reference.forward(batch.x, activation="identity")[0][:, guarded]
    xhat = np.moveaxis(xhat, 1, -1) if "last" in layout else np.moveaxis(xhat, 1, 0)
    np.testing.assert_allclose(
        saved["guarded_xhat"].ravel().astype(float), xhat.ravel(), rtol=0.01, atol=0.01
    )


@pytest.mark.parametrize("strategy", ["standard", "checkpoint", "checkpoint_xhat", "pre_activation"])
def test_nothing_is_guarded_where_x_or_xhat_is_kept(strategy):
    _, ctx = forward(batch_of((4, 9, 5, 7), "float32"), strategy=strategy, activation="prelu")
    assert list(ctx.saved) == [reference.KEEPS[strategy]]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("shape", [(3, 67, 17, 19), (70001, 3), (1, 3, 300, 301)], ids=str)
def test_results_are_bitwise_equal_for_every_number_of_threads(shape, layout, strategy):
    batch = batch_of(shape, "float32")
    one, two, seven = (
        [
            a.tobytes()
            for a in run(batch, layout, strategy=strategy, activation="prelu", threads=threads)
            if a is not None
        ]
        for threads in (1, 2, 7)
    )
    assert one == two == seven


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("training", [True, False])
def test_dslope_of_backward_reduce_equals_that_of_backward(training, layout):
    batch = batch_of((3, 9, 5, 7), "float64")
    running = {} if training else {"running_mean": batch.bias + 1, "running_var": batch.weight**2}
    options = {"activation": "prelu", "training": training, **running}
    dz = lay_out(batch.dz, layout)
    sums = functional.backward_reduce(forward(batch, layout, **options)[1], dz)
    got = functional.backward(forward(batch, layout, **options)[1], dz)
    np.testing.assert_allclose(sums.dslope, got.dslope, rtol=1e-13)
    _, ctx = reference.forward(
        batch.x, weight=batch.weight, bias=batch.bias, activation="prelu", slope=batch.slope,
        strategy="standard",
        training=training, **running,
    )  # fmt: skip
    np.testing.assert_allclose(got.dslope, reference.backward(ctx, batch.dz).dslope, rtol=1e-11, atol=1e-12)
