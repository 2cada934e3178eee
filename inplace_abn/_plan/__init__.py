"""What a training step of a network needs, from shapes alone: nothing is run, and nothing is allocated."""

import sys

import numpy as np

from .._activations import KEEPS
from .._arguments import choice, integer
from ..memory.tables import human, plural
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

    The peak is that of the arrays; a process also has its libraries in memory. A plan needs address space for
    all arrays that exist at the same time, on Windows also room in the page file. While it is made, calls of
    layers in other threads report to it instead of to an active ledger.

    Parameters
    ----------
    network : Layer, str, function or torch.nn.Module
        A network. Or a name of `inplace_abn.models`. Or a function of a strategy that returns a network.
        A module of PyTorch runs on fake tensors.
    input_shape : tuple of int
        Of a batch, such as (32, 3, 224, 224).
    dtype : dtype
        Of the input.
    optimizer : {"sgd", "adam", "adamw"}, function of a list of parameters, or None
        "sgd" has momentum. A function returns an optimizer of `inplace_abn.optim`.
    budget : str, optional
        Memory of the machine, with a unit: "16GiB", "500MB".
    strategies : sequence of str, optional
        None in it stands for the network as it is. Default: those that differ in memory. For a module: None,
        and what `inplace_abn.torch.convert` makes of it: "inplace"; "inplace, recompute",
        with ``recompute_stem`` and ``recompute_projections``; "inplace, leaky_relu", with that activation.
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
    >>> result = plan(net, (8, 3, 32, 32), budget="64MiB", strategies=("standard", "inplace"))
    >>> result["inplace"].step.kept < 0.6 * result["standard"].step.kept
    True
    >>> result["inplace"].largest_batch > result["standard"].largest_batch
    True
    """
    shape = _shape(input_shape)
    budget, dtype = limits.budget_of(budget), np.dtype(dtype)
    _check(optimizer, loss, channel_axis, multiple)
    if classes is not None:
        integer("classes", classes, least=1)
    kind = (
        _Torch(network, shape, dtype, optimizer=optimizer, loss=loss)
        if _is_module(network)
        else _Layers(
            network, shape, dtype, optimizer=optimizer, loss=loss, classes=classes, axis=channel_axis
        )
    )
    result = Plan(_name(network), shape, dtype.name, budget)
    for strategy in kind.strategies if strategies is None else strategies:
        if strategy is not None:
            choice("strategies", strategy, kind.all_strategies)
        result.strategies.append(_of_strategy(kind, strategy, budget, multiple))
    if all(planned.step is None for planned in result.strategies):
        raise ValueError(_joined_reasons(result.strategies))
    first = result.strategies[0]
    if advice and first.step is not None:
        result.advice = kind.advice(None if first.strategy == AS_IT_IS else first.strategy, first.step)
    _explain_what_fits(result)
    return result


def _joined_reasons(strategies):
    """Return why no strategy can be planned; a reason that all share is given once."""
    reasons = list(dict.fromkeys(planned.reason for planned in strategies))
    if len(reasons) == 1:
        return reasons[0]
    return "; ".join(f"{planned.strategy}: {planned.reason}" for planned in strategies)


#: The name of the strategy None.
AS_IT_IS = "as it is"


class _Layers:
    """How networks of layers are planned."""

    strategies, all_strategies = STRATEGIES, tuple(KEEPS)

    def __init__(self, network, shape, dtype, **options):
        self.network, self.shape, self.dtype, self.options = network, shape, dtype, options
        self.axis = options.get("axis", 1)

    def planner(self, strategy):
        """Return the `Planner` of a strategy."""
        return planner_of(self.network, strategy, self.shape, **self.options)

    def advice(self, strategy, before):
        """Return the list of `Advice` for a strategy, whose step is `before`."""
        return advice_for(self.network, strategy, self.shape, self.dtype, before, **self.options)


class _Torch(_Layers):
    """How modules of PyTorch are planned. PyTorch is imported here and nowhere else in the planner."""

    def __init__(self, network, shape, dtype, **options):
        super().__init__(network, shape, dtype, **options)
        from . import torch_step

        self._module, self.strategies = torch_step, tuple(torch_step.STRATEGIES)
        self.all_strategies = tuple(name for name in self.strategies if name is not None)

    def planner(self, strategy):
        """Return the `TorchPlanner` of a strategy."""
        return self._module.TorchPlanner(self.network, strategy, **self.options)

    def advice(self, strategy, before):
        """Return the list of `Advice` for a model as it is, whose step is `before`."""
        if strategy is not None:
            return []
        return self._module.advice_for(self.network, before, self.shape, self.dtype, self.options)


def _is_module(network):
    """Return True for a module of PyTorch, without importing PyTorch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(network, torch.nn.Module)


def _of_strategy(kind, strategy, budget, multiple):
    """Return the `StrategyPlan` of a strategy."""
    result = StrategyPlan(AS_IT_IS if strategy is None else strategy)
    shape, dtype = kind.shape, kind.dtype
    try:
        planner = kind.planner(strategy)
        result.step = planner.step(shape, dtype)
    except ValueError as error:
        result.reason = str(error)
        return result
    if budget is None:
        return result
    axis = kind.axis

    def batch(n):
        return planner.peak(limits.with_batch(shape, n), dtype)

    def size(n):
        return planner.peak(limits.with_size(shape, n, multiple, axis), dtype)

    result.largest_batch = limits.largest(batch, budget, shape[0]) or None
    if len(shape) == 4:
        height = shape[2 if axis == 1 else 1]
        n = limits.largest(size, budget, max(1, height // multiple))
        resized = limits.with_size(shape, n, multiple, axis)
        result.largest_size = (resized[2:] if axis == 1 else resized[1:3]) if n else None
    if result.largest_batch is None:
        least, number = _smallest_peak(planner, shape, dtype)
        result.reason = f"{number} needs {human(least)}, {human(least - budget)} more than the budget"
    return result


def _smallest_peak(planner, shape, dtype):
    """Return the peak of one sample, and its number as text; of two if the network refuses one."""
    try:
        return planner.peak(limits.with_batch(shape, 1), dtype), "one sample"
    except ValueError:
        return planner.peak(limits.with_batch(shape, 2), dtype), "the smallest batch, of 2 samples,"


def _explain_what_fits(result):
    """Add to each strategy with which one sample does not fit what would make it fit."""
    fitting = [planned for planned in result.strategies if planned.largest_batch]
    for planned in result.strategies:
        if planned.step is None or result.budget is None or planned.largest_batch:
            continue
        ways = [
            f'strategy "{other.strategy}" fits {plural(other.largest_batch, "sample")}'
            for other in fitting[:1]
        ]
        if planned.largest_size:
            ways.append("images of {} x {} fit in this batch".format(*planned.largest_size))
        ways += [f"{change.change} saves {human(change.saves)}" for change in result.advice[:2]]
        if ways:
            planned.reason += f"; what helps: {'; '.join(ways)}"


def _shape(shape):
    """Return the shape of a batch as a tuple of int; raise an error for anything else."""
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
    """Return the name of a network for the title."""
    return network if isinstance(network, str) else getattr(network, "__name__", type(network).__name__)
