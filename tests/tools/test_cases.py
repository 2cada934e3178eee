"""`each`: many cases in one test."""

import pytest
from cases import each


def test_all_combinations_are_called():
    calls = []

    @each(a=[1, 2], b="xy")
    def test(a, b, c):
        calls.append((a, b, c))

    test(c=3)
    assert calls == [(1, "x", 3), (1, "y", 3), (2, "x", 3), (2, "y", 3)]


def test_a_failure_names_its_case():
    @each(a=[1, 2])
    def test(a, b):
        assert a < b

    with pytest.raises(AssertionError, match=r"with \{'a': 2\}") as caught:
        test(b=2)
    assert isinstance(caught.value.__cause__, AssertionError)


@each(a=[1, 2])
def test_other_arguments_are_fixtures(a, tmp_path):
    assert a
    assert tmp_path.exists()
