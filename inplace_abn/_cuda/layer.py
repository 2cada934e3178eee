"""A layer's calls on a GPU, on addresses: for `inplace_abn.torch` and for the functions on device arrays."""

from functools import lru_cache

import numpy as np

from .. import _core
from .kernels import DTYPES, KEEPS, device_info, load, macros

# Activations that "inplace" inverts on a GPU: those where every z determines y, so that no single element
# needs a saved xhat. "pre_activation" and the strategies that keep x or xhat support all activations.
INPLACE_ON_GPU = "identity", "leaky_relu", "prelu"

STORE_OWN, READ_TOTAL = 1, 2  # pass.h

# A channel with a greater |bias / weight| is guarded (csrc/guard.c).
MOST_BIAS = {"float32": 64.0, "float64": 2.0**20, "float16": 4.0, "bfloat16": 4.0}


class Layer:
    """Kernels for batches of one shape on one device. Make it with `layer`, which caches them.

    Arrays are addresses (int), or objects with the method ``data_ptr``; None where there is no array. Those
    of the batch's size have no gaps; those of a number per channel are float64 for a float64 batch, float32
    for all others. `saved` and `scratch` are memory of the device of `saved_bytes` and `scratch_bytes`; the
    forward's `saved` is for the backward, `scratch` is free again once the stream has run the call. Calls
    return at once; nothing waits for the device.

    Attributes
    ----------
    saved_bytes, scratch_bytes : int
    most_bias : float
        A channel with a greater ``abs(bias / weight)`` is guarded: its xhat is kept beside y.
    slot_bytes : int
        Bytes of a channel in the side buffer ``xhat`` of guarded channels.
    """

    def __init__(self, device, dtype, shape, channels_last, activation, strategy, residual, guard):
        multiprocessors = device_info(device)[3]
        index = DTYPES.index(dtype)
        width, columns = _core._cuda_layout(index, shape, channels_last, multiprocessors)
        options = macros(
            dtype, activation, strategy, residual=residual, guard=guard, width=width, columns=columns
        )
        plan = _core._CudaPlan(load(device, options), index, shape, channels_last, multiprocessors)
        self.saved_bytes, self.scratch_bytes = plan.saved_bytes, plan.scratch_bytes
        self.most_bias = MOST_BIAS[dtype]
        self.slot_bytes = shape[0] * shape[2] * (8 if dtype == "float64" else 4 if dtype == "float32" else 2)
        # forward(stream, x, z, residual, weight, bias, slope, running_mean, running_var, batches, saved,
        #         scratch, xhat, report, capacity, training, momentum, eps, param, most_bias)
        # x is overwritten by xhat or y if the strategy keeps that. For "inplace", z may be x. batches: an
        # int64 that a training call increments. report: memory of the host for the number of guarded
        # channels; xhat has slots for `capacity` of them.
        self.forward = plan.forward
        # backward(stream, kept, dz, residual, dx, dresidual, dweight, dbias, dslope, saved, scratch, xhat,
        #          training, param)
        # dx may be dz, or kept.
        self.backward = plan.backward
        # Both take three more arguments for synchronized statistics: exchange, exchanged, count. exchanged:
        # 2 x channels float64. STORE_OWN stores mean and biased variance there, in the backward the sums of
        # dy and dy * xhat; READ_TOTAL reads those of all batches, of `count` elements per channel.


@lru_cache(maxsize=4096)
def layer(device, dtype, shape, channels_last, activation, strategy, residual, guard):
    """Return the `Layer` of a combination, compiling its kernels if they are not in the cache.

    Parameters
    ----------
    device : int
    dtype : {"float32", "float64", "float16", "bfloat16"}
    shape : tuple of int
        (images, channels, positions).
    channels_last : bool
    activation : str
    strategy : str
        "inplace" for activations of `INPLACE_ON_GPU`; "pre_activation", "checkpoint_xhat" and "standard" for
        all.
    residual, guard : bool
        Whether calls have a residual, and a side buffer for guarded channels.

    Raises
    ------
    ValueError
        For an activation that the strategy does not support on a GPU.
    RuntimeError
        Without driver or NVRTC.
    """
    if KEEPS[strategy] == 0 and activation not in INPLACE_ON_GPU:
        raise ValueError(
            f"strategy {strategy!r} on a GPU supports {', '.join(INPLACE_ON_GPU)}, got {activation!r}; "
            "'pre_activation' keeps as many bytes and supports every activation"
        )
    return Layer(device, dtype, shape, channels_last, activation, strategy, residual, guard)


def guarded_channels(weight, bias, slope, dtype, strategy):
    """Return how many channels need a slot of the side buffer, as the kernels decide.

    weight, bias and slope are arrays of the host, or None. With a residual that is much larger than the
    weight, the device may need more.
    """
    if KEEPS[strategy] not in (0, 3):
        return 0
    size = np.abs(np.asarray(1.0 if weight is None else weight, np.float64))
    offset = np.abs(np.asarray(0.0 if bias is None else bias, np.float64))
    safe = (offset <= MOST_BIAS[dtype] * size) & (size >= 2.0**-100) & (size <= 2.0**100)
    if slope is not None and KEEPS[strategy] == 0:
        safe = safe & (np.asarray(slope) > 1e-30)
    return int(np.size(safe) - np.count_nonzero(safe))
