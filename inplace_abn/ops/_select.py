"""Masking by integer multiplication, which is much faster than ``where=`` of NumPy's functions."""

import numpy as np

_BITS = {2: np.int16, 4: np.int32, 8: np.int64}


def select(values, mask, out):
    """Write `values` where the mask is True, and 0 elsewhere, to `out`, which may be `values`; return it.

    The bit patterns are multiplied by 1 or 0 as integers: infinity and NaN become 0 where the mask is False.

    >>> select(np.array([1.5, np.nan, np.inf]), np.array([True, False, True]), np.empty(3))
    array([1.5, 0. , inf])
    """
    bits = _BITS[values.itemsize]
    np.multiply(values.view(bits), mask, out=out.view(bits))
    return out
