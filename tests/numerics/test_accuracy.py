"""The accuracy stated in docs/functions.md, for the shapes of benchmarks.accuracy with fewer samples."""

import numpy as np
import pytest
from batches import ISAS, LAYOUTS, Batch, lay_out, relative_l2
from bounds import without_kinks

from inplace_abn import _core, functional, reference

SHAPES = [
    (2, 64, 112, 112), (2, 256, 56, 56), (4, 512, 28, 28), (4, 1024, 14, 14), (8, 2048, 7, 7),
    (1, 3, 1024, 1024), (2, 8, 32, 64, 64),
]  # fmt: skip
BOTH = [(shape, layout) for shape in SHAPES for layout in ("first", "last")]
# Relative L2 against float64.
MOST = {"z": 2e-7, "dx": 4e-7, "dweight": 1e-6}


def normal_batch(shape, mean=0.0, dtype=np.float32, weight=None, bias=None):
    """Return a batch that is fast to draw; no y is so near 0 that rounding decides its sign."""
    rng = np.random.default_rng(7)
    channels = shape[1]
    x, dz = rng.standard_normal((2, *shape), np.float32)
    x += np.float32(mean)
    if weight is None:
        weight = rng.uniform(0.5, 1.5, channels)
        bias = rng.normal(0, 0.5, channels)
    batch = Batch(x.astype(dtype), dz.astype(dtype), weight.astype(np.float32), bias.astype(np.float32))
    return without_kinks(batch, np.dtype(dtype).name)


def both(batch, layout, strategy, activation="leaky_relu"):
    """(compiled, reference) results of forward and backward."""
    options = {"activation": activation, "activation_param": 0.01 if activation == "leaky_relu" else 1.0}
    want_z, want_ctx = reference.forward(
        batch.x, weight=batch.weight, bias=batch.bias, strategy="standard", **options
    )
    want = reference.backward(want_ctx, batch.dz)
    x, axis = LAYOUTS[layout](batch.x)
    z, ctx = functional.forward(
        x, weight=batch.weight, bias=batch.bias, strategy=strategy, channel_axis=axis, **options
    )
    z = np.moveaxis(z, axis, 1).copy()
    dz = lay_out(batch.dz, layout)
    got = functional.backward(ctx, dz, overwrite=True)
    return {
        "z": (z, want_z),
        "dx": (np.moveaxis(got.dx, axis, 1), want.dx),
        "dweight": (got.dweight, want.dweight),
    }


@pytest.mark.parametrize(("shape", "layout"), BOTH, ids=str)
def test_float32(shape, layout):
    for name, pair in both(normal_batch(shape), layout, "inplace").items():
        assert relative_l2(*pair) <= MOST[name], name


@pytest.mark.parametrize("strategy", ["standard", "checkpoint_xhat", "pre_activation", "inplace_1"])
@pytest.mark.parametrize(("shape", "layout"), BOTH[4:8], ids=str)
def test_float32_with_other_strategies(shape, layout, strategy):
    for name, pair in both(normal_batch(shape), layout, strategy).items():
        assert relative_l2(*pair) <= MOST[name], name


@pytest.mark.parametrize("strategy", ["standard", "inplace"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_mean_far_above_the_spread(layout, strategy):
    """Mean 1e4, spread 1 (PyTorch's one-pass sums lose all digits): z off by 2e-3 at most, var by 1e-5."""
    batch = normal_batch((8, 64, 28, 28), mean=1e4)
    z, want_z = both(batch, layout, strategy)["z"]
    assert np.abs(z - want_z).max() < 2e-3
    x, axis = LAYOUTS[layout](batch.x)
    mean, var, _ = functional.statistics(x, channel_axis=axis)
    want_mean, want_var, _ = reference.statistics(batch.x)
    assert np.abs(var / want_var - 1).max() < 1e-5
    assert np.abs(mean - want_mean).max() < 1e-6


@pytest.mark.parametrize("activation", ["leaky_relu", "elu"])
@pytest.mark.parametrize("strategy", ["inplace_1", "inplace_2"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_of_all_sizes(layout, strategy, activation):
    """gamma over +-1e-6 to 10 with zeros, beta up to 10."""
    rng = np.random.default_rng(8)
    weight = np.logspace(-6, 1, 64) * rng.choice([-1, 1], 64)
    weight[rng.choice(64, 8, replace=False)] = 0
    batch = normal_batch((8, 64, 14, 14), weight=weight, bias=rng.uniform(-10, 10, 64))
    results = both(batch, layout, strategy, activation)
    assert relative_l2(*results["dx"]) <= 1e-5
    assert relative_l2(*results["dweight"]) <= 1e-5


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", ["first", "last"])
def test_errors_do_not_grow_with_the_batch(layout, isa):
    """A sum of 4 million equal terms in float32 would have an error of 1e-3 and more."""
    x = np.full((4, 1, 1024, 1024), 0.1, np.float32)
    x[0, 0, :512] = 0.3
    array, axis = LAYOUTS[layout](x)
    mean, var, count = _core.statistics(array, channel_axis=axis, isa=isa)
    want_mean, want_var, _ = reference.statistics(x)
    assert count == 1 << 22
    assert abs(mean[0] / want_mean[0] - 1) < 1e-6
    assert abs(var[0] / want_var[0] - 1) < 2e-6


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("positions", [1, 2, 3, 5])
def test_errors_do_not_grow_with_the_number_of_tiny_rows(positions, isa):
    """Rows shorter than a vector: 16 thousand of them, summed in one lane, had an error of 1e-6."""
    rows = np.random.default_rng(9).uniform(1, 2, (200000, 4, positions)).astype(np.float32)
    rows[0] = 0.5  # the centre of the sums is far from the mean
    larger = np.empty((200000, 8, positions), np.float32)
    larger[:, ::2] = rows
    mean, var, _ = _core.statistics(larger[:, ::2], isa=isa)
    want_mean, want_var, _ = reference.statistics(rows)
    assert np.abs(mean / want_mean - 1).max() < 1e-8
    assert np.abs(var / want_var - 1).max() < 1e-7
