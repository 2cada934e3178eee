"""gradcheck: correct gradients pass, planted errors are found and located, all state is restored."""

import doctest
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from batches import LAYOUTS
from networks import Pointwise

from inplace_abn import functional, gradcheck, memory, ops, reference
from inplace_abn.layers import (
    ABN,
    CrossEntropy,
    Dropout,
    GroupNorm,
    Layer,
    Linear,
    MSELoss,
    Parameter,
    Sequential,
    Upsample,
    no_grad,
)

STRATEGIES = list(reference.KEEPS)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def linear_forward(ctx, x, weight, bias):
    ctx.save_for_backward(x=x, weight=weight)
    return x @ weight.T + bias


def linear_backward(ctx, dz, *, overwrite=False):
    return dz @ ctx.saved["weight"], dz.T @ ctx.saved["x"], dz.sum(axis=0)


LINEAR = normal(4, 3), normal(5, 3), normal(5)


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
    x, residual = normal(2, 4, 3, 5)
    report = gradcheck(layer, (x, residual) if with_residual else x, samples=20)
    assert report, report
    names = ["x", *["residual"] * with_residual, "weight", "bias", *["slope"] * (layer.slope is not None)]
    assert [(row.mode, row.name) for row in report.rows] == [
        (mode, name) for mode in ("train", "eval") for name in names
    ]


def named(*arrays):
    """Return inputs of `functional.forward` as a mapping, so that all but x are passed by keyword."""
    names = ("x", "weight", "bias", "running_mean", "running_var")
    return dict(zip(names, arrays, strict=False))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_functional(layout, strategy):
    x, axis = LAYOUTS[layout](normal(4, 3, 5))
    forward = partial(functional.forward, strategy=strategy, channel_axis=axis, activation_param=0.3)
    report = gradcheck((forward, functional.backward), named(x, normal(3), normal(3)))
    assert report, report
    assert [row.name for row in report.rows] == ["x", "weight", "bias"]


def test_functional_in_evaluation():
    running = normal(3), normal(3) ** 2
    forward = partial(functional.forward, running_mean=running[0], running_var=running[1], training=False)
    assert gradcheck((forward, functional.backward), named(normal(4, 3, 5), normal(3), normal(3)))


def test_operations_that_take_a_context():
    report = gradcheck((linear_forward, linear_backward), LINEAR)
    assert report, report
    assert [row.name for row in report.rows] == ["x", "weight", "bias"]
    assert gradcheck(SimpleNamespace(forward=linear_forward, backward=linear_backward), LINEAR)
    assert gradcheck(ops.conv2d, (normal(2, 2, 4, 4), normal(3, 2, 3, 3), normal(3)))


def test_functions_that_return_their_backward():
    assert gradcheck(lambda x: (np.sin(x), lambda dz: np.cos(x) * dz), normal(3, 4))
    assert gradcheck(lambda x, y: (x * y, lambda dz: (y * dz, x * dz)), (normal(3, 4), normal(3, 4, seed=1)))


@pytest.mark.parametrize(
    ("layer", "inputs", "options"),
    [
        (GroupNorm(2, 4, dtype=np.float64), (normal(2, 4, 3),), {}),
        (Upsample((5, 4), mode="nearest"), (normal(2, 3, 2, 3),), {}),
        (Upsample((5, 4), align_corners=True), (normal(2, 3, 2, 3),), {}),
        (
            CrossEntropy(weight=[1, 2, 0.5], label_smoothing=0.2),
            (normal(4, 3), np.array([0, 2, -100, 1])),
            {},
        ),
        (MSELoss(), (normal(3, 4), normal(3, 4, seed=1)), {"wrt": [0]}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_layers_of_interpolation_group_normalization_and_losses(layer, inputs, options):
    report = gradcheck(layer, inputs, **options)
    assert report, report


def test_losses_that_return_a_number():
    report = gradcheck(CrossEntropy(), (normal(5, 4), np.array([0, 3, -100, 1, 2])))
    assert report, report
    assert [row.name for row in report.rows] == ["scores", "scores"]


def test_a_network():
    net = Sequential(ABN(4, strategy="inplace"), Pointwise(4, 2), ABN(2, strategy="inplace"), Pointwise(2, 3))
    report = gradcheck(net, normal(2, 4, 3, 3))
    assert report, report
    assert {row.name for row in report.rows} == {
        *("x", "0.weight", "0.bias", "1.weight", "2.weight", "2.bias", "3.weight")
    }


def test_random_layers_draw_the_same_numbers_in_each_call():
    layer = Dropout(0.4, rng=3)
    state = layer.rng.bit_generator.state
    assert gradcheck(layer, normal(4, 5))
    assert layer.rng.bit_generator.state == state


@pytest.mark.parametrize("scale", [1e-6, 1, 1e6])
def test_inputs_of_any_scale(scale):
    square = (lambda x: (x**3, x), lambda ctx, dz: 3 * ctx**2 * dz)
    assert gradcheck(square, scale * normal(4, 5))
    assert gradcheck(Linear(5, 3), scale * normal(4, 5))


def test_a_mean_far_above_the_standard_deviation():
    assert gradcheck(ABN(3), 1e4 + normal(8, 3, 5))


def test_gradients_that_vanish():
    """A bias before a normalization: its gradient is 0, and the differences are rounding errors."""
    net = Sequential(Linear(4, 3), ABN(3))
    report = gradcheck(net, 100 * normal(6, 4))
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
    report = gradcheck(channel_at_kink(strategy), normal(4, 3, 5))
    assert report, report
    kinks = {(row.mode, row.name): row.kinks for row in report.rows}
    assert kinks["train", "weight"] == kinks["eval", "weight"] == 1
    assert kinks["train", "bias"] == kinks["eval", "bias"] == 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_channel_at_a_kink_inside_a_network(strategy):
    net = Sequential(Pointwise(2, 3), channel_at_kink(strategy), Pointwise(3, 2))
    report = gradcheck(net, normal(4, 2, 3, 3))
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
    report = gradcheck(layer, normal(4, 3, 5))
    assert {(row.mode, row.name, row.wrong) for row in report.rows if row.wrong} == {
        ("train", "weight", 1), ("eval", "weight", 1),
    }, report  # fmt: skip
    assert report.worst.index == (2,)


def test_an_array_with_all_elements_at_kinks_is_a_problem():
    relu = (lambda x: (np.maximum(x, 0), x), lambda ctx, dz: np.where(ctx > 0, dz, 0))
    report = gradcheck(relu, np.zeros(20))
    assert not report
    assert report.problems == ["x: 20 of 20 elements are at kinks and cannot be checked"]


# ---- planted errors ----------------------------------------------------------------------------------------


def plant(change):
    """Return the pair of `functional` with changed gradients."""

    def backward(ctx, dz):
        return change(*map(np.copy, functional.backward(ctx, dz)), dz)

    return partial(functional.forward, activation_param=0.3), backward


def with_element(array, index, value):
    array[index] = value
    return array


PLANTED = {
    "dx without the term of the variance": lambda dx, dw, db, dz: (
        dz - dz.mean((0, 2), keepdims=True),
        dw,
        db,
    ),
    "dx twice": lambda dx, dw, db, dz: (2 * dx, dw, db),
    "dx a little off": lambda dx, dw, db, dz: (dx * (1 + 1e-5), dw, db),
    "dx shifted": lambda dx, dw, db, dz: (dx + 1e-4, dw, db),
    "one element of dx": lambda dx, dw, db, dz: (with_element(dx, (2, 1, 3), dx[2, 1, 3] + 1e-3), dw, db),
    "the sign of dweight": lambda dx, dw, db, dz: (dx, -dw, db),
    "the sign in one channel": lambda dx, dw, db, dz: (dx, with_element(dw, 1, -dw[1]), db),
    "dbias for dweight": lambda dx, dw, db, dz: (dx, db, dw),
    "dbias without the activation": lambda dx, dw, db, dz: (dx, dw, dz.sum((0, 2))),
    "dbias is zero": lambda dx, dw, db, dz: (dx, dw, 0 * db),
    "dx not a number": lambda dx, dw, db, dz: (with_element(dx, (0, 0, 0), np.nan), dw, db),
}


@pytest.mark.parametrize("case", PLANTED)
def test_planted_errors_are_found(case):
    report = gradcheck(plant(PLANTED[case]), named(normal(4, 3, 5), normal(3), normal(3)))
    assert not report
    assert "WRONG" in str(report)
    wrong = {row.name for row in report.rows if row.wrong}
    if case == "dbias for dweight":
        assert wrong == {"weight", "bias"}
    else:
        assert wrong == {"x" if "dx" in case else "bias" if "dbias" in case else "weight"}


def test_the_worst_element_is_located():
    report = gradcheck(plant(PLANTED["one element of dx"]), named(normal(4, 3, 5), normal(3), normal(3)))
    assert (report.worst.name, report.worst.index, report.worst.wrong) == ("x", (2, 1, 3), 1)
    assert report.worst.analytic - report.worst.numeric == pytest.approx(1e-3, rel=1e-3)
    assert "[2, 1, 3]: " in str(report)
    report = gradcheck(
        plant(PLANTED["the sign in one channel"]), named(normal(4, 3, 5), normal(3), normal(3))
    )
    assert report.worst.index == (1,)
    assert report.worst.analytic == pytest.approx(-report.worst.numeric)


class Scale(Layer):
    """A correct layer, except for the error `broken`."""

    def __init__(self, features, broken=""):
        self.weight = Parameter(np.ones(features, np.float32))
        self.shift = np.zeros(features, np.float32)
        self.broken = broken

    def forward(self, ctx, x):
        ctx.save_for_backward(input=x)
        return x * self.weight.data + self.shift

    def gradients(self, ctx, dz, *, overwrite=False):
        dx = np.multiply(dz, self.weight.data, out=dz if overwrite else None)
        dweight = (dz * ctx.saved["input"]).sum(axis=0)
        if self.broken == "eval" and not self.training:
            dx *= 2
        if self.broken == "dz":
            dz *= 2
        if self.broken == "none":
            dweight = None
        return dx, dweight


def test_dz_used_after_it_was_overwritten():
    """With weight 1, dx = dz, and overwriting dz does no harm; with another weight it does."""
    layer = Scale(3)
    assert gradcheck(layer, normal(4, 3))
    layer.weight.data[:] = 2
    report = gradcheck(layer, normal(4, 3))
    assert not report
    assert "train: the gradient of weight differs with overwrite=True" in report.problems


def test_an_error_in_one_mode():
    report = gradcheck(Scale(3, "eval"), normal(4, 3))
    assert {(row.mode, row.name) for row in report.rows if row.wrong} == {("eval", "x")}
    assert gradcheck(Scale(3, "eval"), normal(4, 3), modes="train")


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        ("dz", "train: the backward changed dz, without overwrite=True"),
        ("none", "train: weight has no gradient: None was returned"),
    ],
)
def test_problems_other_than_wrong_numbers(broken, problem):
    report = gradcheck(Scale(3, broken), normal(4, 3))
    assert not report
    with pytest.raises(AssertionError, match=f"PROBLEM: {problem}"):
        assert report.ok, report


def test_a_gradient_of_a_wrong_shape():
    report = gradcheck((lambda x: (2 * x, None), lambda ctx, dz: 2 * dz[:1]), normal(4, 3))
    with pytest.raises(AssertionError, match=r"PROBLEM: .*x has shape \(4, 3\), its gradient \(1, 3\)"):
        assert report.ok, report


def test_samples():
    def backward(ctx, dz):
        return 3 * dz

    wrong = (lambda x: (2 * x, None), backward)
    report = gradcheck(wrong, normal(10, 10), samples=7)
    assert (report.rows[0].checked, report.rows[0].wrong) == (7, 7)
    assert gradcheck((wrong[0], lambda ctx, dz: 2 * dz), normal(2), samples=7).rows[0].checked == 2


# ---- state is restored -------------------------------------------------------------------------------------


def test_layers_are_restored():
    net = Sequential(ABN(3, strategy="inplace"), Dropout(0.2, rng=0), ABN(3, momentum=None))
    net(normal(4, 3, 5).astype(np.float32))
    net.backward(np.ones((4, 3, 5), np.float32))
    arrays = dict(net.named_state())
    copies, gradients = net.state_dict(), [parameter.grad for parameter in net.parameters()]
    net.train()
    net[1].eval()
    x = normal(4, 3, 5)
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

    assert gradcheck(Running(3), normal(4, 3, 5))


def test_arrays_in_a_partial_are_restored():
    mean, var = np.zeros(3), np.ones(3)
    forward = partial(functional.forward, running_mean=mean, running_var=var)
    assert gradcheck((forward, functional.backward), normal(4, 3, 5), wrt=[0]) is not None
    assert not mean.any()
    assert (var == 1).all()


def test_pending_calls_remain_usable():
    layer, x = ABN(3), normal(4, 3).astype(np.float32)
    layer(x)
    assert gradcheck(layer, normal(4, 3))
    layer.backward(np.ones((4, 3), np.float32))
    with pytest.raises(RuntimeError):
        layer.backward(np.ones((4, 3), np.float32))


def test_no_context_is_left():
    with memory.ledger() as ledger:
        gradcheck(ABN(3, strategy="inplace"), normal(4, 3))
    assert ledger.live == 0


def test_inside_no_grad():
    with no_grad(), pytest.raises(RuntimeError, match=r"gradcheck .* cannot run inside no_grad"):
        gradcheck(ABN(3), normal(4, 3))


# ---- invalid arguments -------------------------------------------------------------------------------------


def test_invalid_targets_are_refused():
    for target in (3, (1, 2), (np.sin,), "conv2d"):
        with pytest.raises(TypeError, match="target must be a Layer, a pair of functions"):
            gradcheck(target, normal(3))
    with pytest.raises(TypeError, match=r"target must return \(result, backward\), got array"):
        gradcheck(np.sin, normal(3))
    with pytest.raises(TypeError, match=r"forward must return \(result, ctx\), or take ctx first"):
        gradcheck((np.sin, lambda ctx, dz: dz), normal(3))
    with pytest.raises(ValueError, match="modes must be of 'train' and 'eval', got 'test'"):
        gradcheck(ABN(3), normal(4, 3), modes=["test"])


def test_results_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="the result of target must be finite"):
        gradcheck(lambda x: (x / 0, lambda dz: dz) if np.seterr(divide="ignore") else None, np.ones(3))
    with pytest.raises(
        TypeError, match="the result of target must be float64, as its inputs are, got float32"
    ):
        gradcheck(lambda x: (x.astype(np.float32), lambda dz: dz), normal(3))
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="target must give the same result for the same inputs"):
        gradcheck(lambda x: (x + rng.normal(), lambda dz: dz), normal(3))


def test_ambiguous_gradients_need_wrt():
    inputs = named(normal(4, 3), np.ones(3), None, np.zeros(3), np.ones(3))
    pair = functional.forward, functional.backward
    with pytest.raises(
        ValueError, match="wrt must say which inputs the gradients belong to: the backward returned 3"
    ):
        gradcheck(pair, inputs)
    for wrt in ([2], [9], [0.5]):
        with pytest.raises(ValueError, match="wrt must be indices of inputs that are floating arrays"):
            gradcheck(pair, inputs, wrt=wrt)


def test_nothing_to_check():
    report = gradcheck(lambda x: (x * 1.0, lambda dz: dz), np.arange(3))
    assert not report
    assert "nothing to check" in str(report)


# ---- report ------------------------------------------------------------------------------------------------


def test_text_and_html_of_reports():
    right, wrong = gradcheck(ABN(3), normal(4, 3)), gradcheck(Scale(3, "eval"), normal(4, 3))
    lines = str(right).splitlines()
    assert lines[0] == "gradients agree with finite differences"
    assert lines[1].split() == ["mode", "gradient", "shape", "checked", "wrong", "kinks", "worst", "at"]
    assert lines[2].split()[:7] == ["train", "x", "(4,", "3)", "12", "0", "0"]
    assert str(wrong).startswith("1 of 4 gradients are WRONG")
    assert "agree" in right._repr_html_()
    assert wrong._repr_html_().count("<tr style=") == 1


def test_examples():
    failed, tried = doctest.testmod(sys.modules["inplace_abn._gradcheck"])
    assert tried > 0
    assert failed == 0


def test_a_flat_segment_between_two_kinks_is_no_error():
    """A segment 6e-7 wide: the slopes on both sides of it do not bound the slope 0 between them."""

    def flat(x):
        right, left = np.maximum(x - 3e-7, 0), np.maximum(-x - 3e-7, 0)
        return np.stack([right, left]), lambda dz: np.where(right > 0, dz[0], np.where(left > 0, -dz[1], 0))

    report = gradcheck(flat, np.zeros(20))
    assert report.ok, report


def test_rounding_of_a_large_result_does_not_hide_an_error():
    """The relative error of 1e-3 is as large as the rounding error at the smallest step."""
    x = np.random.default_rng(0).normal(size=20)
    report = gradcheck(lambda x: (x + 1e3, lambda dz: 1.001 * dz), x)
    assert report.rows[0].wrong == 20
