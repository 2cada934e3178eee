"""The values of a graph: which of them share memory, which are overwritten, and by which operation.

`node.meta["callee"]` is the module that a `call_module` node calls, `node.meta["trace"]` that module's own
trace if it has one, `node.meta["inputs"]` the values for that trace's placeholders.
"""

import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

from . import activations
from .batch_norms import is_batch_norm

ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}
PRODUCTS = {operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_"}
CONCATENATIONS = {torch.cat, torch.concat, torch.concatenate}

_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)
CONVOLUTION_FUNCTIONS = {
    torch.conv1d,
    torch.conv2d,
    torch.conv3d,
    F.conv1d,
    F.conv2d,
    F.conv3d,
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
    F.linear,
}
_NEW_MODULES = (
    *_CONVOLUTIONS,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
)
_NEW_ARITHMETIC = {operator.sub, operator.truediv, torch.sub, torch.div, "sub", "div"}

_OUT_OF_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    F.relu_: F.relu,
    torch.relu_: torch.relu,
}
IN_PLACE_OPERATORS = frozenset(_OUT_OF_PLACE)


def callee(node):
    """Return the module that a node calls, or None."""
    return node.meta.get("callee") if node.op == "call_module" else None


def is_convolution_module(node):
    """Return True if the node calls a convolution or linear layer of `torch.nn` with its input alone."""
    return type(callee(node)) in _CONVOLUTIONS and len(node.args) == 1 and not node.kwargs


def is_fused_call(node):
    """Return True if the node is a fused call of a batch norm."""
    return node.op == "call_module" and "pattern" in node.meta


def only_user(node):
    """Return the user of a node that has one, otherwise None."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def result(graph):
    """Return the argument of the output node: the value that the forward returns."""
    return next(node for node in reversed(graph.nodes) if node.op == "output").args[0]


def placeholders(graph):
    """Return the nodes of the graph's inputs, in order."""
    return [node for node in graph.nodes if node.op == "placeholder"]


def calls(node, targets):
    """Return True if the node calls one of these functions or methods."""
    return node.op in ("call_function", "call_method") and node.target in targets


def is_identity(node):
    """Return True if the node calls `nn.Identity`."""
    return type(callee(node)) is nn.Identity


def is_sum(node):
    """Return True for the sum of two values of the graph, neither of them scaled."""
    return calls(node, ADDITIONS) and _two_values(node)


def is_product(node):
    """Return True for the product of two values of the graph."""
    return calls(node, PRODUCTS) and _two_values(node)


def _two_values(node):
    return len(node.args) == 2 and not node.kwargs and all(isinstance(arg, fx.Node) for arg in node.args)


def before_identities(node):
    """Return the value that reaches the node through `nn.Identity` modules; None if it has other users."""
    while is_identity(node):
        node = node.args[0]
        if only_user(node) is None:
            return None
    return node


def is_new(node):
    """Return True if no other value of the program can share the memory of the node's value."""
    module = callee(node)
    if module is not None:
        inner = node.meta.get("trace")
        if inner is not None:
            value = result(inner.graph)
            return isinstance(value, fx.Node) and is_new(value)
        known = activations.of_module(module)
        return (
            is_batch_norm(module)
            or type(module) in _NEW_MODULES
            or (known not in (None, activations.IDENTITY) and not getattr(module, "inplace", False))
        )
    if overwritten(node):
        return False
    return (
        calls(node, ADDITIONS | PRODUCTS | CONCATENATIONS | CONVOLUTION_FUNCTIONS | _NEW_ARITHMETIC)
        or activations.of_node(node) is not None
        or "fused" in node.meta
    )


def overwritten(node):
    """Return the values that the node's operation overwrites.

    An empty list if `node.meta["out_of_place"]` says that the operation will be replaced by one that returns
    new memory.
    """
    if "out_of_place" in node.meta:
        return []
    if node.op == "call_module":
        inner = node.meta.get("trace")
        if inner is not None:
            inputs = node.meta["inputs"]
            pairs = zip(placeholders(inner.graph), inputs, strict=True)
            return [value for placeholder, value in pairs if overwriters(placeholder)]
        return list(node.args[:1]) if getattr(callee(node), "inplace", False) is True else []
    if node.op == "call_method" and node.target.endswith("_") and not node.target.startswith("__"):
        return list(node.args[:1])
    if node.op != "call_function":
        return []
    if isinstance(node.kwargs.get("out"), fx.Node):
        return [node.kwargs["out"]]
    name = getattr(node.target, "__name__", "")
    if (
        node.target in IN_PLACE_OPERATORS
        or (name.endswith("_") and not name.startswith("_"))
        or _inplace(node)
    ):
        return list(node.args[:1])
    return []


def _inplace(node):
    """Return True for a function of `torch.nn.functional` that is called with `inplace=True`."""
    return node.kwargs.get("inplace") is True or (
        getattr(node.target, "__module__", "") == F.__name__
        and node.target is not F.gelu
        and len(node.args) > 1
        and node.args[-1] is True
        and node.target in activations.FUNCTIONS
    )


def overwriters(node):
    """Return the nodes that overwrite the memory of a node's value, also through views."""
    found = []
    for user in node.users:
        if node in overwritten(user):
            found.append(user)
        elif user.op != "output" and not is_new(user):
            found += overwriters(user)
    return found


def is_sole(node):
    """Return True if the value's only user is one node, and no other value shares its memory."""
    if only_user(node) is None or node.op in ("placeholder", "get_attr"):
        return False
    return is_new(node) or all(is_sole(value) for value in node.all_input_nodes)


def is_normalized(node):
    """Return True if the value is computed from what a batch norm keeps: z, sums and products."""
    module = callee(node)
    if is_batch_norm(module) or "fused" in node.meta:
        return True
    inner = node.meta.get("trace")
    if inner is not None:
        value = result(inner.graph)
        return isinstance(value, fx.Node) and is_normalized(value)
    if activations.of_node(node) is not None:
        return isinstance(node.args[0], fx.Node) and is_normalized(node.args[0])
    if is_sum(node) or is_product(node):
        return any(is_normalized(value) for value in node.args)
    return False


def shares_normalized(node):
    """Return True if the value is, or may share the memory of, one for which `is_normalized` is True."""
    return is_normalized(node) or (not is_new(node) and any(map(shares_normalized, node.all_input_nodes)))


def why_not_overwritten(node):
    """Say why the memory of a batch norm's input must not be overwritten; None if it may be."""
    if only_user(node) is None:
        return "its input is used elsewhere too"
    node = before_identities(node)
    if node is None:
        return "its input is used elsewhere too"
    module = callee(node)
    if calls(node, CONCATENATIONS | CONVOLUTION_FUNCTIONS) or type(module) in _CONVOLUTIONS:
        return None
    if node.op == "placeholder":
        return "its input comes from the caller"
    inner = node.meta.get("trace")
    if inner is not None:
        value = result(inner.graph)
        if isinstance(value, fx.Node) and why_not_overwritten(value) is None:
            return None
    name = type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))
    return f"its input comes from {name}, which may use it later"


def make_out_of_place(node):
    """Change an in-place operation other than a module to the one that returns new memory."""
    if node.op == "call_method":
        node.target = node.target[:-1]
    elif node.target in _OUT_OF_PLACE:
        node.target = _OUT_OF_PLACE[node.target]
    elif "inplace" in node.kwargs:
        node.kwargs = node.kwargs | {"inplace": False}
    else:
        node.args = (*node.args[:-1], False)
