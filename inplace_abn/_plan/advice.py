"""What to change for less memory: each change is made on a copy of the network, and planned."""

from typing import NamedTuple

from ..layers import ABN, Recompute, Residual, Sequential
from .network import maker_of, with_strategy
from .step import Planner


class Advice(NamedTuple):
    """One change of a network.

    Attributes
    ----------
    change : str
        What to change.
    saves : int
        Bytes by which the peak is lower.
    time : float
        Estimate of the additional time of a step, as a share of a step; 0 or less for none.
    peak : int
        The peak after the change.
    """

    change: str
    saves: int
    time: float
    peak: int

    @property
    def rate(self):
        """Bytes saved per share of time; infinite without additional time."""
        return self.saves / self.time if self.time > 1e-3 else float("inf")


def advice_for(network, strategy, shape, dtype, before, *, optimizer, loss, classes, axis):
    """Return the list of `Advice`, the most bytes per time first.

    Parameters
    ----------
    network
        As for `network.maker_of`.
    strategy : str or None
    shape, dtype
        Of the input.
    before : Step
        The step without a change.
    """
    make = maker_of(network, shape[axis], classes)
    found = []
    for change, apply in _changes(make(strategy), strategy):

        def made(apply=apply):
            net = make(strategy)
            return apply(net) or net

        try:
            step = Planner(made, optimizer, loss).step(shape, dtype)
        except (TypeError, ValueError):
            continue  # such as relu in place
        time = (step.work - before.work) / before.work
        if step.peak < before.peak:
            found.append(Advice(change, before.peak - step.peak, time, step.peak))
    return sorted(found, key=lambda advice: (-advice.rate, -advice.saves))


def _changes(net, strategy):
    """Yield (text, function that changes a network), for the network as it is."""
    if _has_other_strategies(net):
        yield (
            'strategy="inplace": write each activation over its input',
            lambda net: with_strategy(net, "inplace"),
        )
    if any(_is_projection(layer.shortcut) for layer in _blocks(net)):
        yield "run the projections again: Recompute for each shortcut with layers", _recompute_projections
    if not isinstance(net, Sequential):
        return
    for name, layer in net.children():
        if type(layer) is not Sequential or len(layer) < 2:
            continue
        yield f"run {name} again: Recompute instead of Sequential", _recompute_stage(name)
        if sum(isinstance(inner, Residual) for inner in layer) > 1:
            yield f"run each block of {name} again: Recompute(block)", _recompute_each_block(name)


def _has_other_strategies(net):
    """Return True if a normalization has another strategy than "inplace"."""
    return any(layer.strategy != "inplace" for _, layer in net.named_layers() if isinstance(layer, ABN))


def _blocks(net):
    """Return the residual blocks of a network."""
    return [layer for _, layer in net.named_layers() if isinstance(layer, Residual)]


def _is_projection(shortcut):
    """Return True for a shortcut of several layers, a convolution with its normalization."""
    return type(shortcut) is Sequential and len(shortcut) > 1


def _recompute(layers):
    return Recompute(dict(layers.children()))


def _recompute_projections(net):
    """Replace each projection by a `Recompute`."""
    for block in _blocks(net):
        if _is_projection(block.shortcut):
            block.shortcut = _recompute(block.shortcut)


def _recompute_stage(name):
    """Return a function that replaces the `Sequential` of this name by a `Recompute`."""

    def apply(net):
        setattr(net, name, _recompute(getattr(net, name)))

    return apply


def _recompute_each_block(name):
    """Return a function that puts each residual block of the stage of this name into a `Recompute`."""

    def apply(net):
        stage = getattr(net, name)
        for key, layer in list(stage.children()):
            if isinstance(layer, Residual):
                setattr(stage, key, Recompute({"block": layer}))

    return apply
