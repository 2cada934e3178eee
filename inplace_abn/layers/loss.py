"""The loss of classification."""

import math

from .. import memory
from .._numbers import integer
from ..ops import cross_entropy
from . import watch
from .base import OperationLayer
from .checks import choice


class CrossEntropy(OperationLayer):
    """Mean over all labels of -log(softmax of the scores at the label), for images or for every pixel.

    ``loss = criterion(scores, target)`` and ``dscores = criterion.backward()``.

    Parameters
    ----------
    ignore_index : int
        Label of what does not count.
    channel_axis : {1, -1}
        Of the classes; -1 for scores (N, ..., C).

    Raises
    ------
    FloatingPointError
        In a call, if the loss is not finite. While an `inplace_abn.memory.ledger` is on, the message names
        the layer in whose result the first value appeared that is not.
    TypeError, ValueError
        For labels out of range, and shapes that do not fit together.

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

    def __init__(self, ignore_index=-100, *, channel_axis=1):
        self.ignore_index = integer("ignore_index", ignore_index, least=-(1 << 62))
        self.channel_axis = choice("channel_axis", channel_axis, (1, -1))

    def forward(self, ctx, scores, target):
        """Return the loss, a float.

        Parameters
        ----------
        ctx : LayerContext
        scores : ndarray of shape (N, C, ...)
        target : ndarray of integers of shape (N, ...)
        """
        loss = cross_entropy.forward(
            ctx, scores, target, ignore_index=self.ignore_index, channel_axis=self.channel_axis
        )
        if not math.isfinite(loss):
            raise FloatingPointError(self._why(loss, target))
        return loss

    def backward(self, dz=1.0, *, overwrite=False):
        """Gradient of the scores, for a gradient dz of the loss; otherwise as `Layer.backward`."""
        return super().backward(dz, overwrite=overwrite)

    def _why(self, loss, target):
        if (target == self.ignore_index).all():
            return f"the loss is {loss}: no label counts, all {target.size} are {self.ignore_index}"
        if memory.recorder is None:
            return f"the loss is {loss}; run this step inside inplace_abn.memory.ledger() to learn where from"
        return f"the loss is {loss}; {watch.report()}"

    def extra_repr(self):
        """Return the arguments."""
        return f"ignore_index={self.ignore_index}"
