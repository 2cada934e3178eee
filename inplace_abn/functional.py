"""Batch normalization and activation on NumPy arrays, in place, forward and backward.

"The paper" is Rota Bulò, Porzi, Kontschieder: In-Place Activated BatchNorm for Memory-Optimized Training of
DNNs (CVPR 2018, https://arxiv.org/abs/1712.02616). Batches are (N, C, *spatial) of 2 to 5 dimensions, or
(N, *spatial, C) with ``channel_axis=-1``, of float32, float64, float16 or ``ml_dtypes.bfloat16``.

All functions here follow these rules:

- Slices of a larger array along N or C are accepted without a copy, and so is a (N, C, *spatial) view of
  channels-last memory, such as ``numpy.moveaxis(nhwc, -1, 1)``. Arrays with other strides are refused,
  because they would need a copy.
- All arguments are checked before the first write: after an exception the arrays are unchanged. A TypeError
  is raised for a wrong type or dtype, a ValueError for everything else; the message says what is expected.
- ``threads=None`` uses `get_num_threads` threads for large batches and one for small ones. The results are
  bitwise identical for any number of threads. The interpreter lock is released for large batches. Other
  threads must not touch the arrays until the call returns: a write corrupts the result, and freeing the
  memory by ``resize(refcheck=False)`` crashes the process.
- A write to an array that a live context keeps, through any view, is refused with a ValueError.

`forward` and `backward` also take arrays of NVIDIA GPUs, such as those of PyTorch and CuPy: docs/gpu.md
has what differs there.

A training step of one layer takes two calls:

>>> import numpy as np
>>> from inplace_abn import functional as abn
>>> x = np.array([[1, 5], [3, 9]], np.float32)
>>> z, ctx = abn.forward(x, activation_param=0.5)
>>> z is x, z.flags.writeable
(True, False)
>>> z.round(2)
array([[-0.5, -0.5],
       [ 1. ,  1. ]], dtype=float32)
>>> dx, dweight, dbias = abn.backward(ctx, np.ones_like(z))
>>> z.flags.writeable
True
"""

from typing import Any, NoReturn

import numpy as np

from . import _core
from ._core import Context, context_from_state, get_num_threads, set_num_threads
from ._keyword_only import hides_others, too_many
from ._results import ChannelSums, Gradients
from ._synchronized import backward_apply, backward_reduce, merge_statistics, normalize, statistics
from ._types import Activation, Batch, ChannelAxis, Mask, Number, Strategy, Threads, Vector

__all__ = [
    "ChannelSums",
    "Context",
    "Gradients",
    "backward",
    "backward_apply",
    "backward_reduce",
    "context_from_state",
    "forward",
    "get_num_threads",
    "info",
    "merge_statistics",
    "normalize",
    "set_num_threads",
    "statistics",
]


def info() -> dict[str, Any]:
    """Return how this package was built, and what it can use on this machine.

    Returns
    -------
    dict
        version; isa_built, isa_usable and isa_active: instruction sets; openmp; threads: the number for
        ``threads=None``; compiler; numpy_api; and cuda, a dict: available, and either reason, why no GPU can
        be used, or driver, nvrtc (versions) and devices (name and compute capability of each).

    Examples
    --------
    >>> info()["isa_usable"][-1], type(info()["cuda"]["available"])
    ('baseline', <class 'bool'>)
    """
    from ._cuda.libraries import describe  # opens the driver: not at import

    return _core.info() | {"cuda": describe()}


def _forward_for(x):
    """Return the forward for an x that is no ndarray: that of GPUs, or that of the core, which refuses x."""
    from ._cuda import arrays  # imported only for arrays of a GPU

    return arrays.forward if arrays.on_gpu(x) else _core.forward


def _backward_for(ctx):
    """Return the backward for a ctx that is not of the core: that of GPUs, or the one that refuses it."""
    from ._cuda import arrays

    return arrays.backward if isinstance(ctx, arrays.DeviceContext) else _core.backward


@hides_others
def forward(
    x: Batch, *others: NoReturn, weight: Vector | None = None, bias: Vector | None = None,
    running_mean: Vector | None = None, running_var: Vector | None = None,
    training: bool = True, momentum: Number = 0.1, eps: Number = 1e-05,
    activation: Activation = "leaky_relu", activation_param: Number = 0.01,
    strategy: Strategy = "inplace", channel_axis: ChannelAxis = 1, residual: Batch | None = None,
    slope: Vector | None = None, mask: Mask | None = None, out: Batch | None = None, hold: bool = True,
    threads: Threads = None,
) -> tuple[Batch, Context]:  # fmt: skip
    """Batch normalization and activation: ``z = activation(weight * xhat + bias + residual)``.

    ``xhat = (x - mean) / sqrt(var + eps)``. mean and var are the mean and biased variance of the batch in
    training, and the running statistics otherwise (section 3.1 of the paper).

    Parameters
    ----------
    x : ndarray of shape (N, C, ...), or (N, ..., C) with ``channel_axis=-1``
        Overwritten by z or xhat, or unchanged, depending on `strategy`.
    weight, bias : ndarray of shape (C,), optional
        float64 for a float64 x, float32 for all others; read only. Any value, including negative ones and
        zero. None means a weight of 1 and a bias of 0.
    running_mean, running_var : ndarray of shape (C,), optional
        Same dtype as `weight`; pass both or neither. Updated in place in training:
        ``running = (1 - momentum) * running + momentum * batch``, with the unbiased variance of the batch.
        Read only otherwise.
    training : bool
        False normalizes with the running statistics.
    momentum : float in [0, 1]
    eps : float > 0
    activation : str
        The last four have no inverse and are refused by the in-place strategies.

        ============  ======================================================
        activation    z, with ``a = activation_param``
        ============  ======================================================
        "identity"    y
        "leaky_relu"  y >= 0: y, else a y
        "prelu"       y >= 0: y, else slope y
        "elu"         y >= 0: y, else a (exp(y) - 1)
        "celu"        y >= 0: y, else a (exp(y/a) - 1)
        "selu"        1.0507... times elu of a = 1.6732...
        "softplus"    log(1 + exp(y))
        "sigmoid"     1 / (1 + exp(-y))
        "tanh"        tanh(y)
        "silu"        y sigmoid(y)
        "gelu"        y (1 + erf(y / sqrt(2))) / 2
        "gelu_tanh"   y (1 + tanh(sqrt(2/pi) (y + 0.044715 y**3))) / 2
        "mish"        y tanh(softplus(y))
        "relu"        max(y, 0)
        "relu6"       min(max(y, 0), 6)
        "hardsigmoid" min(max(y + 3, 0), 6) / 6
        "hardswish"   y hardsigmoid(y)
        ============  ======================================================

        At y = 0 the derivative of leaky_relu, prelu, elu, selu and relu is that of the right side. At their
        kinks relu6 and hardsigmoid have 0, hardswish 0 at -3 and 1 at 3, as in PyTorch.
    activation_param : float
        Slope of leaky_relu below zero, alpha of elu and celu (not 0). Any finite number; positive with the
        in-place strategies, which invert the activation.
    strategy : str
        Which array is kept for the backward (Fig. 2 of the paper), in addition to what the consumer of z
        keeps. "inplace" is another name of "inplace_2". "pre_activation" is not in the paper: it keeps the
        input of the activation, y = weight * xhat + bias + residual. z is computed
        from the stored, rounded y.

        =================  ===================  =================================  ======
        strategy           x                    kept                               Fig. 2
        =================  ===================  =================================  ======
        "standard"         unchanged            x                                  (a)
        "checkpoint"       unchanged            x; `ctx.recompute` returns z       (b)
        "checkpoint_xhat"  overwritten by xhat  xhat; `ctx.recompute` returns z    (c)
        "pre_activation"   overwritten by y     y; `ctx.recompute` returns z       --
        "inplace_1"        overwritten by z     z; xhat = (y - bias) / weight      (d)
        "inplace_2"        overwritten by z     z; formulas in y, no division      (e)
        =================  ===================  =================================  ======
    channel_axis : {1, -1}
    residual : ndarray, optional
        Added to y before the activation. Shape, dtype and memory layout of x; read only. Every strategy keeps
        it for the backward, which subtracts it to recover y from z.
    slope : ndarray of shape (C,) or (1,), optional
        Required for prelu and refused for all others: one per channel, or one for all. Same dtype as
        `weight`, any finite values; read only.
    mask : bool ndarray of shape (N, ...), the shape of x without its channel axis, optional
        True for valid positions, False for padding. Statistics, z and gradients are those of a batch of the
        valid positions alone. At all other positions z and the gradients of x and residual are 0, and x,
        residual and dz are not read: they may be NaN. Any strides; a copy is kept, one bit per position.
    out : ndarray, optional
        z is written to it. Shape, dtype and memory layout of x. Refused by the in-place strategies, which
        write z over x.
    hold : bool
        False: `ctx` neither keeps nor locks the residual, x and what is written over x. The caller passes
        them to the backward unchanged, and may store them elsewhere until then. Such a `ctx` can be copied
        and pickled; ``ctx.state()`` is a dict of the arrays in it, and `context_from_state` makes a context
        from it.
    threads : int, optional
        Number of threads; see the top of this page.

    Returns
    -------
    z : ndarray
        x itself for the in-place strategies, else `out` or a fresh array of x's shape, dtype and memory
        layout.
    ctx : Context
        For `backward`. The arrays that it keeps are read-only (``flags.writeable`` is False) until the
        backward has run, the context is deleted or ``ctx.release()`` is called. ``ctx.saved`` lists the kept
        arrays by role: x, xhat, y or z, the residual and, with the in-place strategies,

        - xhat of the channels whose weight is zero or tiny compared to the bias, also with "pre_activation",
        - xhat of single elements that cannot be recovered from z because the activation is too flat,
        - for silu, gelu, gelu_tanh and mish a branch mask, one bit per element: True if y is left of the
          activation's minimum.

        Weight, bias, slope, mask and statistics are copied, so an update of the weight before the backward
        does not change the gradients.

    Raises
    ------
    TypeError, ValueError
        See the top of this page. For example for a wrong dtype or shape, one value per channel in training,
        overlapping arrays, a read-only x, an activation without inverse for an in-place strategy.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[1.0], [3.0]])
    >>> running_mean, running_var = np.zeros(1), np.ones(1)
    >>> z, ctx = forward(x, running_mean=running_mean, running_var=running_var, activation="identity")
    >>> z.round(3).ravel(), running_mean, running_var
    (array([-1.,  1.]), array([0.2]), array([1.1]))
    >>> {role: array.nbytes for role, array in ctx.saved.items()}
    {'z': 16}

    With a residual, and with an activation that has a minimum:

    >>> x, shortcut = np.array([[1.0], [3.0]]), np.array([[0.5], [0.5]])
    >>> z, ctx = forward(x, residual=shortcut, activation="identity")
    >>> z.round(3).ravel(), shortcut.flags.writeable
    (array([-0.5,  1.5]), False)
    >>> z, ctx = forward(np.array([[1.0], [3.0]]), activation="silu")
    >>> z.round(3).ravel(), {role: array.nbytes for role, array in ctx.saved.items()}
    (array([-0.269,  0.731]), {'z': 16, 'branch_mask': 1})

    Two sequences of lengths 3 and 1:

    >>> x = np.array([[[1.0, 2.0, 3.0]], [[6.0, np.nan, np.nan]]])
    >>> mask = np.arange(3) < np.array([[3], [1]])
    >>> z, ctx = forward(x, mask=mask, activation="identity")
    >>> z.round(2)
    array([[[-1.07, -0.53,  0.  ]],
    <BLANKLINE>
           [[ 1.6 ,  0.  ,  0.  ]]])
    """
    if others:
        raise too_many(forward, others)
    run = _core.forward if isinstance(x, np.ndarray) else _forward_for(x)
    return run(
        x, weight=weight, bias=bias, running_mean=running_mean, running_var=running_var, training=training,
        momentum=momentum, eps=eps, activation=activation, activation_param=activation_param,
        strategy=strategy,
        channel_axis=channel_axis, residual=residual, slope=slope, mask=mask, out=out, hold=hold,
        threads=threads,
    )  # fmt: skip


@hides_others
def backward(
    ctx: Context, dz: Batch, *others: NoReturn, overwrite: bool = False, out: Batch | None = None,
    residual_grad: Batch | None = None, residual_out: Batch | None = None, keep: bool = False,
    kept: Batch | None = None, residual: Batch | None = None, residual_activation: Activation = "identity",
    residual_activation_param: Number = 0.01, threads: Threads = None,
) -> Gradients:  # fmt: skip
    """Gradients of x, weight, bias, slope and residual from dz, the gradient of z (section 3.2 of the paper).

    With ``dy = dz * activation'(y)``, ``dbias = sum(dy)``, ``dweight = sum(dy * xhat)`` and
    ``dx = weight / sqrt(var + eps) * (dy - dbias / m - xhat * dweight / m)`` in training, for the m values of
    a channel; ``dx = weight / sqrt(var + eps) * dy`` otherwise.

    Parameters
    ----------
    ctx : Context
        From `forward`. It is freed, and the arrays that it keeps become writeable again, unless `keep`.
    dz : ndarray
        Shape, dtype and memory layout of x.
    overwrite : bool
        True writes dx over dz and allocates no array of that size.
    out : ndarray, optional
        dx is written to it. Shape, dtype and memory layout of x. It may be `kept` itself.
    residual_grad : ndarray, optional
        Shape, dtype and memory layout of x. The gradient of the residual is added to it instead of written to
        a fresh array. Refused for a forward without residual.
    residual_out : ndarray, optional
        The gradient of the residual is written to it; it may be dz itself if dx goes elsewhere.
    keep : bool
        True: `ctx` can be used for another backward.
    kept, residual : ndarray, optional
        Required after ``forward(..., hold=False)``, and refused otherwise: the array that was x, with what
        forward wrote over it, and the residual; or copies of them.
    residual_activation, residual_activation_param : str, float
        For strategy "pre_activation" with `residual`: that holds the y of another layer, and the residual is
        this activation of it, such as "relu". Any activation but "prelu".
    threads : int, optional
        Number of threads; see the top of this page.

    Returns
    -------
    Gradients
        A tuple of dx, dweight and dbias. dx is a fresh array with the memory layout of x, or dz itself.
        dweight and dbias have shape (C,) and the dtype of the weight, or are None if the forward had none.
        Attributes outside of the tuple: dslope with the dtype and shape of the slope, and dresidual, a fresh
        array like dx or `residual_grad` itself.

    Raises
    ------
    RuntimeError
        For a ctx that is freed or in use, or whose arrays were resized, changed their dtype or were made
        writeable.
    TypeError, ValueError
        See the top of this page. Also for a ctx of `normalize` with statistics of more than its own batch;
        call `backward_reduce` and `backward_apply` instead.

    Examples
    --------
    >>> import numpy as np
    >>> z, ctx = forward(np.array([[1.0], [3.0]]), weight=np.array([2.0]), activation_param=0.5)
    >>> backward(ctx, np.array([[1.0], [1.0]])).dweight.round(4)
    array([0.5])
    >>> ctx.freed
    True

    With a residual, whose gradient is added to an existing gradient:

    >>> z, ctx = forward(np.array([[1.0], [3.0]]), residual=np.zeros((2, 1)), activation="identity")
    >>> shortcut_grad = np.full((2, 1), 0.5)
    >>> gradients = backward(ctx, np.array([[1.0], [2.0]]), residual_grad=shortcut_grad)
    >>> gradients.dresidual is shortcut_grad, shortcut_grad.ravel()
    (True, array([1.5, 2.5]))
    >>> dx, dweight, dbias = gradients

    With arrays that the caller stores meanwhile:

    >>> x = np.array([[1.0], [3.0]])
    >>> z, ctx = forward(x, activation="relu", strategy="pre_activation", hold=False)
    >>> z.round(3).ravel(), x.round(3).ravel(), ctx.nbytes
    (array([0., 1.]), array([-1.,  1.]), 0)
    >>> dx, dweight, dbias = backward(ctx, np.ones((2, 1)), kept=x.copy())
    >>> ctx.freed
    True
    """
    if others:
        raise too_many(backward, others)
    run = _core.backward if isinstance(ctx, Context) else _backward_for(ctx)
    return Gradients(
        *run(
            ctx, dz, overwrite=overwrite, out=out, residual_grad=residual_grad, residual_out=residual_out,
            keep=keep, kept=kept, residual=residual, residual_activation=residual_activation,
            residual_activation_param=residual_activation_param, threads=threads,
        )
    )  # fmt: skip
