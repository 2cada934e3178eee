"""Tensors as arrays of the core, without a copy, and the memory layouts that the core accepts."""

import numpy as np
import torch
from torch.autograd import forward_ad

#: dtype of x -> dtype of weight, bias, slope and running statistics in the core
VECTOR_DTYPES = {
    torch.float32: torch.float32, torch.float64: torch.float64, torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
}  # fmt: skip
_NAMES = {
    torch.float32: "float32", torch.float64: "float64", torch.float16: "float16", torch.bfloat16: "bfloat16"
}  # fmt: skip
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def vector(name, tensor, dtype, channels):
    """Return a tensor of one number per channel, contiguous and in the dtype of the core; None for None.

    Raises a ValueError unless it has `channels` elements; if `channels` is None, any number is accepted.
    """
    if tensor is None:
        return None
    if channels is not None and tensor.numel() != channels:
        raise ValueError(
            f"{name} must have shape ({channels},), one number per channel, got {tuple(tensor.shape)}"
        )
    if tensor.dtype is dtype and tensor.is_contiguous():
        return tensor
    return tensor.detach().to(dtype).contiguous()


def copy_back(*pairs):
    """Copy each updated vector to its buffer, unless `vector` returned the buffer itself."""
    for buffer, updated in pairs:
        if updated is not buffer:
            buffer.copy_(updated)


def core_array(tensor):
    """Return a tensor as an array argument of the core: its address, shape, strides and dtype."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), _NAMES[tensor.dtype]


def core_vector(tensor):
    """Return a contiguous tensor of one dimension as an argument of the core; None for None."""
    return None if tensor is None else (tensor.data_ptr(), tensor.shape, (1,), _NAMES[tensor.dtype])


def core_array_like(description, tensor):
    """Return a tensor as an array argument with the shape, strides and dtype of another; None for None."""
    return None if tensor is None else (tensor.data_ptr(), *description[1:])


class _Writeable:
    """The memory of a read-only array, which `torch.from_numpy` would warn about."""

    __slots__ = ("__array_interface__", "array")

    def __init__(self, array):
        self.array = array  # keeps the memory alive
        interface = array.__array_interface__
        self.__array_interface__ = interface | {"data": (interface["data"][0], False)}


def to_tensor(array):
    """Return a tensor that shares the memory of an ndarray, which may be read-only."""
    return torch.from_numpy(array if array.flags.writeable else np.asarray(_Writeable(array)))


def to_gradient(array):
    """Return a gradient that the core has allocated as a tensor; None for None."""
    return None if array is None else torch.from_numpy(array)


def to_array(tensor):
    """Return an ndarray that shares the memory of a contiguous CPU tensor, of any dtype but bfloat16."""
    return tensor.numpy()


def gradients_like(kept, dz, residual, overwrite, overwrite_kept=False):
    """Return memory for the gradients of x and of the residual, of which there may be none.

    overwrite: dz is the memory of one of them. overwrite_kept: so is `kept`, if both have none otherwise.
    """
    if residual is None and overwrite:
        return dz, None
    dx = kept if overwrite_kept else torch.empty_like(kept)
    if residual is None:
        return dx, None
    return dx, dz if overwrite else torch.empty_like(kept)


def is_transformed():
    """Return True inside of a transformation of `torch.func` and in forward-mode differentiation."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_dense(x):
    """Return True if x is contiguous, channels first or channels last."""
    if x.is_contiguous():
        return True
    channels_last = _CHANNELS_LAST.get(x.dim())
    return channels_last is not None and x.is_contiguous(memory_format=channels_last)


def copy_dense(x):
    """Return a copy of x, in the memory format of x if it is dense."""
    return x.detach().clone(memory_format=torch.preserve_format if is_dense(x) else torch.contiguous_format)


def share_storage(tensor, other):
    """Return True if two tensors are of the same storage."""
    return tensor.untyped_storage()._cdata == other.untyped_storage()._cdata


def laid_out_as(tensor, like):
    """Return `tensor` with the strides of `like`, a dense tensor of the same shape: itself if it has them."""
    if tensor.stride() == like.stride():
        return tensor
    return torch.empty_like(like, dtype=tensor.dtype).copy_(tensor.detach())
