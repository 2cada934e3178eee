"""Masks applied by integer multiplication, many times as fast as ``where=`` of NumPy's functions."""

import numpy as np

_BITS = {2: np.int16, 4: np.int32, 8: np.int64}


def select(values, mask, out):
    """Write values where the mask is true and 0 elsewhere to `out`, which may be `values`; return it.

    The bits are multiplied by 1 or 0 as integers, so that a masked infinity or NaN gives 0.

    >>> select(np.array([1.5, np.nan, np.inf]), np.array([True, False, True]), np.empty(3))
    array([1.5, 0. , inf])
    """
    bits = _BITS[values.itemsize]
    np.multiply(values.view(bits), mask, out=out.view(bits))
    return out
