"""Batch norm, sum and leaky ReLU of one batch on a GPU: PyTorch's own operations and `InPlaceABN`."""

import itertools

import torch
import torch.nn.functional as F

from benchmarks.torch_networks import FORMATS
from benchmarks.torch_timing import in_turn
from inplace_abn.torch import InPlaceABN


def machine(device):
    """Return the device and the versions as one line."""
    if device != "cuda":
        return f"no GPU; PyTorch {torch.__version__}"
    version = torch.version.cuda
    return f"{torch.cuda.get_device_name()}; PyTorch {torch.__version__}, CUDA {version}"


def cases(shapes, dtypes, layouts):
    """Return all combinations of shape, dtype, layout and residual."""
    return itertools.product(shapes, dtypes, layouts, (False, True))


def stock(bn, x, residual):
    """Return the result of PyTorch's own operations."""
    y = F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, True, bn.momentum, bn.eps)
    return F.leaky_relu_(y if residual is None else y + residual, 0.01)


def ours(layer, x, residual):
    """Return the result of a layer, which overwrites x."""
    return layer(x, residual)


def measure(shape, dtype, layout, has_residual, device, rounds):
    """Return the median times of a copy, and of forward and backward of both contestants, in seconds."""

    def batch():
        made = torch.randn(shape, device=device, dtype=getattr(torch, dtype))
        return made.contiguous(memory_format=FORMATS[layout])

    x, copied, dz = batch(), batch(), batch()
    residual = batch().requires_grad_() if has_residual else None
    layer = InPlaceABN(shape[1]).to(device)
    forwards, backwards = {"copy": lambda: copied.copy_(x)}, {}
    for name, call in (("stock", stock), ("ours", ours)):
        own = x.clone(memory_format=torch.preserve_format)
        forwards[name] = lambda call=call, own=own: call(layer, own.detach(), residual)
        leaf = batch().requires_grad_()
        z = call(layer, leaf.clone(memory_format=torch.preserve_format), residual)
        inputs = [leaf, layer.weight, layer.bias] + ([residual] if has_residual else [])
        backwards[name] = lambda z=z, inputs=inputs: torch.autograd.grad(z, inputs, dz, retain_graph=True)
    forward, backward = in_turn(forwards, device, rounds), in_turn(backwards, device, rounds)
    row = {
        "shape": list(shape),
        "dtype": dtype,
        "layout": layout,
        "residual": has_residual,
        "copy": forward["copy"],
    }
    for name in backwards:
        row[name] = {"forward": forward[name], "backward": backward[name]}
    return row
