"""Autograd functions: batch norm, residual and activation, with one tensor kept for the backward.

"The paper" is Rota Bulò, Porzi, Kontschieder 2018, https://arxiv.org/abs/1712.02616.
"""

from functools import partial

import torch

from . import _kernels
from ._activations import activate
from ._contexts import attach_side_data, detach_side_data
from ._first_order import first_order
from ._saved import Kept, Recipe, note_overwritten, register
from ._tensors import copy_dense, is_dense, laid_out_as
from .ownership import may_overwrite, may_overwrite_kept


class InPlace(torch.autograd.Function):
    """z over x, for activations that have an inverse: scheme (e) of Fig. 2 of the paper.

    x becomes z. With ``overwrite=False``, z is a new tensor and x is not kept.
    """

    saved_parts = ("z", "residual")  # what the ledger calls the saved tensors

    @staticmethod
    def forward(ctx, x, weight, bias, residual, slope, norm, overwrite, has_hooks):
        z = x if overwrite else copy_dense(x)
        if residual is not None:
            residual = laid_out_as(residual, z)
        context = _kernels.forward(z, weight, bias, residual, slope, norm)
        ctx.has_hooks = has_hooks
        ctx.context, side_data = detach_side_data(context)
        if overwrite:
            if has_hooks:
                note_overwritten(x, norm.name)
            ctx.mark_dirty(x)
        if norm.producer is not None:
            recipe = _recompute_recipe(z, weight, bias, residual, slope, norm)
            register(z, recipe, z._version + overwrite)  # mark_dirty raises the version after this function
        ctx.save_for_backward(z, residual, *side_data)
        return z

    @staticmethod
    @first_order
    def backward(ctx, dz):
        overwrite = may_overwrite(dz)
        z, residual, *side_data = ctx.saved_tensors  # raises if one of them was modified
        overwrite_z = ctx.has_hooks and residual is not None and may_overwrite_kept(z)
        context = attach_side_data(ctx.context, side_data) if side_data else ctx.context
        dense = laid_out_as(dz, z)
        overwrite = overwrite or dense is not dz
        gradients = _kernels.backward(context, dense, z, residual, overwrite, overwrite_z)
        return *gradients, None, None, None


class KeepPreActivation(torch.autograd.Function):
    """y = batch norm of x + residual over x, z = activation(y) in a new tensor: for every activation.

    Scheme (c) of Fig. 2 of the paper, but the stored tensor is y, one affine step further than xhat. While
    the hooks of a converted model are active, operations that save z save a recipe that computes it from y.
    With ``overwrite=False``, y is a new tensor and x is not kept.
    """

    saved_parts = ("y", "residual")

    @staticmethod
    def forward(ctx, x, weight, bias, residual, slope, norm, overwrite, has_hooks):
        y = x if overwrite else copy_dense(x)
        if residual is not None:
            residual = laid_out_as(residual, y)
        z, context = _kernels.forward_keeping_y(y, weight, bias, residual, slope, norm)
        ctx.context, side_data = detach_side_data(context)
        if overwrite:
            if has_hooks:
                note_overwritten(x, norm.name)
            torch.autograd.graph.increment_version(x)
        ctx.norm, ctx.has_hooks = norm, has_hooks
        if norm.producer is not None:
            ctx.norm = norm._replace(producer=None)
            alone = norm._replace(activation="identity", param=1.0)
            register(y, _recompute_recipe(y, weight, bias, residual, None, alone))
        ctx.save_for_backward(y, residual, *side_data)
        if has_hooks:
            source = Kept(y) if norm.producer is None else y
            register(z, Recipe(partial(activate, norm.activation, param=norm.param), source))
        return z

    @staticmethod
    @first_order
    def backward(ctx, dz):
        overwrite = may_overwrite(dz)
        y, residual, *side_data = ctx.saved_tensors
        overwrite_y = ctx.has_hooks and residual is not None and may_overwrite_kept(y)
        context = attach_side_data(ctx.context, side_data) if side_data else ctx.context
        dense = laid_out_as(dz, y)
        overwrite = overwrite or dense is not dz
        gradients = _kernels.backward_keeping_y(context, dense, y, residual, ctx.norm, overwrite, overwrite_y)
        return *gradients, None, None, None


# `Function.apply` would look for the transformations of torch.func, which `_dispatch` has excluded.
apply_in_place = super(torch.autograd.Function, InPlace).apply
apply_keep_pre_activation = super(torch.autograd.Function, KeepPreActivation).apply


def evaluate(x, weight, bias, residual, slope, norm, overwrite):
    """Return z without a graph; x is overwritten if `overwrite` is True."""
    z = x if overwrite else copy_dense(x)
    if residual is not None:
        residual = laid_out_as(residual, z)
    if overwrite and not x.is_inference():
        torch.autograd.graph.increment_version(x)
    return _kernels.evaluate(z, weight, bias, residual, slope, norm)


def _recompute_recipe(written, weight, bias, residual, slope, norm):
    """Return the recipe of the tensor that was written over x: run the producer of x and normalize again."""
    (producer, source), device = norm.producer, written.device.type
    autocast = partial(
        torch.autocast, device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
    )
    if norm.training:
        norm = norm._replace(running_mean=None, running_var=None, batches=None, producer=None)

    def run(source, weight, bias, residual, slope, *_):
        with autocast():
            x = producer.forward(source)
        return _kernels.evaluate(x if is_dense(x) else copy_dense(x), weight, bias, residual, slope, norm)

    # `run` has no use for the parameters of the producer; as sources, they are checked for modifications
    tensors = (source, weight, bias, residual, slope, *producer.parameters())
    return Recipe(run, *tensors, is_costly=True)
