"""Batch normalization and activation on NumPy arrays, in place, forward and backward.

"The paper" is Rota Bulò, Porzi, Kontschieder: In-Place Activated BatchNorm for Memory-Optimized Training of
DNNs (CVPR 2018, https://arxiv.org/abs/1712.02616). Batches are (N, C, *spatial) of 2 to 5 dimensions, or
(N, *spatial, C) with ``channel_axis=-1``, of float32, float64, float16 or ``ml_dtypes.bfloat16``.

What goes for every function here:

- Slices of larger arrays along N or C are taken as they are, and so is a (N, C, *spatial) view of
  channels-last memory, such as ``numpy.moveaxis(nhwc, -1, 1)``. Whatever would need a copy is refused.
- Everything is checked before the first write: an exception means untouched arrays. TypeError is for what is
  no array, of another dtype or not a number, ValueError for everything else; the message says what would do.
- ``threads=None`` is `get_num_threads` for large batches and one thread for small ones. The results do not
  depend on it, to the bit. The interpreter lock is released for large batches; the arrays belong to the call
  until it returns: a thread that writes into them spoils the result, one that frees their memory by
  ``resize(refcheck=False)`` crashes the process.
- What a live context keeps is written by no function here, through whatever view: that is a ValueError.

Two calls make a training step of one layer:

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

from . import _core
from ._core import Context, get_num_threads, info, set_num_threads
from ._keyword_only import lists_keywords
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
    "forward",
    "get_num_threads",
    "info",
    "merge_statistics",
    "normalize",
    "set_num_threads",
    "statistics",
]


@lists_keywords
def forward(
    x: Batch, *, weight: Vector | None = None, bias: Vector | None = None,
    running_mean: Vector | None = None, running_var: Vector | None = None,
    training: bool = True, momentum: Number = 0.1, eps: Number = 1e-05,
    activation: Activation = "leaky_relu", activation_param: Number = 0.01,
    strategy: Strategy = "inplace", channel_axis: ChannelAxis = 1, residual: Batch | None = None,
    slope: Vector | None = None, mask: Mask | None = None, threads: Threads = None,
) -> tuple[Batch, Context]:  # fmt: skip
    """Batch normalization and activation: ``z = activation(weight * xhat + bias + residual)``.

    ``xhat = (x - mean) / sqrt(var + eps)``, with mean and biased variance of the batch in training, and
    with the running ones otherwise (paper, section 3.1).

    Parameters
    ----------
    x : ndarray of shape (N, C, ...), or (N, ..., C) with ``channel_axis=-1``
        Overwritten by z or xhat, or kept, as `strategy` says.
    weight, bias : ndarray of shape (C,), optional
        float64 beside a float64 x, float32 beside all others; read only. Any value will do, negative
        and zero as well. None is 1 and 0.
    running_mean, running_var : ndarray of shape (C,), optional
        Same dtype as `weight`; both or none. Updated in place in training, the variance with the unbiased one
        of the batch: ``running = (1 - momentum) * running + momentum * batch``. Read otherwise.
    training : bool
        False normalizes with the running statistics.
    momentum : float in [0, 1]
    eps : float > 0
    activation : str
        relu has no inverse: not for the in-place strategies.

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
        ============  ======================================================
    activation_param : float > 0
        Slope of leaky_relu below zero, alpha of elu and celu.
    strategy : {"inplace", "inplace_1", "inplace_2", "checkpoint_xhat", "checkpoint", "standard"}
        What is kept for the backward (Fig. 2 of the paper). "inplace" is "inplace_2".

        =================  ==============  ==========================  ==============
        strategy           x is            kept, beside z's consumer   Fig. 2
        =================  ==============  ==========================  ==============
        "standard"         left alone      x                           (a)
        "checkpoint"       left alone      x; z from `ctx.recompute`   (b)
        "checkpoint_xhat"  made into xhat  xhat; z likewise            (c)
        "inplace_1"        made into z     z; xhat = (y - bias)/weight (d)
        "inplace_2"        made into z     z; no division              (e)
        =================  ==============  ==========================  ==============
    channel_axis : {1, -1}
    residual : ndarray, optional
        Of the shape, dtype and memory layout of x; read only. Kept for the backward with every strategy: it
        tells the normalized x from z.
    slope : ndarray of shape (C,) or (1,), optional
        For prelu, and for it alone: per channel, or one for all. Same dtype as `weight`, any finite numbers;
        read only.
    mask : bool ndarray of shape (N, ...), that of x without its channels, optional
        True where a position is valid, False where it is padding. Statistics, z and gradients are those of a
        batch of the valid positions alone. Elsewhere z and the gradients of x and residual are 0, and x,
        residual and dz are not read: they may be NaN. Any strides; copied, a bit per position.
    threads : int, optional

    Returns
    -------
    z : ndarray
        x itself for the in-place strategies, else a fresh array of x's shape, dtype and memory layout.
    ctx : Context
        For `backward`. While it lives, the arrays that it keeps are locked (``flags.writeable`` is False):
        until the backward has run, the context is dropped or ``ctx.release()`` is called. ``ctx.saved``
        has all that is kept, by role. Beside x or z, and the residual, this is little: xhat of channels whose
        weight is zero or tiny beside the bias, xhat of single elements that a flat activation would lose and,
        beside z of silu, gelu, gelu_tanh and mish, which have a minimum, on which side of it y was: a bit per
        element. Weight, bias, slope, mask and statistics are copied, so an update of the weight before the
        backward does not change the gradients.

    Raises
    ------
    TypeError, ValueError
        See the top of this page: one value per channel in training, overlapping arrays, a read-only x, ...

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

    The end of a residual block, and an activation with a minimum:

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
    return _core.forward(
        x, weight=weight, bias=bias, running_mean=running_mean, running_var=running_var, training=training,
        momentum=momentum, eps=eps, activation=activation, activation_param=activation_param,
        strategy=strategy,
        channel_axis=channel_axis, residual=residual, slope=slope, mask=mask, threads=threads,
    )  # fmt: skip


@lists_keywords
def backward(
    ctx: Context, dz: Batch, *, overwrite: bool = False, residual_grad: Batch | None = None,
    threads: Threads = None,
) -> Gradients:  # fmt: skip
    """Gradients of all that the forward took, given the gradient dz of z (section 3.2 of the paper).

    Parameters
    ----------
    ctx : Context
        From `forward`; it is freed, and what it kept is unlocked and let go.
    dz : ndarray
        Of the shape, dtype and memory layout of x.
    overwrite : bool
        True writes dx over dz, and then needs no memory of dz's size.
    residual_grad : ndarray, optional
        Of the shape, dtype and memory layout of x: the gradient of the residual is added to it, rather than
        written into a fresh array. For a forward with residual alone.
    threads : int, optional

    Returns
    -------
    Gradients
        dx, a fresh array with the memory layout of x, or dz itself; dweight and dbias of shape (C,) and the
        dtype of the weight, or None where there was none. As attributes that are not unpacked: dslope of that
        dtype and the shape of the slope, and dresidual, a fresh array like dx or `residual_grad` itself.

    Raises
    ------
    RuntimeError
        For a ctx that is freed or in use, or whose arrays were resized, made another dtype or unlocked.
    TypeError, ValueError
        See the top of this page. Also for a ctx of `normalize` with the statistics of more than its own
        batch: that takes `backward_reduce` and `backward_apply`.

    Examples
    --------
    >>> import numpy as np
    >>> z, ctx = forward(np.array([[1.0], [3.0]]), weight=np.array([2.0]), activation_param=0.5)
    >>> backward(ctx, np.array([[1.0], [1.0]])).dweight.round(4)
    array([0.5])
    >>> ctx.freed
    True

    With a residual, whose gradient joins what its array has from elsewhere:

    >>> z, ctx = forward(np.array([[1.0], [3.0]]), residual=np.zeros((2, 1)), activation="identity")
    >>> elsewhere = np.full((2, 1), 0.5)
    >>> gradients = backward(ctx, np.array([[1.0], [2.0]]), residual_grad=elsewhere)
    >>> gradients.dresidual is elsewhere, elsewhere.ravel()
    (True, array([1.5, 2.5]))
    >>> dx, dweight, dbias = gradients
    """
    return Gradients(
        *_core.backward(ctx, dz, overwrite=overwrite, residual_grad=residual_grad, threads=threads)
    )
