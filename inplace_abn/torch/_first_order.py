"""Backwards that raise an error when their gradients are differentiated a second time."""

import functools

import torch

_MESSAGE = (
    b"inplace_abn.torch: the gradients of an in-place normalization cannot be differentiated again "
    b"(double backward); use torch.nn's batch norm there, which inplace_abn.torch.revert(model) restores"
)


def first_order(backward):
    """Decorate the backward of an autograd function: a second differentiation raises a RuntimeError."""

    @functools.wraps(backward)
    def wrapper(ctx, dz):
        if not torch.is_grad_enabled():
            return backward(ctx, dz)
        with torch.no_grad():
            gradients = backward(ctx, dz.detach())
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        refuse = torch._C._functions.DelayedError(_MESSAGE, len(gradients))
        return refuse(*(None if g is None else g.detach().requires_grad_() for g in gradients))

    return wrapper
