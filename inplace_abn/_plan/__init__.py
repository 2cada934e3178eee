"""What a training step of a network needs, from shapes alone: nothing is run, and nothing is allocated."""

import numpy as np

from .._activations import KEEPS
from .._arguments import choice, integer
from ..memory.tables import human
from . import limits
from .advice import advice_for
from .report import Plan, StrategyPlan
from .step import OPTIMIZERS, planner_of

__all__ = ["Plan", "StrategyPlan", "plan"]

#: The strategies that differ in memory.
STRATEGIES = ("standard", "checkpoint", "checkpoint_xhat", "pre_activation", "inplace")


def plan(
    network, input_shape, *, dtype=np.float32, optimizer="sgd", budget=None, strategies=None,
    loss="cross_entropy", classes=None, channel_axis=1, multiple=32, advice=True,
):  # fmt: skip
    """Return what a training step needs with each strategy, and what fits into a budget.

    The layers run on arrays of address space without memory: every allocation, every array kept for the
    backward and every release is that of a step, but no element is computed. Arrays kept are those of the
    ledger to the byte for initial weights; the few elements that cannot be recovered from z (see
    `InPlaceABN`) depend on the data, and are not planned.

    A plan has the peak of the arrays. A process has its libraries in addition.

    Parameters
    ----------
    network : Layer, str or function
        A network. Or a name of `inplace_abn.models`. Or a function of a strategy that returns a network.
    input_shape : tuple of int
        Of a batch, such as (32, 3, 224, 224).
    dtype : dtype
        Of the input.
    optimizer : {"sgd", "adam", "adamw"}, function of a list of parameters, or None
        "sgd" has momentum. A function returns an optimizer of `inplace_abn.optim`.
    budget : str, optional
        Memory of the machine, with a unit: "16GiB", "500MB".
    strategies : sequence of str, optional
        None in it stands for the network as it is. Default: those that differ in memory.
    loss : {"cross_entropy", "mse", None}
        None: the gradient of the result is given.
    classes : int, optional
        For a name; the number of classes.
    channel_axis : {1, -1}
        Of the input.
    multiple : int
        Heights and widths of the largest images are multiples of it.
    advice : bool
        False: do not look for changes, which takes most of the time.

    Returns
    -------
    Plan
        Prints as a table; `Plan.to_html`, `Plan.to_json` and `Plan.plot` write files.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above, or the network does not take this input with any strategy. An
        operation that cannot be followed is named with the path of its layer.

    Examples
    --------
    >>> from inplace_abn import models, plan
    >>> net = models.residual_network(3, 10, widths=(16, 32), rng=0)
    >>> found = plan(net, (8, 3, 32, 32), budget="64MiB", strategies=("standard", "inplace"))
    >>> found["inplace"].step.kept < 0.6 * found["standard"].step.kept
    True
    >>> found["inplace"].largest_batch > found["standard"].largest_batch
    True
    """
    shape = _shape(input_shape)
    budget, dtype = limits.budget_of(budget), np.dtype(dtype)
    _check(optimizer, loss, channel_axis, multiple)
    options = {"optimizer": optimizer, "loss": loss, "classes": classes, "axis": channel_axis}
    found = Plan(_name(network), shape, dtype.name, budget)
    for strategy in STRATEGIES if strategies is None else strategies:
        if strategy is not None:
            choice("strategies", strategy, KEEPS)
        found.strategies.append(_of_strategy(network, strategy, shape, dtype, budget, multiple, options))
    possible = [one for one in found.strategies if one.step is not None]
    if not possible:
        raise ValueError("; ".join(f"{one.strategy}: {one.reason}" for one in found.strategies))
    if advice:
        first = found.strategies[0]
        base = None if first.strategy == AS_IT_IS else first.strategy
        if first.step is not None:
            found.advice = advice_for(network, base, shape, dtype, first.step, **options)
    _explain_what_fits(found)
    return found


#: The name of the strategy None.
AS_IT_IS = "as it is"


def _of_strategy(network, strategy, shape, dtype, budget, multiple, options):
    one = StrategyPlan(AS_IT_IS if strategy is None else strategy)
    try:
        planner = planner_of(network, strategy, shape, **options)
        one.step = planner.step(shape, dtype)
    except ValueError as error:
        one.reason = str(error)
        return one
    if budget is None:
        return one
    axis = options["axis"]

    def batch(n):
        return planner.step(limits.with_batch(shape, n), dtype).peak

    def size(n):
        return planner.step(limits.with_size(shape, n, multiple, axis), dtype).peak

    one.largest_batch = limits.largest(batch, budget, shape[0]) or None
    if len(shape) == 4:
        height = shape[2 if axis == 1 else 1]
        n = limits.largest(size, budget, max(1, height // multiple))
        resized = limits.with_size(shape, n, multiple, axis)
        one.largest_size = (resized[2:] if axis == 1 else resized[1:3]) if n else None
    if one.largest_batch is None:
        least = _least(planner, shape, dtype)
        one.reason = f"one sample needs {human(least)}, {human(least - budget)} more than the budget"
    return one


def _least(planner, shape, dtype):
    """Return the peak of one sample, or of two if the network refuses one."""
    try:
        return planner.step(limits.with_batch(shape, 1), dtype).peak
    except ValueError:
        return planner.step(limits.with_batch(shape, 2), dtype).peak


def _explain_what_fits(found):
    """Add what would make it fit to strategies for which one sample does not fit."""
    others = [one for one in found.strategies if one.largest_batch]
    for one in found.strategies:
        if one.step is None or found.budget is None or one.largest_batch:
            continue
        ways = [f'strategy "{other.strategy}" fits {other.largest_batch} samples' for other in others[:1]]
        if one.largest_size:
            ways.append("images of {} x {} fit in this batch".format(*one.largest_size))
        ways += [f"{change.change} saves {human(change.saves)}" for change in found.advice[:2]]
        if ways:
            one.reason += f"; what helps: {'; '.join(ways)}"


def _shape(shape):
    if isinstance(shape, (str, int)) or len(tuple(shape)) < 2:
        raise ValueError(
            f"input_shape: expected the shape of a batch, such as (32, 3, 224, 224), got {shape!r}"
        )
    return tuple(integer("input_shape", length, least=1) for length in shape)


def _check(optimizer, loss, channel_axis, multiple):
    if optimizer is not None and not callable(optimizer):
        choice("optimizer", optimizer, OPTIMIZERS)
    if loss is not None:
        choice("loss", loss, ("cross_entropy", "mse"))
    choice("channel_axis", channel_axis, (1, -1))
    integer("multiple", multiple, least=1)


def _name(network):
    return network if isinstance(network, str) else getattr(network, "__name__", type(network).__name__)
