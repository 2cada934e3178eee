"""gradcheck: refused numbers, and gradients that are missing or have another shape."""

import numpy as np
import pytest

from inplace_abn import gradcheck
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
