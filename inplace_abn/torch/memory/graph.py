"""What saved tensors are for their operations: names from the nodes of autograd's graph."""

import re
from functools import cache

import torch
from torch.utils._pytree import tree_leaves

from .._contexts import roles_of
from .entries import Entry, Holder, Storage, active, held_by, inspection, is_parameter

_MARK = "inplace_abn.torch.memory"
_NAMES = {
    "addmm": "linear",
    "cudnn_batch_norm": "batch_norm",
    "cudnn_convolution": "convolution",
    "max_pool2d_with_indices": "max_pool2d",
    "max_pool3d_with_indices": "max_pool3d",
    "mkldnn_convolution": "convolution",
    "mm": "linear",
    "native_batch_norm": "batch_norm",
    "native_dropout": "dropout",
    "native_group_norm": "group_norm",
    "native_layer_norm": "layer_norm",
}
_PARTS = {
    "input": "input",
    "mat1": "input",
    "mat2": "weight",
    "other": "operand",
    "output": "output",
    "result": "output",
    "self": "input",
}


def describe(result, call):
    """Complete the entries of the nodes behind the result of a module's call.

    `operation` becomes PyTorch's name of the operation, `part` what the tensor is for it, `follows` the batch
    norm that has made an activation's input, directly or before a sum, and `result` the memory of what the
    operation returned, if the module returned it.
    """
    tensors = _tensors(result)
    waiting = [tensor.grad_fn for tensor in tensors]
    while waiting:
        node = waiting.pop()
        if node is None or _MARK in node.metadata:
            continue
        operation = operation_of(node)
        node.metadata[_MARK] = call.module
        result = next((tensor for tensor in tensors if tensor.grad_fn is node), None)
        _describe_node(node, operation, call, result)
        waiting += [following for following, _ in node.next_functions]


def _tensors(result):
    leaves = [result] if isinstance(result, torch.Tensor) else tree_leaves(result)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _describe_node(node, operation, call, result):
    follows, function = _batch_norm_before(node), getattr(type(node), "_forward_cls", None)
    if function is None:
        for name in _saved_names(type(node)):
            for _, entry in _entries(node, f"_saved_{name}"):
                entry.operation, entry.part, entry.follows = operation, _part(operation, name, entry), follows
                entry.result = None if result is None else Storage(result)
        return
    parts = getattr(function, "saved_parts", None)
    if parts is not None and hasattr(node, "context"):
        parts += roles_of(node.context)
    for number, entry in _entries(node, "saved_tensors"):
        entry.operation, entry.part = (operation, "saved tensor") if parts is None else (None, parts[number])
    stored = []
    for name, value in vars(node).items():
        for tensor, _ in held_by(value):
            if not is_parameter(tensor):
                entry = Entry(tensor, call)
                entry.operation, entry.part = (
                    (operation, f"attribute {name!r}") if parts is None else (None, name)
                )
                stored.append(entry)
    if stored:
        vars(node)[_MARK] = Holder(None, stored, tuple(active))  # freed with the node


def _entries(node, attribute):
    """Yield (position, entry) of what a node has saved under an attribute."""
    inspection.holders = holders = []
    try:
        found = getattr(node, attribute)
    except RuntimeError:  # freed by a backward inside of the forward
        return
    finally:
        inspection.holders = None
    found = found if isinstance(found, (tuple, list)) else [found]
    positions = [number for number, value in enumerate(found) if value is not None]
    for number, holder in zip(positions, holders, strict=False):
        for entry in holder.entries:
            yield number, entry


def _batch_norm_before(node):
    """Return the module of the batch norm that has made the first input, directly or before a sum.

    Of a pooling, also the one before an activation.
    """
    before = node.next_functions[0][0] if node.next_functions else None
    if before is not None and operation_of(before) == "add":
        candidates = [branch for branch, _ in before.next_functions]
    else:
        candidates = [before]
    for candidate in candidates:
        if candidate is not None and operation_of(candidate) == "batch_norm":
            return candidate.metadata.get(_MARK)
    return None if before is None or "max_pool" not in operation_of(node) else _batch_norm_before(before)


@cache
def _saved_names(kind):
    return [name.removeprefix("_raw_saved_") for name in dir(kind) if name.startswith("_raw_saved_")]


def operation_of(node):
    """Return the name of a node's operation, such as "convolution"."""
    return _operation(node.name())


@cache
def _operation(name):
    if not re.search(r"Backward\d+$", name):
        return name.removesuffix("Backward")
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=D)(?=[A-Z][a-z])", "_", re.sub(r"Backward\d+$", "", name))
    return _NAMES.get(words.lower(), words.lower())


def _part(operation, name, entry):
    if operation in ("mul", "div", "matmul", "bmm") and name in ("self", "other"):
        return "operand"
    if name in _PARTS:
        return _PARTS[name]
    if not entry.dtype.is_floating_point and not entry.dtype.is_complex:
        return "mask" if entry.dtype in (torch.bool, torch.uint8) else "indices"
    return "statistics" if operation.endswith("_norm") else name.replace("_", " ")
