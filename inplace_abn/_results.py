"""The results of the backward functions: named tuples, with attributes for optional gradients."""

from typing import NamedTuple

from ._types import Batch, Sums, Vector


class _WithAttributes:
    """Mixin for a named tuple with attributes: repr shows those that are not None, _replace copies them."""

    def __repr__(self):
        shown = self._asdict() | {name: value for name, value in vars(self).items() if value is not None}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def _replace(self, **changes):
        attributes = {name: changes.pop(name, value) for name, value in vars(self).items()}
        return type(self)(*super()._replace(**changes), **attributes)

    __replace__ = _replace


class _GradientsTuple(NamedTuple):
    dx: Batch
    dweight: Vector | None
    dbias: Vector | None


class Gradients(_WithAttributes, _GradientsTuple):
    """The result of `backward`: a tuple of dx, dweight and dbias, with two optional gradients as attributes.

    Attributes
    ----------
    dx : ndarray
        Shape and dtype of x.
    dweight, dbias : ndarray of shape (C,) or None
        None if the forward had no weight or bias.
    dslope : ndarray of shape (C,) or (1,), or None
        Shape of the slope; None for activations other than prelu. Not an element of the tuple.
    dresidual : ndarray or None
        Shape and dtype of x; None if the forward had no residual. Not an element of the tuple.

    Examples
    --------
    >>> gradients = Gradients(1.0, 2.0, 3.0, dresidual=4.0)
    >>> dx, dweight, dbias = gradients
    >>> gradients
    Gradients(dx=1.0, dweight=2.0, dbias=3.0, dresidual=4.0)
    """

    dslope: Vector | None = None
    dresidual: Batch | None = None

    def __new__(cls, dx, dweight, dbias, dslope=None, dresidual=None):
        self = tuple.__new__(cls, (dx, dweight, dbias))  # the base's __new__ is slower
        self.dslope, self.dresidual = dslope, dresidual
        return self


class _ChannelSumsTuple(NamedTuple):
    sum_dy: Sums
    sum_dy_xhat: Sums


class ChannelSums(_WithAttributes, _ChannelSumsTuple):
    """The result of `backward_reduce`: a tuple of two sums, with an optional third one as an attribute.

    Attributes
    ----------
    sum_dy, sum_dy_xhat : float64 ndarray of shape (C,)
    dslope : float64 ndarray of shape (C,) or (1,), or None
        Shape of the slope; None for activations other than prelu. Not an element of the tuple.

    Examples
    --------
    >>> sum_dy, sum_dy_xhat = sums = ChannelSums(1.0, 2.0)
    >>> sums
    ChannelSums(sum_dy=1.0, sum_dy_xhat=2.0)
    """

    dslope: Sums | None = None

    def __new__(cls, sum_dy, sum_dy_xhat, dslope=None):
        self = tuple.__new__(cls, (sum_dy, sum_dy_xhat))
        self.dslope = dslope
        return self
