"""What the backward functions return: named tuples, with attributes for what not every forward has."""

from typing import NamedTuple

from ._types import Batch, Sums, Vector


class _More:
    """For a named tuple: shows attributes beside its elements, those that are not None, and hands them on."""

    def __repr__(self):
        shown = self._asdict() | {name: value for name, value in vars(self).items() if value is not None}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def _replace(self, **changes):
        more = {name: changes.pop(name, value) for name, value in vars(self).items()}
        return type(self)(*super()._replace(**changes), **more)

    __replace__ = _replace


class _OfAll(NamedTuple):
    dx: Batch
    dweight: Vector | None
    dbias: Vector | None


class Gradients(_More, _OfAll):
    """What `backward` returns: three gradients to unpack, and two more as attributes.

    Attributes
    ----------
    dx : ndarray
    dweight, dbias : ndarray of shape (C,) or None
        None where the forward had no weight or bias.
    dslope : ndarray of shape (C,) or (1,), or None
        As the slope was; None but for prelu. No element of the tuple.
    dresidual : ndarray or None
        None where the forward had no residual. No element of the tuple.

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
        self = tuple.__new__(cls, (dx, dweight, dbias))  # as its base does; that once more takes time
        self.dslope, self.dresidual = dslope, dresidual
        return self


class _OfChannels(NamedTuple):
    sum_dy: Sums
    sum_dy_xhat: Sums


class ChannelSums(_More, _OfChannels):
    """What `backward_reduce` returns: two sums to unpack, and one more as an attribute.

    Attributes
    ----------
    sum_dy, sum_dy_xhat : float64 ndarray of shape (C,)
    dslope : float64 ndarray of shape (C,) or (1,), or None
        As the slope was; None but for prelu. No element of the tuple.
    """

    dslope: Sums | None = None

    def __new__(cls, sum_dy, sum_dy_xhat, dslope=None):
        self = tuple.__new__(cls, (sum_dy, sum_dy_xhat))
        self.dslope = dslope
        return self
