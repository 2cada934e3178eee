"""Batch norm, sum and leaky ReLU of one batch on a GPU: PyTorch's own operations and `InPlaceABN`."""

import itertools

import torch
import torch.nn.functional as F

from benchmarks.gpu_timing import recording_stream, sets_of, times
from benchmarks.torch_networks import FORMATS
from inplace_abn.torch import InPlaceABN

SLOPE = 0.01
NEAR_KINK = 1e-6


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
    return F.leaky_relu_(y if residual is None else y + residual, SLOPE)


def ours(layer, x, residual):
    """Return the result of a layer, which overwrites x."""
    return layer(x, residual)


def contestants(device, with_compile):
    """Return the functions to compare, by name."""
    found = {"stock": stock, "ours": ours}
    if with_compile and device == "cuda":
        torch._functorch.config.donated_buffer = False  # the backward runs more than once
        found["compiled"] = torch.compile(stock, dynamic=False)
    return found


class Batches:
    """Random batches of one shape, dtype and layout."""

    def __init__(self, shape, dtype, layout, device):
        self.shape, self.device = shape, device
        self.dtype, self.format = getattr(torch, dtype), FORMATS[layout]

    def one(self):
        made = torch.randn(self.shape, device=self.device, dtype=self.dtype)
        return made.contiguous(memory_format=self.format)

    def leaf(self, wanted=True):
        return self.one().requires_grad_() if wanted else None

    def layer(self):
        return InPlaceABN(self.shape[1]).to(self.device)


def measure(shape, dtype, layout, has_residual, device, rounds, with_compile=False):
    """Return the median times of a copy, and of forward and backward of the contestants, in seconds."""
    torch.compiler.reset()  # it stops compiling a function after 8 shapes
    batches = Batches(shape, dtype, layout, device)
    row = {"shape": list(shape), "dtype": dtype, "layout": layout, "residual": has_residual}
    row["errors"] = errors(batches, has_residual)
    sets = sets_of(batches.one().nbytes)
    with recording_stream(device) as stream:
        forwards = {"copy": [copy_call(batches.one(), batches.one()) for _ in range(sets)]}
        backwards = {}
        for name, function in contestants(device, with_compile).items():
            forwards[name] = [forward_call(function, batches, has_residual) for _ in range(sets)]
            backwards[name] = [backward_call(function, batches, has_residual) for _ in range(sets)]
        forward = times(forwards, stream, device, rounds)
        backward = times(backwards, stream, device, rounds)
    row["copy"] = forward["copy"]
    for name in backwards:
        row[name] = {"forward": forward[name], "backward": backward[name]}
    return row


def copy_call(source, target):
    return lambda: target.copy_(source)


def forward_call(function, batches, has_residual):
    """Return a call of the forward on a batch of its own."""
    x, residual, layer = batches.one(), batches.leaf(has_residual), batches.layer()
    return lambda: function(layer, x.detach(), residual)


def backward_call(function, batches, has_residual):
    """Return a call of the backward of a graph of its own, with a gradient that is not overwritten."""
    leaf, residual, dz, layer = batches.leaf(), batches.leaf(has_residual), batches.one(), batches.layer()
    z = function(layer, leaf.clone(memory_format=torch.preserve_format), residual)
    inputs = [leaf, layer.weight, layer.bias] + ([residual] if has_residual else [])
    return lambda: torch.autograd.grad(z, inputs, dz, retain_graph=True)


# ---- errors ------------------------------------------------------------------------------------------------


def errors(batches, has_residual):
    """Return the relative errors of z, dx and dweight, of a layer and of PyTorch, against float64."""
    x, residual, dz = batches.leaf(), batches.leaf(has_residual), batches.one()
    layer = batches.layer()
    with torch.no_grad():
        layer.weight.uniform_(0.5, 1.5)
        layer.bias.uniform_(-0.5, 0.5)
    found = {}
    others = _double(layer), _double(x), _double(residual)
    dz = dz * (stock(*others).abs() > NEAR_KINK).to(dz.dtype)  # rounding may change the sign of y there
    wanted = _results(stock, *others, dz.double())
    for name, function in (("ours", ours), ("stock", stock)):
        got = _results(function, layer, x, residual, dz)
        pairs = zip(("z", "dx", "dweight"), got, wanted, strict=True)
        found[name] = {key: relative(one, other) for key, one, other in pairs}
    return found


def _double(value):
    if isinstance(value, torch.nn.Module):
        copied = InPlaceABN(value.num_features, dtype=torch.float64).to(value.weight.device)
        copied.load_state_dict({key: one.double() for key, one in value.state_dict().items()})
        return copied
    return None if value is None else value.detach().double().requires_grad_()


def _results(function, layer, x, residual, dz):
    z = function(layer, x.clone(memory_format=torch.preserve_format), residual)
    dx, dweight = torch.autograd.grad(z, [x, layer.weight], dz)
    return z.detach(), dx, dweight


def relative(got, wanted):
    """Return the norm of the error divided by that of the result."""
    return ((got.double() - wanted).norm() / wanted.norm()).item()
