"""The host's time for a call on a GPU: forward and backward of a tiny tensor; nothing waits for the GPU."""

import statistics
import time

import torch
from torch import nn

from benchmarks.torch_networks import FORMATS, leaky_relu
from inplace_abn.torch import InPlaceABN

CALLS = 300  # in a round


def measure(dtype, layout, device, rounds):
    """Return the median seconds of forward and backward, and of the forward alone, in turn."""
    x = torch.randn(2, 8, 4, 4, device=device, dtype=getattr(torch, dtype))
    x = x.contiguous(memory_format=FORMATS[layout]).requires_grad_()
    dz, y = torch.randn_like(x), x.detach()
    layers = {"stock": nn.Sequential(nn.BatchNorm2d(8), leaky_relu()), "ours": InPlaceABN(8)}
    calls = {}
    for name, layer in layers.items():
        layer.to(device)
        calls[name, "forward"] = lambda layer=layer: layer(y)
        calls[name, "both"] = lambda layer=layer: _step(layer, x, dz)
    times = {key: [] for key in calls}
    for number in range(rounds + 1):
        for key, call in calls.items():
            _wait(device)
            begin = time.perf_counter()
            for _ in range(CALLS):
                call()
            if number > 0:
                times[key].append((time.perf_counter() - begin) / CALLS)
    row = {"dtype": dtype, "layout": layout}
    for (name, direction), found in times.items():
        row.setdefault(name, {})[direction] = statistics.median(found)
    return row


def _step(layer, x, dz):
    torch.autograd.backward(layer(x.mul(1)), dz)
    for parameter in layer.parameters():
        parameter.grad = None


def _wait(device):
    if device == "cuda":
        torch.cuda.synchronize()
