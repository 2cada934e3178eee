"""Convert a model in place: trace it, find the patterns, rewrite the graphs."""

import itertools
from collections import namedtuple

import torch
from torch import nn

from .. import recipes
from ..batch_norm import fuse, is_fused
from ..modules import ABN
from .analysis import Analysis
from .batch_norms import is_batch_norm
from .forward import ConvertedForward, GraphCode
from .patterns import Pattern
from .record import Conversion, attach, rows
from .replacing import check, replace_functions, replace_modules
from .revert import revert
from .rewriting import (
    may_save_recipes_on_gpu,
    rewrite,
    saves_recipes_on_gpu,
    take_modules_out_of_place,
    take_out_of_place,
)
from .running_again import mark_images


def convert(model, *, activation=None, recompute_stem=False, recompute_projections=False):
    """Fuse the batch norms of a model with what follows them: training keeps about half of the activations.

    Batch norm, an optional sum with a residual and the activation become one operation. It writes over its
    input where nothing else needs that, and keeps one array instead of two or three. The model is changed in
    place: its modules, parameters, buffers, hooks and the keys of its state remain. It computes the same
    function with the same gradients to rounding, unless `activation` is given.

    The forwards are traced by `torch.fx`, each module by itself. What cannot be traced runs as before, and
    the modules inside of it are converted. Attributes that a traced forward reads as constants (a dropout
    rate, a switch for checkpointing) keep the values that they have now: set them before. `report` lists what
    was done to each batch norm, `revert` undoes the conversion.

    Parameters
    ----------
    model : torch.nn.Module
        With `torch.nn.BatchNorm1d`, 2d or 3d, or timm's `BatchNormAct2d`. `SyncBatchNorm` is left as it is.
    activation : str, optional
        What replaces each ReLU and ReLU6 that follows a batch norm, such as "leaky_relu", the paper's
        choice. This changes the function of the model. One of "leaky_relu", "elu", "celu", "selu",
        "softplus", "silu", "gelu", "mish". None: every activation stays.
    recompute_stem : bool
        Run the first convolution again in the backward, instead of keeping its normalized result.
    recompute_projections : bool
        The same for convolutions on the shortcuts of residual blocks.

    Returns
    -------
    torch.nn.Module
        `model`.

    Raises
    ------
    TypeError
        If `model` is no module, or is a batch norm itself.
    ValueError
        If `activation` is not one of the names above.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from inplace_abn.torch import convert, report
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
    >>> model = convert(model)
    >>> report(model).rows[0].state
    'fused'

    References
    ----------
    Rota Bulò, Porzi, Kontschieder: In-Place Activated BatchNorm for Memory-Optimized Training of DNNs.
    CVPR 2018.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if is_batch_norm(model):
        raise TypeError("model is a batch norm; convert the module that calls it")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("model is a ScriptModule; convert it before torch.jit.script")
    check(activation)
    revert(model)
    are_fused = [child for child in model.modules() if is_fused(child) or isinstance(child, ABN)]
    analysis = Analysis(model)
    traces = analysis.reached()
    if activation is not None:
        replace_modules(model, traces, activation)
        analysis = Analysis(model)
        traces = analysis.reached()
    take_out_of_place(traces)
    mark_images(model, traces)
    found, rewritten = _rewrite_all(traces, activation, recompute_stem, recompute_projections)
    attach(model, Conversion(rows(model, found, analysis.refusals), take_modules_out_of_place(traces)))
    names = {module: name for name, module in model.named_modules()}
    for (owner, form), modes in rewritten.items():
        _set_forward(owner, names[owner], form, modes)
    for module, calls in found.items():
        if any(isinstance(call, Pattern) for call in itertools.chain(*calls.values())):
            fuse(module, names[module])
    saves_recipes = any(map(may_save_recipes_on_gpu, are_fused))
    saves_recipes = saves_recipes or any(saves_recipes_on_gpu(trace.graph) for trace in traces)
    recipes.install(model, also_on_gpu=saves_recipes)
    return model


def _rewrite_all(traces, activation, *recompute):
    """Rewrite the graphs.

    Returns
    -------
    found, rewritten
        `found`: {batch norm: {training: [`Pattern` or reason, per call]}}. `rewritten`: {(module, form of
        call): {training: `_Rewritten`}}, of modules that changed.
    """
    found, rewritten = {}, {}
    for trace in traces:
        replaced = activation is not None and replace_functions(trace.graph, activation)
        unfused = GraphCode(trace.graph, type(trace.owner).__name__) if replaced else None
        calls, watched = rewrite(trace, *recompute)
        for module, results in calls.items():
            found.setdefault(module, {}).setdefault(trace.training, []).extend(results)
        if trace.changed:
            code = GraphCode(trace.graph, type(trace.owner).__name__)
            rewritten.setdefault((trace.owner, trace.form), {})[trace.training] = _Rewritten(
                trace, code, unfused, watched
            )
    return found, rewritten


_Rewritten = namedtuple("_Rewritten", "trace code unfused watched")


def _set_forward(owner, name, form, modes):
    """Give a module the rewritten graphs for one form of call."""
    if "forward" not in vars(owner):
        owner.forward = ConvertedForward(owner, name)
    equal = len(modes) == 2 and modes[True].code.source == modes[False].code.source
    shared = modes[True] if equal else None
    codes = {training: ((shared or mode).code, (shared or mode).unfused) for training, mode in modes.items()}
    watched = set().union(*(mode.watched for mode in modes.values()))
    inlined = [] if equal else [child for mode in modes.values() for child in mode.trace.inlined.values()]
    owner.forward.add(form, codes, watched, inlined)
