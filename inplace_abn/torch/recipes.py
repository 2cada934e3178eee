"""Operations whose result is computed again when it is needed, instead of being saved.

Each is a function to call in place of PyTorch's own, with the same result and gradients. While a converted
model runs, an operation that saves the result for its backward gets a recipe: a function and its inputs.
"""

import operator

import torch
import torch.nn.functional as F

from ._arguments import Producer
from ._first_order import first_order
from ._hooks import install, uninstall
from ._saved import Recipe, register
from ._tensors import is_transformed

__all__ = ["install", "max_pool2d", "multiply", "run_again", "uninstall"]


def multiply(a, b):
    """Return ``a * b``. Operations that save the product save a and b, which the product needs in any case.

    Examples
    --------
    >>> import torch
    >>> gate = torch.tensor([0.5, 2.0], requires_grad=True)
    >>> multiply(torch.ones(3, 2), gate).sum().backward()
    >>> gate.grad
    tensor([3., 3.])
    """
    product = a * b
    if product.requires_grad and not torch.compiler.is_compiling() and not is_transformed():
        register(product, Recipe(operator.mul, a, b))
    return product


def run_again(producer, normalization, x, **keywords):
    """Return ``normalization(producer(x), **keywords)``, of which nothing but x is kept.

    The producer, its normalization and the residual run again in the backward, which takes their time once
    more: for convolutions of small cost, such as a stem or the projections of residual blocks.

    Parameters
    ----------
    producer : torch.nn.Module
        A convolution or linear layer, which returns the same for the same input.
    normalization : torch.nn.Module
        A batch norm after `fuse`.
    x : Tensor
    **keywords
        Of the fused call: activation, activation_param, residual, slope, copy_first.

    Examples
    --------
    >>> import torch
    >>> from inplace_abn.torch.batch_norm import fuse
    >>> conv, bn = torch.nn.Conv2d(3, 8, 1, bias=False), fuse(torch.nn.BatchNorm2d(8))
    >>> run_again(conv, bn, torch.randn(2, 3, 4, 4), activation="relu").sum().backward()
    """
    return normalization(producer(x), producer=Producer(producer, x), **{"activation": "identity"} | keywords)


def max_pool2d(x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False):
    """Return `torch.nn.functional.max_pool2d`, which keeps x and searches the maxima again in the backward.

    PyTorch's own keeps an int64 index per output as well. x is worth keeping where it has a recipe, or where
    another operation keeps it.

    Examples
    --------
    >>> import torch
    >>> x = torch.arange(16.0).reshape(1, 1, 4, 4).requires_grad_()
    >>> max_pool2d(x, 2).sum().backward()
    >>> x.grad[0, 0, 1]
    tensor([0., 1., 0., 1.])
    """
    stride = kernel_size if stride is None else stride
    window = (_pair(kernel_size), _pair(stride), _pair(padding), _pair(dilation), ceil_mode)
    if torch.compiler.is_compiling() or is_transformed() or not x.requires_grad:
        return F.max_pool2d(x, *window)
    return _MaxPool2d.apply(x, window)


class _MaxPool2d(torch.autograd.Function):
    saved_parts = ("input of max_pool2d",)  # what the ledger calls the saved tensors

    @staticmethod
    def forward(ctx, x, window):
        ctx.window = window
        ctx.save_for_backward(x)
        return F.max_pool2d(x, *window)

    @staticmethod
    @first_order
    def backward(ctx, dz):
        (x,) = ctx.saved_tensors
        _, index = torch.ops.aten.max_pool2d_with_indices(x, *ctx.window)
        return torch.ops.aten.max_pool2d_with_indices_backward(dz, x, *ctx.window, index), None


def _pair(number):
    return [number, number] if isinstance(number, int) else list(number)
