"""gradcheck: planted errors are found and located, and the report shows them."""

from functools import partial

import numpy as np
import pytest
from keywords import as_inputs
from networks import normal

from inplace_abn import functional, gradcheck
from inplace_abn.layers import ABN, Layer, Parameter


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
    report = gradcheck(plant(PLANTED[case]), as_inputs(normal((4, 3, 5)), normal(3), normal(3)))
    assert not report
    assert "WRONG" in str(report)
    wrong = {row.name for row in report.rows if row.wrong}
    if case == "dbias for dweight":
        assert wrong == {"weight", "bias"}
    else:
        assert wrong == {"x" if "dx" in case else "bias" if "dbias" in case else "weight"}


def test_the_worst_element_is_located():
    inputs = as_inputs(normal((4, 3, 5)), normal(3), normal(3))
    report = gradcheck(plant(PLANTED["one element of dx"]), inputs)
    assert (report.worst.name, report.worst.index, report.worst.wrong) == ("x", (2, 1, 3), 1)
    assert report.worst.analytic - report.worst.numeric == pytest.approx(1e-3, rel=1e-3)
    assert "[2, 1, 3]: " in str(report)
    report = gradcheck(plant(PLANTED["the sign in one channel"]), inputs)
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
    assert gradcheck(layer, normal((4, 3)))
    layer.weight.data[:] = 2
    report = gradcheck(layer, normal((4, 3)))
    assert not report
    assert "train: the gradient of weight differs with overwrite=True" in report.problems


def test_an_error_in_one_mode():
    report = gradcheck(Scale(3, "eval"), normal((4, 3)))
    assert {(row.mode, row.name) for row in report.rows if row.wrong} == {("eval", "x")}
    assert gradcheck(Scale(3, "eval"), normal((4, 3)), modes="train")


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        ("dz", "train: the backward changed dz, without overwrite=True"),
        ("none", "train: weight has no gradient: None was returned"),
    ],
)
def test_problems_other_than_wrong_numbers(broken, problem):
    report = gradcheck(Scale(3, broken), normal((4, 3)))
    assert not report
    with pytest.raises(AssertionError, match=f"PROBLEM: {problem}"):
        assert report.ok, report


def test_a_gradient_of_a_wrong_shape():
    report = gradcheck((lambda x: (2 * x, None), lambda ctx, dz: 2 * dz[:1]), normal((4, 3)))
    with pytest.raises(AssertionError, match=r"PROBLEM: .*x has shape \(4, 3\), its gradient \(1, 3\)"):
        assert report.ok, report


def test_samples():
    def backward(ctx, dz):
        return 3 * dz

    wrong = (lambda x: (2 * x, None), backward)
    report = gradcheck(wrong, normal((10, 10)), samples=7)
    assert (report.rows[0].checked, report.rows[0].wrong) == (7, 7)
    assert gradcheck((wrong[0], lambda ctx, dz: 2 * dz), normal(2), samples=7).rows[0].checked == 2


def test_rounding_of_a_large_result_does_not_hide_an_error():
    """The relative error of 1e-3 is as large as the rounding error at the smallest step."""
    x = np.random.default_rng(0).normal(size=20)
    report = gradcheck(lambda x: (x + 1e3, lambda dz: 1.001 * dz), x)
    assert report.rows[0].wrong == 20


# ---- report ------------------------------------------------------------------------------------------------


def test_text_and_html_of_reports():
    right, wrong = gradcheck(ABN(3), normal((4, 3))), gradcheck(Scale(3, "eval"), normal((4, 3)))
    lines = str(right).splitlines()
    assert lines[0] == "gradients agree with finite differences"
    assert lines[1].split() == ["mode", "gradient", "shape", "checked", "wrong", "kinks", "worst", "at"]
    assert lines[2].split()[:7] == ["train", "x", "(4,", "3)", "12", "0", "0"]
    assert str(wrong).startswith("1 of 4 gradients are WRONG")
    assert "agree" in right._repr_html_()
    assert wrong._repr_html_().count("<tr style=") == 1
