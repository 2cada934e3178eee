"""Layers as objects: calls, modes, parameters, names, repr, copies, and user-defined layers."""

import copy
import doctest
import importlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from batches import dtype_of, without_ml_dtypes
from networks import STRATEGIES, abn, assert_close, blocks, chain, conv, normal, run

from inplace_abn import layers, models
from inplace_abn.layers import (
    ABN,
    Activation,
    CrossEntropy,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    GroupNorm,
    InPlaceABN,
    Layer,
    Linear,
    MaxPool2d,
    MSELoss,
    Parameter,
    Sequential,
    Upsample,
    no_grad,
)

pytestmark = pytest.mark.essential

FILES = sorted(path.stem for path in Path(layers.__file__).parent.glob("[a-z]*.py"))


MODELS = sorted(path.stem for path in Path(models.__file__).parent.glob("[a-z]*.py"))


@pytest.mark.parametrize(
    "name",
    ["layers", "models", *(f"layers.{file}" for file in FILES), *(f"models.{file}" for file in MODELS)],
)
def test_docstring_examples(name):
    module = importlib.import_module(f"inplace_abn.{name}")
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.testmod(module, optionflags=flags).failed == 0


# ---- strategies --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", blocks("standard"))
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_residual_blocks_give_the_same_with_all_strategies(strategy, kind, training):
    x, dz = normal((3, 4, 5, 6)), normal((3, 4, 5, 6), 1)
    want = run(blocks("standard")[kind].train(training), x, dz)
    assert_close(run(blocks(strategy)[kind].train(training), x, dz), want)
    assert_close(run(blocks(strategy)[kind].train(training), x, dz, overwrite=True), want)


@pytest.mark.parametrize("kind", blocks("standard"))
def test_gradients_of_residual_blocks_against_finite_differences(kind):
    block, x, dz = blocks("inplace")[kind].train(), normal((2, 4, 2, 3)), normal((2, 4, 2, 3), 1)
    dx = run(block, x, dz)["dx"]
    for index in np.ndindex(2, 2, 2, 3):
        ends = []
        for step in (1e-6, -1e-6):
            moved = x.copy()
            moved[index] += step
            with no_grad():
                ends.append((block(moved) * dz).sum())
        assert dx[index] == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-6)


# ---- backward ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_dz_is_not_changed_unless_overwrite_is_true(strategy):
    for layer in (*blocks(strategy).values(), chain(strategy), Sequential(abn(strategy=strategy), Flatten())):
        z = layer(normal((2, 4, 3, 3)))
        dz = normal(z.shape, 1)
        before = dz.copy()
        layer.backward(dz)
        assert np.array_equal(dz, before)


def test_overwrite_writes_into_dz():
    layer = abn(strategy="inplace")
    dz = normal((2, 4, 3))
    layer(normal((2, 4, 3)))
    assert layer.backward(dz, overwrite=True) is dz


def test_containers_let_layers_overwrite_intermediate_gradients():
    seen = []

    class Spy(Layer):
        def forward(self, ctx, x):
            return x * 2

        def gradients(self, ctx, dz, *, overwrite=False):
            seen.append(overwrite)
            return dz * 2

    net = Sequential(Spy(), Spy(), Flatten(), Spy())
    net(normal((2, 3)))
    net.backward(normal((2, 3)))
    assert seen == [False, True, True]


def test_a_gradient_that_a_layer_returns_unchanged_is_not_overwritten():
    """Dropout in evaluation returns dz itself: the layer before must not overwrite it."""
    net = Sequential(abn(strategy="inplace"), Dropout()).eval()
    net(normal((2, 4, 3)))
    dz = normal((2, 4, 3), 1)
    before = dz.copy()
    net.backward(dz)
    assert np.array_equal(dz, before)


def test_gradients_of_parameters_accumulate():
    layer, x, dz = Linear(3, 2, dtype=np.float64, rng=0), normal((4, 3)), normal((4, 2), 1)
    once = run(layer, x, dz)
    layer(x)
    layer.backward(dz)
    np.testing.assert_allclose(layer.weight.grad, 2 * once["weight"])
    layer.zero_grad()
    assert layer.weight.grad is None


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_several_calls_before_the_backwards(strategy):
    layer, batches = chain(strategy, 2), [normal((2, 4, 3, 3), seed) for seed in range(3)]
    want = [run(layer, x, x) for x in batches]
    for x in batches:
        layer(x.copy())
    for x, expected in zip(reversed(batches), reversed(want), strict=True):
        np.testing.assert_allclose(layer.backward(x.copy()), expected["dx"], atol=1e-12)


def test_one_layer_used_twice_in_a_network():
    shared = Linear(3, 3, dtype=np.float64, rng=0)
    net, x, dz = Sequential(shared, shared), normal((4, 3)), normal((4, 3), 1)
    assert len(net.parameters()) == 2
    result = run(net, x, dz)
    middle = x @ shared.weight.data.T + shared.bias.data
    want = dz.T @ middle + (dz @ shared.weight.data).T @ x
    np.testing.assert_allclose(result["0.weight"], want)


# ---- batch normalization -----------------------------------------------------------------------------------


def test_momentum_none_averages_over_all_batches():
    layer, batches = ABN(3, momentum=None, dtype=np.float64), [normal((4, 3, 5), seed) for seed in range(5)]
    for x in batches:
        with no_grad():
            layer(x.copy())
    assert layer.num_batches_tracked == 5
    np.testing.assert_allclose(layer.running_mean, np.mean([x.mean((0, 2)) for x in batches], 0))
    np.testing.assert_allclose(layer.running_var, np.mean([x.var((0, 2), ddof=1) for x in batches], 0))


def test_evaluation_uses_the_running_statistics_and_does_not_change_them():
    layer = InPlaceABN(3, activation="identity", affine=False, dtype=np.float64)
    layer.running_mean[...], layer.running_var[...] = 2, 4
    x = normal((1, 3, 1))
    want = (x - 2) / np.sqrt(4 + 1e-5)
    np.testing.assert_allclose(layer.eval()(x), want)
    assert layer.running_mean.tolist() == [2, 2, 2]
    assert layer.num_batches_tracked == 0


def test_without_running_statistics_evaluation_uses_the_batch_statistics():
    layer, x = InPlaceABN(3, track_running_stats=False, dtype=np.float64), normal((4, 3, 5))
    assert layer.running_mean is layer.num_batches_tracked is None
    assert np.array_equal(layer.eval()(x.copy()), layer.train()(x.copy()))


def test_a_refused_batch_does_not_change_num_batches_tracked():
    layer = InPlaceABN(3, momentum=None)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(np.ones((1, 3), np.float32))
    assert layer.num_batches_tracked == 0


def test_without_weight_and_bias():
    layer = InPlaceABN(3, affine=False)
    assert layer.parameters() == []
    layer(normal((4, 3), dtype=np.float32))
    assert layer.backward(np.ones((4, 3), np.float32)).shape == (4, 3)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_strategy_may_be_changed(strategy):
    layer, x, dz = abn(), normal((2, 4, 3)), normal((2, 4, 3), 1)
    want = run(layer, x, dz)
    layer.strategy = strategy
    assert_close(run(layer, x, dz), want)


def test_channels_last():
    first, last = abn(strategy="inplace"), abn(strategy="inplace", channel_axis=-1)
    x, dz = normal((2, 4, 3, 5)), normal((2, 4, 3, 5), 1)
    want = run(first, x, dz)
    got = run(last, *(np.moveaxis(a, 1, -1).copy() for a in (x, dz)))
    np.testing.assert_allclose(np.moveaxis(got["z"], -1, 1), want["z"])
    np.testing.assert_allclose(np.moveaxis(got["dx"], -1, 1), want["dx"])


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("dtype", ["float16", pytest.param("bfloat16", marks=without_ml_dtypes)])
def test_half_types(dtype, strategy):
    x, dz = (normal((4, 3, 5, 5), seed).astype(dtype_of(dtype)) for seed in (0, 1))
    net = Sequential(ABN(3, strategy=strategy), Activation())
    got, want = run(net, x, dz), run(net, x.astype(np.float32), dz.astype(np.float32))
    assert got["z"].dtype == got["dx"].dtype == x.dtype
    for name, result in got.items():
        atol = 0.03 * np.abs(want[name]).max()
        np.testing.assert_allclose(result.astype(np.float32), want[name], rtol=0, atol=atol, err_msg=name)


# ---- modes, names, parameters ------------------------------------------------------------------------------


def test_train_and_eval_reach_all_layers_and_return_the_layer():
    net = models.residual_network(1, 3, (4,), 1)
    assert net.eval() is net
    assert not any(layer.training for _, layer in net.named_layers())
    assert net.train() is net
    assert all(layer.training for _, layer in net.named_layers())


def test_names_are_paths():
    net = models.residual_network(1, 3, (4, 8), 1)
    assert net.name == ""
    names = [parameter.name for parameter in net.parameters()]
    assert names == [name for name, _ in net.named_parameters()]
    assert "stage2.0.branch.conv2.weight" in names
    assert net.stage1[0].branch.abn1.label == "stage1.0.branch.abn1 (ABN)"


def test_names_change_when_a_layer_gets_a_parent():
    inner = Sequential(conv())
    assert inner[0].weight.name == "0.weight"
    outer = Sequential(Flatten(), inner)
    assert outer[1][0].weight.name == "1.0.weight"


def test_sequential_is_a_sequence():
    net = Sequential(Flatten(), Linear(4, 3))
    assert len(net) == 2
    assert net[-1] is list(net)[1]
    assert isinstance(net[1:], Sequential)
    assert net.append(Dropout(), "drop").drop is net[2]
    with pytest.raises(ValueError, match="name of a layer: 'drop' is"):
        net.append(Dropout(), "drop")
    with pytest.raises(TypeError, match=r"layer '0' must be a Layer, got <class"):
        Sequential(Flatten)


# ---- repr --------------------------------------------------------------------------------------------------


def test_repr_is_like_pytorchs():
    net = Sequential({"conv": conv(3, 8, stride=2, bias=False), "abn": InPlaceABN(8), "pool": MaxPool2d(2)})
    assert repr(net).splitlines() == [
        "Sequential(",
        "  (conv): Conv2d(3, 8, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), bias=False)",
        "  (abn): InPlaceABN(8, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True, "
        "activation='leaky_relu', activation_param=0.01)",
        "  (pool): MaxPool2d(kernel_size=2, stride=2, padding=0)",
        ")",
    ]
    assert repr(ABN(2, strategy="checkpoint")).endswith("activation_param=0.01, strategy='checkpoint')")


def test_every_layer_has_a_repr():
    for layer, text in [
        (Linear(3, 2, bias=False), "Linear(in_features=3, out_features=2, bias=False)"),
        (Dropout(0.2), "Dropout(p=0.2)"),
        (Flatten(), "Flatten()"),
        (GlobalAvgPool2d(), "GlobalAvgPool2d()"),
        (Upsample(scale_factor=2), "Upsample(scale_factor=2, mode='bilinear')"),
        (Upsample(4, mode="nearest"), "Upsample(size=4, mode='nearest')"),
        (GroupNorm(2, 4), "GroupNorm(2, 4, eps=1e-05, affine=True)"),
        (CrossEntropy(), "CrossEntropy(ignore_index=-100)"),
        (
            CrossEntropy(weight=[1.0, 2.0], label_smoothing=0.1),
            "CrossEntropy(ignore_index=-100, weight of shape (2,), label_smoothing=0.1)",
        ),
        (MSELoss(), "MSELoss()"),
        (Activation("relu"), "Activation('relu', activation_param=0.01, inplace=False)"),
    ]:
        assert repr(layer) == text


def test_html_lists_layers_and_parameters():
    html = Sequential({"<a>": Linear(3, 2)})._repr_html_()
    assert "&lt;a&gt;" in html
    assert "<code>Linear(in_features=3, out_features=2, bias=True)</code>" in html
    assert "<b>8</b>" in html


# ---- copies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy]
    + [lambda net, p=p: pickle.loads(pickle.dumps(net, p)) for p in range(pickle.HIGHEST_PROTOCOL + 1)],
)
def test_copies_have_names_and_no_contexts(duplicate):
    net = models.residual_network(1, 3, (4,), 1, dtype=np.float64)
    x = normal((2, 1, 4, 4))
    z = net(x)
    other = duplicate(net)
    assert [p.name for p in other.parameters()] == [p.name for p in net.parameters()]
    message = "this layer is a copy and was not called itself; call it before its backward"
    with pytest.raises(RuntimeError, match=message):
        other.backward(np.ones_like(z))
    other.stem.weight.data += 1
    assert not np.array_equal(other.stem.weight.data, net.stem.weight.data)
    net.backward(np.ones_like(z))
    with pytest.raises(RuntimeError, match=message):  # the original's backward has run, its own has not
        duplicate(net).backward(np.ones_like(z))


def test_saved_arrays_are_not_copied_with_a_layer():
    """Copies used to unlock arrays of the original."""
    x, ctx = np.ones(3), layers.LayerContext("op")
    ctx.save_for_backward(input=x)
    for refuse in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"^op: a LayerContext cannot be pickled or copied"):
            refuse(ctx)
    assert not x.flags.writeable
    ctx.release()
    assert x.flags.writeable


# ---- user-defined layers -----------------------------------------------------------------------------------


class TwoWays(Layer):
    """A layer that calls two others."""

    def __init__(self):
        self.first, self.second = Linear(3, 4, dtype=np.float64, rng=0), Linear(4, 2, dtype=np.float64, rng=1)
        self.scale = Parameter(np.array(2.0))

    def forward(self, ctx, x):
        z = self.second(self.first(x))
        ctx.save_for_backward(unscaled=z)
        return z * self.scale.data

    def gradients(self, ctx, dz, *, overwrite=False):
        dscale = (dz * ctx.saved["unscaled"]).sum()
        return self.first.backward(self.second.backward(dz * self.scale.data), overwrite=True), dscale


def test_a_layer_made_of_layers_and_parameters():
    net, x, dz = TwoWays(), normal((5, 3)), normal((5, 2), 1)
    assert [name for name, _ in net.named_parameters()] == [
        "scale", "first.weight", "first.bias", "second.weight", "second.bias",
    ]  # fmt: skip
    want = run(Sequential(net.first, net.second), x, 2 * dz)
    got = run(net, x, dz)
    np.testing.assert_allclose(got["dx"], want["dx"])
    np.testing.assert_allclose(got["scale"], (dz * want["z"]).sum())


def test_missing_forward_and_gradients_raise_an_error():
    with pytest.raises(NotImplementedError, match=r"Layer has no forward"):
        Layer()(1)
