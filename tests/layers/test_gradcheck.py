"""gradcheck: correct gradients pass, planted errors are found and located, all state is restored."""

import doctest
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from batches import LAYOUTS
from keywords import as_inputs
from networks import Pointwise, normal

from inplace_abn import functional, gradcheck, memory, ops, reference
from inplace_abn.layers import (
    ABN,
    CrossEntropy,
    Dropout,
    GroupNorm,
    Linear,
    MSELoss,
    Sequential,
    Upsample,
    no_grad,
)

STRATEGIES = list(reference.KEEPS)


def linear_forward(ctx, x, weight, bias):
    ctx.save_for_backward(x=x, weight=weight)
    return x @ weight.T + bias


def linear_backward(ctx, dz, *, overwrite=False):
    return dz @ ctx.saved["weight"], dz.T @ ctx.saved["x"], dz.sum(axis=0)


LINEAR = normal((4, 3)), normal((5, 3)), normal(5)


# ---- correct gradients -------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", list(reference.ACTIVATIONS))
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("with_residual", [False, True])
def test_layers_in_both_modes(with_residual, strategy, activation):
    """All strategies, also those that overwrite their input: each evaluation gets a copy."""
    if reference.ACTIVATIONS[activation].inverse is None and reference.KEEPS[strategy] == "z":
        pytest.skip(f"{activation} has no inverse")
    slopes = {"num_slopes": 3} if activation == "prelu" else {}
    layer = ABN(3, activation=activation, strategy=strategy, **slopes)
    layer.weight.data[:], layer.bias.data[:] = (1.5, -0.5, 0), (0.1, -0.2, 0.3)
    if layer.slope is not None:
        layer.slope.data[:] = 0.25, -0.5, 1.5
    x, residual = normal((2, 4, 3, 5))
    report = gradcheck(layer, (x, residual) if with_residual else x, samples=20)
    assert report, report
    names = ["x", *["residual"] * with_residual, "weight", "bias", *["slope"] * (layer.slope is not None)]
    assert [(row.mode, row.name) for row in report.rows] == [
        (mode, name) for mode in ("train", "eval") for name in names
    ]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_functional(layout, strategy):
    x, axis = LAYOUTS[layout](normal((4, 3, 5)))
    forward = partial(functional.forward, strategy=strategy, channel_axis=axis, activation_param=0.3)
    report = gradcheck((forward, functional.backward), as_inputs(x, normal(3), normal(3)))
    assert report, report
    assert [row.name for row in report.rows] == ["x", "weight", "bias"]


def test_functional_in_evaluation():
    running = normal(3), normal(3) ** 2
    forward = partial(functional.forward, running_mean=running[0], running_var=running[1], training=False)
    assert gradcheck((forward, functional.backward), as_inputs(normal((4, 3, 5)), normal(3), normal(3)))


def test_operations_that_take_a_context():
    report = gradcheck((linear_forward, linear_backward), LINEAR)
    assert report, report
    assert [row.name for row in report.rows] == ["x", "weight", "bias"]
    assert gradcheck(SimpleNamespace(forward=linear_forward, backward=linear_backward), LINEAR)
    assert gradcheck(ops.conv2d, (normal((2, 2, 4, 4)), normal((3, 2, 3, 3)), normal(3)))


def test_functions_that_return_their_backward():
    assert gradcheck(lambda x: (np.sin(x), lambda dz: np.cos(x) * dz), normal((3, 4)))
    assert gradcheck(
        lambda x, y: (x * y, lambda dz: (y * dz, x * dz)), (normal((3, 4)), normal((3, 4), seed=1))
    )


@pytest.mark.parametrize(
    ("layer", "inputs", "options"),
    [
        (GroupNorm(2, 4, dtype=np.float64), (normal((2, 4, 3)),), {}),
        (Upsample((5, 4), mode="nearest"), (normal((2, 3, 2, 3)),), {}),
        (Upsample((5, 4), align_corners=True), (normal((2, 3, 2, 3)),), {}),
        (
            CrossEntropy(weight=[1, 2, 0.5], label_smoothing=0.2),
            (normal((4, 3)), np.array([0, 2, -100, 1])),
            {},
        ),
        (MSELoss(), (normal((3, 4)), normal((3, 4), seed=1)), {"wrt": [0]}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_layers_of_interpolation_group_normalization_and_losses(layer, inputs, options):
    report = gradcheck(layer, inputs, **options)
    assert report, report


def test_losses_that_return_a_number():
    report = gradcheck(CrossEntropy(), (normal((5, 4)), np.array([0, 3, -100, 1, 2])))
    assert report, report
    assert [row.name for row in report.rows] == ["scores", "scores"]


def test_a_network():
    net = Sequential(ABN(4, strategy="inplace"), Pointwise(4, 2), ABN(2, strategy="inplace"), Pointwise(2, 3))
    report = gradcheck(net, normal((2, 4, 3, 3)))
    assert report, report
    assert {row.name for row in report.rows} == {
        *("x", "0.weight", "0.bias", "1.weight", "2.weight", "2.bias", "3.weight")
    }


def test_random_layers_draw_the_same_numbers_in_each_call():
    layer = Dropout(0.4, rng=3)
    state = layer.rng.bit_generator.state
    assert gradcheck(layer, normal((4, 5)))
    assert layer.rng.bit_generator.state == state


@pytest.mark.parametrize("scale", [1e-6, 1, 1e6])
def test_inputs_of_any_scale(scale):
    square = (lambda x: (x**3, x), lambda ctx, dz: 3 * ctx**2 * dz)
    assert gradcheck(square, scale * normal((4, 5)))
    assert gradcheck(Linear(5, 3), scale * normal((4, 5)))


def test_a_mean_far_above_the_standard_deviation():
    assert gradcheck(ABN(3), 1e4 + normal((8, 3, 5)))


def test_gradients_that_vanish():
    """A bias before a normalization: its gradient is 0, and the differences are rounding errors."""
    net = Sequential(Linear(4, 3), ABN(3))
    report = gradcheck(net, 100 * normal((6, 4)))
    assert report, report
    (row,) = (row for row in report.rows if (row.mode, row.name) == ("train", "0.bias"))
    assert abs(row.numeric) < 1e-6


def test_kinks_are_distinguished_from_errors():
    relu = (lambda x: (np.maximum(x, 0), x), lambda ctx, dz: np.where(ctx > 0, dz, 0))
    x = normal(50)
    x[7], x[8] = 0, 1e-5
    report = gradcheck(relu, x)
    assert report, report
    assert (report.rows[0].kinks, report.rows[0].wrong) == (1, 0)
    between = (relu[0], lambda ctx, dz: np.where(ctx > 0, dz, 2 * dz * (ctx == 0)))
    assert not gradcheck(between, x)  # outside the one-sided derivatives


def channel_at_kink(strategy):
    """Return a layer whose y are all 0 in channel 2: at the kink of leaky_relu."""
    layer = ABN(3, strategy=strategy, dtype=np.float64)
    layer.weight.data[2] = layer.bias.data[2] = 0
    return layer


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_channel_of_weight_0_and_bias_0_is_at_a_kink(strategy):
    """The gradient of the weight takes the slope above 0 for all elements, whatever the sign of x-hat."""
    report = gradcheck(channel_at_kink(strategy), normal((4, 3, 5)))
    assert report, report
    kinks = {(row.mode, row.name): row.kinks for row in report.rows}
    assert kinks["train", "weight"] == kinks["eval", "weight"] == 1
    assert kinks["train", "bias"] == kinks["eval", "bias"] == 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_channel_at_a_kink_inside_a_network(strategy):
    net = Sequential(Pointwise(2, 3), channel_at_kink(strategy), Pointwise(3, 2))
    report = gradcheck(net, normal((4, 2, 3, 3)))
    assert report, report


@pytest.mark.parametrize("change", [-1, 0, 0.9, 0.99, 1.01, 2])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_wrong_gradient_at_a_kink_is_found(strategy, change):
    class Wrong(ABN):
        def gradients(self, ctx, dz, *, overwrite=False):
            dx, dweight, *rest = super().gradients(ctx, dz, overwrite=overwrite)
            dweight[2] *= change
            return dx, dweight, *rest

    layer = channel_at_kink(strategy)
    layer.__class__ = Wrong
    report = gradcheck(layer, normal((4, 3, 5)))
    assert {(row.mode, row.name, row.wrong) for row in report.rows if row.wrong} == {
        ("train", "weight", 1), ("eval", "weight", 1),
    }, report  # fmt: skip
    assert report.worst.index == (2,)


def test_an_array_with_all_elements_at_kinks_is_a_problem():
    relu = (lambda x: (np.maximum(x, 0), x), lambda ctx, dz: np.where(ctx > 0, dz, 0))
    report = gradcheck(relu, np.zeros(20))
    assert not report
    assert report.problems == ["x: 20 of 20 elements are at kinks and cannot be checked"]


def test_a_flat_segment_between_two_kinks_is_no_error():
    """A segment 6e-7 wide: the slopes on both sides of it do not bound the slope 0 between them."""

    def flat(x):
        right, left = np.maximum(x - 3e-7, 0), np.maximum(-x - 3e-7, 0)
        return np.stack([right, left]), lambda dz: np.where(right > 0, dz[0], np.where(left > 0, -dz[1], 0))

    report = gradcheck(flat, np.zeros(20))
    assert report.ok, report


# ---- state is restored -------------------------------------------------------------------------------------


def test_layers_are_restored():
    net = Sequential(ABN(3, strategy="inplace"), Dropout(0.2, rng=0), ABN(3, momentum=None))
    net(normal((4, 3, 5)).astype(np.float32))
    net.backward(np.ones((4, 3, 5), np.float32))
    arrays = dict(net.named_state())
    copies, gradients = net.state_dict(), [parameter.grad for parameter in net.parameters()]
    net.train()
    net[1].eval()
    x = normal((4, 3, 5))
    kept = x.copy()
    assert gradcheck(net, x)
    assert np.array_equal(x, kept)
    after = dict(net.named_state())
    assert all(after[name] is arrays[name] for name in arrays)
    assert all(np.array_equal(after[name], copies[name]) for name in arrays)
    assert all(p.grad is gradient for p, gradient in zip(net.parameters(), gradients, strict=True))
    assert (net[0].training, net[1].training, net[2].training) == (True, False, True)


def test_running_statistics_are_restored_between_evaluations():
    """The result depends on the running mean: an update between evaluations would change the differences."""

    class Running(ABN):
        def forward(self, ctx, x):
            return super().forward(ctx, x) + self.running_mean[0] * 100

        def gradients(self, ctx, dz, *, overwrite=False):
            moved = dz.sum() * self.momentum * 100 / (len(dz) * dz.shape[2])
            dx, *rest = super().gradients(ctx, dz, overwrite=overwrite)
            dx[:, 0] += moved * self.training
            return dx, *rest

    assert gradcheck(Running(3), normal((4, 3, 5)))


def test_arrays_in_a_partial_are_restored():
    mean, var = np.zeros(3), np.ones(3)
    forward = partial(functional.forward, running_mean=mean, running_var=var)
    assert gradcheck((forward, functional.backward), normal((4, 3, 5)), wrt=[0]) is not None
    assert not mean.any()
    assert (var == 1).all()


def test_pending_calls_remain_usable():
    layer, x = ABN(3), normal((4, 3)).astype(np.float32)
    layer(x)
    assert gradcheck(layer, normal((4, 3)))
    layer.backward(np.ones((4, 3), np.float32))
    with pytest.raises(RuntimeError):
        layer.backward(np.ones((4, 3), np.float32))


def test_no_context_is_left():
    with memory.ledger() as ledger:
        gradcheck(ABN(3, strategy="inplace"), normal((4, 3)))
    assert ledger.live == 0


def test_inside_no_grad():
    with no_grad(), pytest.raises(RuntimeError, match=r"gradcheck .* cannot run inside no_grad"):
        gradcheck(ABN(3), normal((4, 3)))


def test_examples():
    failed, tried = doctest.testmod(sys.modules["inplace_abn._gradcheck"])
    assert tried > 0
    assert failed == 0
