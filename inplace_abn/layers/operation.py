"""Functions of arrays as layers of one call, so that a tape records them as it records layers."""

from .base import Layer
from .context import no_grad
from .recorder import active


def apply(operation, *arrays, **options):
    """Call an operation: recorded while a tape is on, otherwise without keeping anything."""
    if active.tape is not None:
        return operation(*arrays, **options)
    with no_grad():
        return operation(*arrays, **options)


class Operation(Layer):
    """A layer for one call of a function of `inplace_abn.layers`.

    Attributes
    ----------
    function : str
        Its name.
    """

    function = ""

    @property
    def label(self):
        """The name of the function, for messages."""
        return f"layers.{self.function}"


def in_order(gradient, order):
    """Return a gradient in a memory order: itself if it has that."""
    if order.has(gradient):
        return gradient
    result = order.empty(gradient.shape, gradient.dtype)
    result[...] = gradient
    return result
