"""Number of entries that a test adds to the registry of saved memory, without those that existed before."""

import gc

import pytest

from inplace_abn import _core
from inplace_abn.layers import saved_arrays

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


@pytest.fixture(autouse=True)
def no_offers_remain(nothing_stays):
    """Fail also if checkpoint layers still offer to recompute an array after a test.

    A file whose tests are to be checked imports it, and `nothing_stays`.
    """
    yield
    gc.collect()
    assert not saved_arrays._offers
