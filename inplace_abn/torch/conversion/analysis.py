"""Trace the modules of a model, each by itself, and find out which of them are called with what.

A child stays a call in its parent's graph unless a pattern crosses its border: it returns a batch norm's
result that its parent adds to or activates, its first operation is the activation or the batch norm of what
the parent passes to it, or it multiplies a batch norm's result (squeeze-and-excitation).
"""

from contextlib import suppress
from functools import partial

from torch import fx, nn

from . import activations, nodes
from .arguments import Call, NoForm, parameters, usual_call
from .batch_norms import is_batch_norm, with_activation
from .tracing import Untraceable, trace

MODES = (True, False)


class Trace:
    """The graph of one module, for one form of call, in one mode."""

    def __init__(self, owner, form, training, graph, inlined):
        self.owner = owner
        self.form = form
        self.training = training
        self.graph = graph
        self.inlined = inlined
        #: True if code that is not traced may receive the result.
        self.escapes = False
        #: True if the graph was rewritten.
        self.changed = False

    def calls(self):
        """Return the nodes that call a traced child."""
        return [node for node in self.graph.nodes if node.meta.get("trace") is not None]


class _Missing(BaseException):
    """A child must be traced before its parent."""

    def __init__(self, child, call):
        self.child = child
        self.call = call


class Analysis:
    """All traces of a model, and which of them are reached from its root."""

    def __init__(self, root):
        self.root = root
        self.contains = {
            module: any(is_batch_norm(child) for child in module.modules()) for module in root.modules()
        }
        self._traces = {}
        #: Why a module has no trace for its usual call, by module.
        self.refusals = {}

    # ---------------------------------------------------------------- traces of single modules

    def trace(self, module, call, training):
        """Return the trace of a module, or None if there is none."""
        key = (module, call.form, training)
        if key not in self._traces:
            self._trace_children(module, training)
        while key not in self._traces:
            try:
                self._traces[key] = self._inline_crossed(module, call, training)
            except _Missing as missing:
                self.trace(missing.child, missing.call, training)
            except (Untraceable, NoForm) as error:
                self.refusals.setdefault(module, str(error))
                self._traces[key] = None
        return self._traces[key]

    def _trace_children(self, module, training):
        """Trace the children in their usual form, before the parent, which starts again for others."""
        for child in module.children():
            if isinstance(child, (nn.ModuleList, nn.ModuleDict)) and type(child).forward is nn.Module.forward:
                self._trace_children(child, training)
            elif self._is_traced(child):
                with suppress(NoForm, TypeError, ValueError):
                    self.trace(child, usual_call(child), training)

    def _inline_crossed(self, module, call, training):
        """Trace a module; repeat it with those children inlined whose border a pattern crosses."""
        if "forward" in vars(module):
            raise Untraceable("its forward was replaced")
        inlined = set()
        decide = partial(self._decide, inlined, training)
        while True:
            graph, through = trace(module, call, training, decide)
            result = Trace(module, call.form, training, graph, through)
            crossed = {node.meta["callee"] for node in result.calls() if is_crossed(node)}
            if not crossed:
                return result
            inlined |= crossed

    def _decide(self, inlined, training, child, args, kwargs):
        """Return None to inline a child, or the `meta` of the node that calls it."""
        if child in inlined:
            return None
        if not self._is_traced(child):
            return {}
        try:
            call = Call(parameters(child), args, kwargs)
        except (NoForm, TypeError):
            return {}
        key = (child, call.form, training)
        if key not in self._traces:
            raise _Missing(child, call)
        inputs = [tensor.node for tensor in call.tensors] if self._traces[key] is not None else []
        if not all(hasattr(tensor, "node") for tensor in call.tensors):
            return {}
        return {"trace": self._traces[key], "inputs": inputs, "key": key}

    def _is_traced(self, child):
        """Return False for modules that stay calls whatever is inside of them."""
        if is_batch_norm(child) or type(child) is nn.Identity:
            return False
        builtin = type(child).__module__.startswith("torch.nn.modules.")
        return self.contains.get(child, False) or not builtin or type(child) is nn.Sequential

    # ---------------------------------------------------------------- traces that are reached

    def reached(self):
        """Return the traces of modules that a call of the root reaches, callees first.

        Of a module without a trace, each child is taken to be called in its usual form. So is a module that
        no trace calls.
        """
        self._order, self._followed, self._touched = [], set(), set()
        self._visit(self.root)
        for module in self.root.modules():
            if self.contains[module] and self._touched.isdisjoint(module.modules()):
                self._visit(module)
        _propagate_escapes(self._order)
        return self._order

    def _visit(self, module):
        """Follow the usual call of a module whose caller is not traced."""
        self._touched.add(module)
        if is_batch_norm(module) or not self.contains[module]:
            return
        try:
            call = usual_call(module)
            traces = [self.trace(module, call, training) for training in MODES]
        except (NoForm, TypeError, ValueError) as error:
            self.refusals.setdefault(module, str(error))
            traces = [None]
        for reached in traces:
            if reached is not None:
                reached.escapes = True
                self._follow(reached)
        if None in traces:
            for child in module.children():
                self._visit(child)

    def _follow(self, caller):
        """Follow the calls in a trace."""
        if caller in self._followed:
            return
        self._followed.add(caller)
        self._touched |= {caller.owner, *caller.inlined.values()}
        for node in caller.graph.nodes:
            module = nodes.callee(node)
            if node.meta.get("trace") is not None and self.contains[module]:
                self._follow(node.meta["trace"])
            elif module in self.contains:
                self._visit(module)
        self._order.append(caller)


def _propagate_escapes(order):
    """Mark the traces whose result an escaping trace returns."""
    for caller in reversed(order):  # callers first
        for node in caller.calls():
            inner = node.meta["trace"]
            inner.escapes = inner.escapes or (caller.escapes and escapes(node))


def escapes(node):
    """Return True if the forward returns the node's value or something that shares its memory."""
    return any(user.op == "output" or (not nodes.is_new(user) and escapes(user)) for user in node.users)


# -------------------------------------------------------------------- crossed borders


def is_crossed(node):
    """Return True if a pattern crosses the border of the child that the node calls."""
    inner = node.meta["trace"]
    return _joins_after(node, inner) or any(
        _joins_before(value, placeholder) or _is_scaled(value, placeholder, inner)
        for value, placeholder in zip(node.meta["inputs"], nodes.placeholders(inner.graph), strict=True)
    )


def is_bare(node):
    """Return True if the value is the result of a batch norm without activation, here or in a child."""
    if not isinstance(node, fx.Node):
        return False
    node = nodes.before_identities(node)
    if node is None:
        return False
    module = nodes.callee(node)
    if is_batch_norm(module):
        return not with_activation(module) or type(module.act) is nn.Identity
    inner = node.meta.get("trace")
    return inner is not None and is_bare(nodes.result(inner.graph))


def _joins_after(node, inner):
    """Return True if the child returns a batch norm's result that is added to or activated next."""
    return is_bare(nodes.result(inner.graph)) and _joins(after_identities(node))


def after_identities(node):
    """Return the only user of a value behind any `nn.Identity`, or None."""
    user = nodes.only_user(node)
    while user is not None and nodes.is_identity(user):
        user = nodes.only_user(user)
    return user


def _joins(user):
    """Return True if a batch norm's result can be fused with its user, or a child's first operation."""
    if user is None:
        return False
    if nodes.is_sum(user) or activations.of_node(user) is not None:
        return True
    inner = user.meta.get("trace")
    return inner is not None and any(
        after is not None and not nodes.is_sum(after) and _joins(after)
        for after in map(after_identities, nodes.placeholders(inner.graph))
    )


def _joins_before(value, placeholder):
    """Return True if the child begins with the activation or the batch norm of a value."""
    user = after_identities(placeholder)
    if user is None:
        return False
    if is_batch_norm(nodes.callee(user)):
        return nodes.why_not_overwritten(value) is None
    if activations.of_node(user) is not None:
        return nodes.only_user(value) is not None and is_bare(value)
    inner = user.meta.get("trace")
    if inner is None:
        return False
    pairs = zip(user.meta["inputs"], nodes.placeholders(inner.graph), strict=True)
    return any(given is placeholder and _joins_before(value, inside) for given, inside in pairs)


def _is_scaled(value, placeholder, inner):
    """Return True if the child multiplies a batch norm's result and returns the product."""
    returned = nodes.result(inner.graph)
    if not isinstance(returned, fx.Node) or not nodes.is_normalized(value):
        return False
    if nodes.is_product(returned):
        return placeholder in returned.args
    deeper = returned.meta.get("trace")
    if deeper is None:
        return False
    pairs = zip(returned.meta["inputs"], nodes.placeholders(deeper.graph), strict=True)
    return any(given is placeholder and _is_scaled(value, inside, deeper) for given, inside in pairs)
