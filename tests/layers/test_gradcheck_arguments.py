"""gradcheck: refused targets and numbers, and gradients that are missing or have another shape."""

import numpy as np
import pytest
from keywords import as_inputs
from networks import normal

from inplace_abn import functional, gradcheck
from inplace_abn.layers import ABN


def square(x):
    return x**2, lambda dz: 2 * x * dz


def wrong(x):
    return x**2, lambda dz: 7 * dz


X = np.random.default_rng(0).normal(size=(3, 4))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"samples": 0}, ValueError, "samples must be at least 1, got 0"),
        ({"samples": -1}, ValueError, "samples must be at least 1, got -1"),
        ({"samples": "3"}, TypeError, "samples must be an integer, got '3'"),
        ({"samples": 2.0}, TypeError, "samples must be an integer, got 2.0"),
        ({"rtol": np.nan}, ValueError, "rtol must be finite, got nan"),
        ({"rtol": np.inf}, ValueError, "rtol must be finite, got inf"),
        ({"rtol": -1}, ValueError, "rtol must be at least 0, got -1"),
        ({"rtol": "a"}, TypeError, "rtol must be a number, got 'a'"),
        ({"step": 0}, ValueError, "step must be greater than 0, got 0"),
        ({"step": -1e-4}, ValueError, "step must be greater than 0, got -0.0001"),
        ({"step": np.nan}, ValueError, "step must be finite, got nan"),
        ({"step": None}, TypeError, "step must be a number, got None"),
        ({"step": 1e-300}, ValueError, "step is too small to change elements like"),
    ],
)
def test_numbers_with_which_nothing_would_be_checked(options, error, message):
    for target, inputs in ((wrong, X), (ABN(4), X)):
        with pytest.raises(error, match=message):
            gradcheck(target, inputs, **options)


def test_limits_of_accepted_numbers():
    assert gradcheck(square, X, samples=1)
    assert not gradcheck(wrong, X, rtol=0)
    assert not gradcheck(wrong, X, samples=1)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda gradient: gradient[None], "x has shape (3, 4), its gradient (1, 3, 4)"),
        (lambda gradient: gradient.T, "x has shape (3, 4), its gradient (4, 3)"),
        (lambda gradient: None, "x has no gradient: None was returned"),
    ],
)
def test_a_missing_or_misshapen_gradient(change, problem):
    report = gradcheck(lambda x: (x**2, lambda dz: change(2 * x * dz)), X)
    assert not report
    assert str(report).startswith(f"PROBLEM: {problem}\n")
    assert problem in report._repr_html_()


def test_invalid_targets_are_refused():
    for target in (3, (1, 2), (np.sin,), "conv2d"):
        with pytest.raises(TypeError, match="target must be a Layer, a pair of functions"):
            gradcheck(target, normal(3))
    with pytest.raises(TypeError, match=r"target must return \(result, backward\), got array"):
        gradcheck(np.sin, normal(3))
    with pytest.raises(TypeError, match=r"forward must return \(result, ctx\), or take ctx first"):
        gradcheck((np.sin, lambda ctx, dz: dz), normal(3))
    with pytest.raises(ValueError, match="modes must be of 'train' and 'eval', got 'test'"):
        gradcheck(ABN(3), normal((4, 3)), modes=["test"])


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
    inputs = as_inputs(normal((4, 3)), np.ones(3), None, np.zeros(3), np.ones(3))
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
