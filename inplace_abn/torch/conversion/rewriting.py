"""Replace patterns in a graph by fused calls, and products and poolings by those that keep less."""

from torch import fx, nn

from .. import _kernels, recipes
from .._activations import default_param
from ..modules import ABN
from . import nodes
from .patterns import NotFused, batch_norm_nodes, find
from .running_again import is_stem, projection_of, run_again


def take_out_of_place(traces):
    """Replace in-place operations on results of batch norms by those that return new memory.

    A fused batch norm keeps its result, so nothing may overwrite it. Operations are replaced only if no other
    value shares the memory. Modules are only marked, since most of them become part of a fused call; see
    `take_modules_out_of_place`.
    """
    sites = {}
    for trace in traces:
        for node in trace.graph.nodes:
            for value in nodes.overwritten(node) if node.meta.get("trace") is None else []:
                is_separable = isinstance(value, fx.Node) and nodes.is_sole(value)
                of_batch_norm = any(map(nodes.shares_normalized, node.all_input_nodes))
                if node.op == "call_module":
                    sites.setdefault(nodes.callee(node), []).append((node, is_separable, of_batch_norm))
                elif is_separable and of_batch_norm and "out" not in node.kwargs:
                    nodes.make_out_of_place(node)
                    trace.changed = True
    for calls in sites.values():
        if all(is_separable for _, is_separable, _ in calls) and any(
            of_batch_norm for _, _, of_batch_norm in calls
        ):
            for node, _, _ in calls:
                node.meta["out_of_place"] = True


def take_modules_out_of_place(traces):
    """Set `inplace` of the marked modules that are still called to False; return these modules."""
    marked = {
        nodes.callee(node) for trace in traces for node in trace.graph.nodes if "out_of_place" in node.meta
    }
    for module in marked:
        module.inplace = False
    return list(marked)


def rewrite(trace, recompute_stem=False, recompute_projections=False):
    """Rewrite the graph of a trace.

    Parameters
    ----------
    trace : Trace
    recompute_stem, recompute_projections : bool
        As for `convert`.

    Returns
    -------
    found, watched
        `found`: for each batch norm's module, a list with a `Pattern` or the reason why it is left per call.
        `watched`: paths of the modules that the graph no longer calls as the forward does.
    """
    found, watched = {}, set(trace.inlined)
    for node in batch_norm_nodes(trace.graph):
        module = nodes.callee(node)
        try:
            pattern = find(node, trace.escapes)
        except NotFused as reason:
            found.setdefault(module, []).append(str(reason))
            continue
        watched |= {each.target for each in pattern.chain if each.op == "call_module"}
        if pattern.copy is None:
            watched |= set(_producers(node.args[0]))
        _replace(trace.graph, pattern)
        trace.changed = True
        found.setdefault(module, []).append(pattern)
    for node in filter(nodes.is_fused_call, list(trace.graph.nodes)):
        projection = projection_of(node) if recompute_projections else None
        for call in (node if recompute_stem and is_stem(node) else None, projection):
            if call is not None and run_again(trace.graph, call):
                call.meta["pattern"].runs_again = True
    for node in list(trace.graph.nodes):
        if (
            nodes.is_product(node)
            and not nodes.overwritten(node)
            and any(map(nodes.is_normalized, node.args))
        ):
            node.op, node.target = "call_function", recipes.multiply
            node.meta["fused"] = True
            trace.changed = True
        elif _is_max_pool(node) and nodes.is_normalized(node.args[0]):
            watched.add(node.target)
            _replace_max_pool(trace.graph, node)
            trace.changed = True
    return found, watched


def saves_recipes_on_gpu(graph):
    """Return True if a rewritten graph has results that are saved as recipes if the model is on a GPU."""
    return any(
        node.target in (recipes.multiply, recipes.run_again)
        or (nodes.is_fused_call(node) and not _is_inverted_on_gpu(**node.kwargs))
        for node in graph.nodes
    )


def may_save_recipes_on_gpu(module):
    """Return the same for a module that a conversion leaves as it is: `ABN`, or a batch norm after `fuse`."""
    if not isinstance(module, ABN):  # after `fuse`, each call names its own activation
        return True
    return not _is_inverted_on_gpu(module.activation, module.activation_param)


def _is_inverted_on_gpu(activation, activation_param=None, **_):
    param = default_param(activation) if activation_param is None else activation_param
    return _kernels.inverts_activation(activation, param, gpu=True)


def _producers(node):
    """Yield the paths of the modules that make a value that is overwritten."""
    while nodes.is_identity(node):
        yield node.target
        node = node.args[0]
    if node.op == "call_module":
        for path, _ in nodes.callee(node).named_modules(prefix=node.target):
            yield path


def _replace(graph, pattern):
    """Replace the nodes of a pattern by one call of the batch norm."""
    first, last = pattern.chain[0], pattern.chain[-1]
    name, param, slope = pattern.activation
    anchor = max(filter(None, (first, pattern.residual, slope)))
    kwargs = {"activation": name}
    if param is not None:
        kwargs["activation_param"] = param
    if pattern.residual is not None:
        kwargs["residual"] = pattern.residual
    if pattern.copy is not None:
        kwargs["copy_first"] = True
    with graph.inserting_after(anchor):
        if name == "prelu" and slope is None:
            slope = graph.get_attr(f"{pattern.activation_node.target}.weight")
            graph.inserting_after(slope)
        if slope is not None:
            kwargs["slope"] = slope
        call = graph.call_module(first.target, first.args, kwargs)
    call.meta.update(callee=nodes.callee(first), fused=True, pattern=pattern)
    last.replace_all_uses_with(call)
    for node in reversed(pattern.chain):
        graph.erase_node(node)


def _is_max_pool(node):
    module = nodes.callee(node)
    return type(module) is nn.MaxPool2d and not module.return_indices and len(node.args) == 1


def _replace_max_pool(graph, node):
    module = nodes.callee(node)
    window = (module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)
    with graph.inserting_before(node):
        call = graph.call_function(recipes.max_pool2d, (node.args[0], *window))
    node.replace_all_uses_with(call)
    graph.erase_node(node)
