"""Convolutions whose normalized result is computed again in the backward: of the stem and of projections."""

from torch import fx

from .. import recipes
from . import nodes


def mark_images(root, traces):
    """Mark the placeholders that stand for the inputs of the root: `node.meta["image"]` is True.

    A placeholder of a child is marked if every call passes such an input.
    """
    passed = {}
    for trace in reversed(traces):  # callers first
        for placeholder in nodes.placeholders(trace.graph):
            if trace.owner is root or all(passed.get(placeholder, [False])):
                placeholder.meta["image"] = True
        for node in trace.calls():
            inside = nodes.placeholders(node.meta["trace"].graph)
            for value, placeholder in zip(node.meta["inputs"], inside, strict=True):
                passed.setdefault(placeholder, []).append("image" in value.meta)


def is_stem(call):
    """Return True if a fused call normalizes a convolution of an input of the root."""
    convolution = call.args[0]
    return nodes.is_convolution_module(convolution) and "image" in convolution.args[0].meta


def projection_of(call):
    """Return the fused call that makes the residual of this one from a convolution alone, or None."""
    residual = call.kwargs.get("residual")
    if not isinstance(residual, fx.Node) or not nodes.is_fused_call(residual):
        return None
    alone = residual.kwargs["activation"] == "identity" and "residual" not in residual.kwargs
    return residual if alone and nodes.is_convolution_module(residual.args[0]) else None


def run_again(graph, call):
    """Replace a convolution and its fused call by one that keeps the input of the convolution alone."""
    convolution = call.args[0]
    (x,) = convolution.args
    if nodes.only_user(convolution) is None or nodes.overwriters(x):
        return False
    with graph.inserting_before(call):
        modules = [graph.get_attr(node.target) for node in (convolution, call)]
        both = graph.call_function(recipes.run_again, (*modules, x), dict(call.kwargs))
    both.meta.update(fused=True, pattern=call.meta["pattern"])
    call.replace_all_uses_with(both)
    for node in (call, convolution):
        graph.erase_node(node)
    return True
