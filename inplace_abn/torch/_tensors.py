"""Tensors as arrays of the core, without a copy, and the memory layouts that the core accepts."""

import numpy as np
import torch

try:
    from ml_dtypes import bfloat16
except ImportError:  # PyTorch's own operations take bfloat16 tensors then
    bfloat16 = None

#: dtype of x -> dtype of weight, bias, slope and running statistics in the core
VECTOR_DTYPES = {torch.float32: torch.float32, torch.float64: torch.float64, torch.float16: torch.float32}
if bfloat16 is not None:
    VECTOR_DTYPES[torch.bfloat16] = torch.float32

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def to_array(tensor):
    """Return an ndarray that shares the memory of a CPU tensor; None for None."""
    if tensor is None:
        return None
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(bfloat16)
    return tensor.numpy()


def to_tensor(array):
    """Return a tensor that shares the memory of an ndarray; None for None."""
    if array is None:
        return None
    if bfloat16 is not None and array.dtype == bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def is_dense(x):
    """Return True if x is contiguous, channels first or channels last."""
    if x.is_contiguous():
        return True
    channels_last = _CHANNELS_LAST.get(x.dim())
    return channels_last is not None and x.is_contiguous(memory_format=channels_last)


def copy_dense(x):
    """Return a copy of x, in the memory format of x if it is dense."""
    return x.detach().clone(memory_format=torch.preserve_format if is_dense(x) else torch.contiguous_format)


def laid_out_as(tensor, like):
    """Return `tensor` with the strides of `like`, a dense tensor of the same shape: itself if it has them."""
    if tensor.stride() == like.stride():
        return tensor.detach()
    return torch.empty_like(like, dtype=tensor.dtype).copy_(tensor.detach())
