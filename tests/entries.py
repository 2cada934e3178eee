"""Number of entries that a test adds to the registry of saved memory, without those that existed before."""

import gc

import pytest

from inplace_abn import _core

_before = 0


def added():
    """Return the number of entries added since the test began."""
    return _core.saved_count() - _before


@pytest.fixture
def nothing_stays():
    """Fail if entries remain after a test."""
    global _before
    if _core.saved_count():
        gc.collect()
    _before = _core.saved_count()
    yield
    gc.collect()
    assert added() == 0
