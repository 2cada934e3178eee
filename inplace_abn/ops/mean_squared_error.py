"""Mean squared error loss."""

import numpy as np

from .. import _arguments as arguments
from ._blocks import element_blocks, widened
from ._layout import order_of


def forward(ctx, x, target):
    """Mean of ``(x - target)**2`` over all elements, as `torch.nn.functional.mse_loss`.

    Parameters
    ----------
    ctx : LayerContext
    x : ndarray of shape (N, ...)
        float32, float64, float16 or bfloat16; read only, and kept for the backward.
    target : ndarray
        Shape of x; dtype of x, or float32 for a half type. Read only, and kept for the backward.

    Returns
    -------
    loss : float
        Half types are computed in float32. 0 for an empty x.

    Raises
    ------
    TypeError, ValueError
        For other dtypes, and different shapes.

    Examples
    --------
    >>> import numpy as np
    >>> from inplace_abn.layers import LayerContext
    >>> ctx = LayerContext()
    >>> forward(ctx, np.array([1.0, 4.0]), np.array([1.0, 2.0]))
    2.0
    >>> backward(ctx)
    (array([0., 2.]),)
    """
    arguments.batch("x", x, "(N, ...)", ellipsis=True)
    arguments.parameter("target", target, f"{x.shape}", x.dtype)
    arguments.same_shape("target", target, x.shape, "the shape of x")
    ctx.layout, total = order_of(x), 0.0
    values, targets = ctx.layout.in_memory_order(x), ctx.layout.in_memory_order(target)
    for block in element_blocks(values.shape):
        difference = np.subtract(widened(values[block]), widened(targets[block]))
        total += float(np.square(difference, out=difference).sum(dtype=np.float64))
    ctx.save_for_backward(input=x, target=target)
    return total / max(1, x.size)


def backward(ctx, dz=1.0, *, overwrite=False):
    """Gradient of x: ``2 * (x - target) / size * dz``.

    Parameters
    ----------
    ctx : LayerContext
        From `forward`.
    dz : float
        Gradient of the loss.
    overwrite : bool
        Ignored.

    Returns
    -------
    tuple of ndarray
        (dx,): a fresh array in the memory layout and dtype of x.

    Raises
    ------
    TypeError
        If dz is not a number.
    """
    scale = arguments.loss_gradient("dz", dz)
    x, target = ctx.saved["input"], ctx.saved["target"]
    dx, scale = ctx.layout.empty(x.shape, x.dtype), 2 * scale / max(1, x.size)
    values, targets, out = (ctx.layout.in_memory_order(array) for array in (x, target, dx))
    for block in element_blocks(values.shape):
        difference = np.subtract(widened(values[block]), widened(targets[block]))
        out[block] = np.multiply(difference, scale, out=difference)
    return (dx,)
