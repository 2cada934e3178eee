"""Losses: cross entropy and mean squared error."""

import math

import numpy as np

from .._arguments import choice, fraction, integer
from .._dtypes import compute_dtype
from ..ops import cross_entropy, mean_squared_error
from . import nonfinite
from .base import OperationLayer


class _Loss(OperationLayer):
    """Base of the losses: a call returns a float, and raises an error if it is not finite."""

    inputs_without_gradient = (1,)  # the target

    def backward(self, dz=1.0, *, call=None, overwrite=False):
        """Return the gradient of the first input for a gradient dz of the loss; see `Layer.backward`."""
        found = super().backward(dz, call=call, overwrite=overwrite)
        return found[0] if isinstance(found, tuple) else found

    def _finite(self, loss):
        """Return the loss if it is finite. Otherwise raise an error that names the first non-finite array."""
        if math.isfinite(loss):
            return loss
        if not nonfinite.watching:
            advice = "run this step inside inplace_abn.layers.watch_nonfinite() to find the layer"
        else:
            advice = nonfinite.report()
        raise FloatingPointError(f"the loss is {loss}; {advice}")


class CrossEntropy(_Loss):
    """Cross entropy of scores and labels of samples or pixels, as `torch.nn.CrossEntropyLoss`.

    The mean of ``-log(softmax(scores)[label])`` over all labels except `ignore_index`. It is computed by
    ``loss = criterion(scores, target)`` and ``dscores = criterion.backward()``. If all labels equal
    `ignore_index`, loss and gradients are 0, where PyTorch returns NaN.

    Scores have the shape (N, C, ...), or (N, ..., C) with ``channel_axis=-1``; labels are integers of the
    shape (N, ...).

    Parameters
    ----------
    ignore_index : int
        Label of samples or pixels that are ignored.
    weight : ndarray of shape (C,), optional
        Weight of each class in the mean, at least 0.
    label_smoothing : float in [0, 1]
        Part of the target distribution that is uniform over all classes.
    channel_axis : {1, -1}
        Axis of the classes.

    Raises
    ------
    FloatingPointError
        In a call, if the loss is not finite. Inside `inplace_abn.layers.watch_nonfinite`, the message names
        the first layer with a non-finite result.
    TypeError, ValueError
        In a call, if labels are out of range, or shapes or dtypes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> criterion = CrossEntropy()
    >>> round(float(criterion(np.zeros((2, 4)), np.array([1, 3]))), 4)
    1.3863
    >>> criterion.backward()
    array([[ 0.125, -0.375,  0.125,  0.125],
           [ 0.125,  0.125,  0.125, -0.375]])
    """

    operation = cross_entropy

    def __init__(self, ignore_index=-100, *, weight=None, label_smoothing=0.0, channel_axis=1):
        self.ignore_index = integer("ignore_index", ignore_index, least=-(1 << 62))
        self.weight = None if weight is None else np.array(weight)
        self.label_smoothing = fraction("label_smoothing", label_smoothing)
        self.channel_axis = choice("channel_axis", channel_axis, (1, -1))

    def forward(self, ctx, scores, target):
        """Return the loss, a float.

        Parameters
        ----------
        ctx : LayerContext
        scores : ndarray of shape (N, C, ...)
        target : ndarray of integers of shape (N, ...)
        """
        weight = self.weight
        if weight is not None and isinstance(scores, np.ndarray):
            weight = weight.astype(compute_dtype(scores.dtype))
        return self._finite(
            cross_entropy.forward(
                ctx, scores, target, weight=weight, ignore_index=self.ignore_index,
                label_smoothing=self.label_smoothing, channel_axis=self.channel_axis,
            )
        )  # fmt: skip

    def extra_repr(self):
        """Return the arguments."""
        weight = "" if self.weight is None else f", weight of shape {self.weight.shape}"
        smoothing = f", label_smoothing={self.label_smoothing}" if self.label_smoothing else ""
        return f"ignore_index={self.ignore_index}{weight}{smoothing}"


class MSELoss(_Loss):
    """Mean squared error, ``mean((x - target)**2)`` over all elements, as `torch.nn.MSELoss`.

    x and target have the same shape and dtype. The target gets no gradient.

    Raises
    ------
    FloatingPointError
        In a call, if the loss is not finite: see `CrossEntropy`.
    TypeError, ValueError
        In a call, if shapes or dtypes of x and target differ.

    Examples
    --------
    >>> import numpy as np
    >>> criterion = MSELoss()
    >>> criterion(np.array([1.0, 4.0]), np.array([1.0, 2.0]))
    2.0
    >>> criterion.backward()
    array([0., 2.])
    """

    operation = mean_squared_error

    def forward(self, ctx, x, target):
        """Return the loss, a float.

        Parameters
        ----------
        ctx : LayerContext
        x, target : ndarray of one shape
        """
        return self._finite(mean_squared_error.forward(ctx, x, target))

    def gradients(self, ctx, dz, *, overwrite=False):
        """Return the gradient of x, and None for the target."""
        return (*mean_squared_error.backward(ctx, dz, overwrite=overwrite), None)
