"""mask=: masks that are refused."""

import numpy as np
import pytest

from inplace_abn import functional

pytestmark = pytest.mark.arithmetic

X = np.ones((4, 3, 5), np.float32)
REFUSED = {
    "list": ([[True] * 5] * 4, TypeError, "mask must be a numpy.ndarray, got 'list'"),
    "integers": (
        np.ones((4, 5), np.uint8),
        TypeError,
        r"mask must be bool, got uint8; pass mask.astype\(bool\)",
    ),
    "floats": (np.ones((4, 5)), TypeError, "mask must be bool, got float64; pass mask.astype.bool"),
    "with channels": (
        np.ones((4, 3, 5), bool),
        ValueError,
        r"shape \(4, 5\), .*got \(4, 3, 5\)",
    ),
    "without images": (np.ones(5, bool), ValueError, r"shape \(4, 5\), .*got \(5,\)"),
    "a scalar": (np.ones((), bool), ValueError, r"shape \(4, 5\), .*got \(\)"),
    "another shape": (np.ones((4, 1), bool), ValueError, r"shape \(4, 5\), .*got \(4, 1\)"),
    "masked array": (np.ma.ones((4, 5), bool), TypeError, "mask must be a plain numpy.ndarray"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what):
    mask, error, message = REFUSED[what]
    given = {"mean": np.ones(3), "var": np.ones(3), "count": 20}
    for function, arguments in [
        (functional.forward, {}),
        (functional.statistics, {}),
        (functional.normalize, given),
    ]:
        x = X.copy()
        with pytest.raises(error, match=message):
            function(x, mask=mask, **arguments)
        assert np.array_equal(x, X)
        assert x.flags.writeable


def test_a_mask_in_the_memory_of_x_is_refused():
    x = X.copy()
    mask = x.reshape(-1)[:5].view(bool).reshape(4, 5)
    with pytest.raises(ValueError, match="x is written and shares memory with mask"):
        functional.forward(x, mask=mask)
    assert np.array_equal(x, X)
    functional.forward(x, mask=mask, strategy="standard")
    running = np.ones((2, 3), np.float32)
    mask = running.view(bool).reshape(-1)[:20].reshape(4, 5)
    with pytest.raises(ValueError, match="running_mean is written and shares memory with mask"):
        functional.forward(x.copy(), running_mean=running[0], running_var=running[1], mask=mask)
