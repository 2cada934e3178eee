"""Functions of arrays in the form of layers, so that a tape can record their calls."""

from .base import Layer
from .context import no_grad
from .recorder import active


def apply(operation, *arrays, **options):
    """Call an operation. It is recorded if a tape is active, and keeps nothing otherwise."""
    if active.tape is not None:
        return operation(*arrays, **options)
    with no_grad():
        return operation(*arrays, **options)


class FunctionLayer(Layer):
    """A layer that serves one call of a function of `inplace_abn.layers`.

    Attributes
    ----------
    function : str
        The name of the function.
    """

    function = ""

    @property
    def label(self):
        """The name of the function, for messages."""
        return f"layers.{self.function}"


def in_order(gradient, order):
    """Return a gradient in the memory order `order`, without a copy if it has that order."""
    if order.has(gradient):
        return gradient
    result = order.empty(gradient.shape, gradient.dtype)
    result[...] = gradient
    return result
