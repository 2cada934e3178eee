"""Replace ReLU and ReLU6 behind batch norms by an activation that has an inverse."""

import torch.nn.functional as F
from torch import nn

from . import activations, nodes
from .batch_norms import with_activation
from .patterns import NotFused, batch_norm_nodes, candidates

_REPLACED = ("relu", "relu6")

#: What `activation=` may be: the module and the function that compute it.
REPLACEMENTS = {
    "leaky_relu": (nn.LeakyReLU, F.leaky_relu),
    "elu": (nn.ELU, F.elu),
    "celu": (nn.CELU, F.celu),
    "selu": (nn.SELU, F.selu),
    "softplus": (nn.Softplus, F.softplus),
    "silu": (nn.SiLU, F.silu),
    "gelu": (nn.GELU, F.gelu),
    "mish": (nn.Mish, F.mish),
}


def check(activation):
    """Raise ValueError for an activation that cannot replace another one."""
    if activation is not None and activation not in REPLACEMENTS:
        raise ValueError(f"activation must be None or one of {', '.join(REPLACEMENTS)}, got {activation!r}")


def _rectifiers(graph):
    """Yield the nodes of ReLU and ReLU6 that follow batch norms."""
    for node in batch_norm_nodes(graph):
        try:
            found = {pattern.activation_node: pattern.activation.name for pattern in candidates(node)}
        except NotFused:
            continue
        yield from (behind for behind, name in found.items() if behind is not None and name in _REPLACED)


def replace_modules(model, traces, activation):
    """Replace the modules of ReLU and ReLU6 behind batch norms, wherever the model has them."""
    make = REPLACEMENTS[activation][0]
    replaced = {}
    for trace in traces:
        for node in _rectifiers(trace.graph):
            if node.op == "call_module":
                replaced.setdefault(nodes.callee(node), make())
        for node in batch_norm_nodes(trace.graph):
            module = nodes.callee(node)
            own = activations.of_module(module.act) if with_activation(module) else None
            if own is not None and own.name in _REPLACED:
                replaced.setdefault(module.act, make())
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child in replaced:
                setattr(parent, name, replaced[child])


def replace_functions(graph, activation):
    """Replace the calls of ReLU and ReLU6 behind batch norms in a graph; return True if there are any."""
    function = REPLACEMENTS[activation][1]
    found = [node for node in _rectifiers(graph) if node.op != "call_module"]
    for node in found:
        node.op, node.target, node.args, node.kwargs = "call_function", function, node.args[:1], {}
    return bool(found)
