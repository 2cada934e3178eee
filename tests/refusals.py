"""Invalid arguments, and `refused`, which checks the error of a call with them."""

import warnings

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

from inplace_abn import _core, functional

SHAPE = (4, 3, 5, 2)


def whole(array):
    """Return the array that owns the memory of `array`."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def refused(function, kwargs, error, *message):
    """Call; expect this error with all parts of the message in it, and every array untouched."""
    arrays = [whole(a) for a in kwargs.values() if isinstance(a, np.ndarray)]
    before = [a.tobytes() for a in arrays]
    flags = [a.flags.writeable for a in arrays]
    with pytest.raises(error) as caught:
        function(**kwargs)
    assert caught.type is error
    for part in message:
        assert part in str(caught.value)
    assert [a.tobytes() for a in arrays] == before
    assert [a.flags.writeable for a in arrays] == flags


def forward_arguments(**changes):
    """Return valid arguments of forward with `changes`; a callable change gets the valid ones."""
    rng = np.random.default_rng(0)
    good = {"x": rng.normal(size=SHAPE).astype(np.float32)}
    for name in ("weight", "bias", "running_mean", "running_var"):
        good[name] = rng.uniform(1, 2, SHAPE[1]).astype(np.float32)
    return {**good, **{k: v(good) if callable(v) else v for k, v in changes.items()}}


def matrix(shape, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        return np.matrix(np.ones(shape, dtype))


class Subclass(np.ndarray):
    pass


def misaligned(shape):
    size = int(np.prod(shape)) * 4
    return np.zeros(size + 1, np.uint8)[1:].view(np.float32).reshape(shape)


def read_only(shape):
    array = np.ones(shape, np.float32)
    array.flags.writeable = False
    return array


def strided(shape, strides):
    """Return a float32 view of zeros with these strides, counted in elements."""
    return as_strided(np.zeros(1000, np.float32)[200:], shape, [4 * s for s in strides])


def field(shape):
    """Return a view with a stride of 6 bytes, in which every second element is misaligned."""
    return np.zeros(shape, np.dtype([("value", np.float32), ("more", np.int16)]))["value"]


def ctx_and_dz(**options):
    rng = np.random.default_rng(1)
    x = rng.normal(size=SHAPE).astype(np.float32)
    _, ctx = functional.forward(x, weight=np.ones(3, np.float32), bias=np.ones(3, np.float32), **options)
    return ctx, rng.normal(size=SHAPE).astype(np.float32)


def calls_with_dz(ctx, dz, **options):
    """Return the three functions that take dz, each with arguments that are valid except for dz."""
    sums = {"sum_dy": np.zeros(3), "sum_dy_xhat": np.zeros(3), "count": 40}
    calls = [(_core.backward, {"ctx": ctx, "dz": dz, **options})]
    calls.append((_core.backward_apply, {"ctx": ctx, "dz": dz, **sums, **options}))
    if "overwrite" not in options:
        calls.append((_core.backward_reduce, {"ctx": ctx, "dz": dz, **options}))
    return calls
