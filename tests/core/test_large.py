"""Arrays of more than 2^31 elements and 2^32 bytes; skipped without enough memory."""

import os

import numpy as np
import pytest

from inplace_abn import functional

CHANNELS, POSITIONS = 2, 1300 * 1000 * 1000
NEEDED = 2 * CHANNELS * POSITIONS + (1 << 30)  # 5.2 GB of float16, and 1 GB for everything else
MEMORY = "/proc/meminfo"


def available():
    """Return the bytes available without swapping, or None if the system does not report them."""
    try:
        with open(MEMORY, encoding="ascii") as file:
            lines = dict(line.split(":") for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


@pytest.mark.slow
@pytest.mark.parametrize("channel_axis", [1, -1])
def test_float16_of_five_gigabytes(channel_axis):
    """Forward and backward in place; the last elements are as accurate as the first."""
    if (memory := available()) is None or memory < NEEDED:
        pytest.skip(f"needs {NEEDED >> 20} MiB of memory, there are {(memory or 0) >> 20}")
    shape = (1, CHANNELS, POSITIONS) if channel_axis == 1 else (1, POSITIONS, CHANNELS)
    x = np.empty(shape, np.float16)
    assert x.size > 1 << 31
    assert x.nbytes > 1 << 32
    # 1 and 3 in turn along each channel: mean 2, variance 1.
    flat = np.moveaxis(x, channel_axis, 1)
    flat[:, :, ::2], flat[:, :, 1::2] = 1, 3
    mean, var, count = functional.statistics(x, channel_axis=channel_axis)
    assert (mean.tolist(), var.tolist(), count) == ([2, 2], [1, 1], POSITIONS)
    z, ctx = functional.forward(x, eps=1e-30, activation_param=0.5, channel_axis=channel_axis)
    assert z is x
    for part in (flat[0, :, :1000], flat[0, :, -1000:], flat[0, :, (1 << 30) - 500 : (1 << 30) + 500]):
        assert (part[:, ::2] == -0.5).all()
        assert (part[:, 1::2] == 1).all()
    # A dz would take another 5 GB, so z is passed as dz: backward_reduce reads all of it.
    sum_dy, sum_dy_xhat = functional.backward_reduce(ctx, x)
    # dy = dz * slope: -0.5 * 0.5 and 1, with xhat -1 and 1.
    assert (sum_dy == POSITIONS // 2 * 0.75).all()
    assert (sum_dy_xhat == POSITIONS // 2 * 1.25).all()
    ctx.release()
