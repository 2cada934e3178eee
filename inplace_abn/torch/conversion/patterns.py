"""Find batch norms with their sums and activations, and say why one is left or why its input is copied."""

from dataclasses import dataclass

from torch import fx, nn

from ..batch_norm import has_inverse
from . import activations, nodes
from .activations import IDENTITY, Activation
from .analysis import escapes, is_bare
from .batch_norms import is_batch_norm, with_activation


class NotFused(Exception):
    """Raised for a batch norm that stays as it is; the message says why."""


@dataclass
class Pattern:
    """A batch norm with what follows it.

    Attributes
    ----------
    chain
        The nodes that one call replaces: the batch norm, identities, sum, activation.
    residual
        The other value of the sum, or None.
    activation
        `Activation`; "identity" for a batch norm without one.
    activation_node
        The node of the activation behind the batch norm, or None.
    copy
        Why the input is copied first, since it must not be overwritten; None if it is overwritten.
    runs_again
        True if the convolution runs again in the backward.
    """

    chain: list
    residual: fx.Node | None = None
    activation: Activation = IDENTITY
    copy: str | None = None
    activation_node: fx.Node | None = None
    runs_again: bool = False


def find(node, escaping):
    """Return the longest pattern that begins with a batch norm's node.

    Parameters
    ----------
    node : torch.fx.Node
        The call of the batch norm.
    escaping : bool
        True if code that is not traced may receive what the graph returns.

    Raises
    ------
    NotFused
        If the batch norm must stay as it is.
    """
    if len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
        raise NotFused("it is called with other arguments than its input")
    problem = None
    for pattern in candidates(node):
        reason = _why_not(pattern, escaping)
        if reason is None:
            pattern.copy = nodes.why_not_overwritten(node.args[0])
            return pattern
        problem = problem or reason
    raise NotFused(problem)


def candidates(node):
    """Yield patterns, the longest first."""
    module = nodes.callee(node)
    own = _own_activation(module)
    if own != IDENTITY:
        yield Pattern([node], activation=own)
        return
    alone = Pattern([node])
    _skip_identities(alone)
    summed = _with_sum(alone)
    for pattern in (summed, alone):
        if pattern is not None:
            activated = _with_activation(pattern)
            if activated is not None:
                yield activated
            yield pattern
    if len(alone.chain) > 1:
        yield Pattern([node])


def _own_activation(module):
    """Return the activation inside of timm's batch norm, identity for others."""
    if not with_activation(module):
        return IDENTITY
    if type(module.drop) is not nn.Identity:
        raise NotFused(f"{type(module.drop).__name__} follows it inside of {type(module).__name__}")
    found = activations.of_module(module.act)
    if found is None:
        raise NotFused(f"its activation {type(module.act).__name__} is not supported")
    return found


def _skip_identities(pattern):
    user = nodes.only_user(pattern.chain[-1])
    while user is not None and nodes.is_identity(user):
        pattern.chain.append(user)
        user = nodes.only_user(user)


def _with_sum(pattern):
    """Return the pattern continued by the sum that follows it, or None."""
    last = pattern.chain[-1]
    total = nodes.only_user(last)
    if total is None or not nodes.is_sum(total) or nodes.overwritten(total):
        return None
    residual = next((value for value in total.args if value is not last), None)
    if residual is None or nodes.overwriters(residual):
        return None
    first = pattern.chain[0]
    if _is_projection(first) and is_bare(residual) and not _is_projection(nodes.before_identities(residual)):
        return None  # the sum belongs to the other branch
    if _comes_after(residual, first) and (_is_shared(first) or nodes.overwriters(first.args[0])):
        return None  # the call would move behind another of the same batch norm, or a change of its input
    longer = Pattern([*pattern.chain, total], residual)
    _skip_identities(longer)
    return longer


def _is_projection(node):
    """Return True for the batch norm of a convolution whose input is used elsewhere too."""
    return nodes.is_convolution_module(node.args[0]) and nodes.only_user(node.args[0].args[0]) is None


def _with_activation(pattern):
    """Return the pattern continued by the activation that follows it, or None."""
    user = nodes.only_user(pattern.chain[-1])
    found = None if user is None else activations.of_node(user)
    if found is None or user.all_input_nodes[0] is not pattern.chain[-1]:
        return None
    return Pattern([*pattern.chain, user], pattern.residual, found, activation_node=user)


def _comes_after(node, other):
    """Return True if a node is computed after another one."""
    return node > other


def _is_shared(node):
    """Return True if the graph calls the batch norm more than once."""
    module = nodes.callee(node)
    return sum(nodes.callee(other) is module for other in node.graph.nodes) > 1


def _why_not(pattern, escaping):
    """Say why a pattern must not be fused, or return None."""
    last = pattern.chain[-1]
    keeps_result = has_inverse(pattern.activation.name, pattern.activation.param)
    if keeps_result:
        changed = nodes.overwriters(last)
        if changed:
            return f"its result is changed in place by {describe(changed[0])}"
    if pattern.activation == IDENTITY and escaping and escapes(last):
        return "its result is returned to code that is not traced and may change it in place"
    return None


def describe(node):
    """Name what a node calls, for messages."""
    module = nodes.callee(node)
    if module is not None:
        return f"{type(module).__name__} {node.target}"
    return getattr(node.target, "__name__", str(node.target))


def batch_norm_nodes(graph):
    """Return the nodes that call batch norms, in order."""
    return [node for node in graph.nodes if is_batch_norm(nodes.callee(node))]
