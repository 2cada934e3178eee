"""Residual blocks: the sum of a branch and a shortcut."""

import numpy as np

from .. import _arguments as arguments
from .activation import Activation
from .base import Layer
from .containers import Container, takes_residual
from .masks import takes_mask, with_mask
from .placing import place, run_into
from .saved_arrays import may_overwrite


class Residual(Container):
    """A residual block: ``activation(branch(a) + shortcut(a))`` with ``a = preactivation(x)``.

    Without a shortcut, it is ``activation(branch(a) + x)``. It takes one input, an array, and returns one
    array. All normalizations inside get the keyword argument ``mask``.

    If the branch ends in an in-place `ABN` with the activation "identity", and `activation` is an
    invertible `Activation` or None, the `ABN` also adds the shortcut and activates. These three steps then
    keep only their result and the shortcut; as a rule, neighbouring convolutions keep both as their inputs
    anyway. Names and states are the same, and so are results, except where a mask is False: see `forward`.
    relu, and layers of other types than `Activation`, run separately.

    Blocks of pre-activation networks (He et al. 2016, https://arxiv.org/abs/1603.05027) are
    ``Residual(Sequential(ABN(...), Conv2d(...)))`` if the shape does not change, and
    ``Residual(Sequential(Conv2d(...)), Conv2d(...), preactivation=ABN(...))`` if it does. Blocks of
    post-activation networks (He et al. 2016, https://arxiv.org/abs/1512.03385) are
    ``Residual(Sequential(Conv2d, ABN, ..., ABN with "identity"), activation=Activation(inplace=True))``, with
    a `Conv2d` as shortcut if the shape changes.

    If a layer would overwrite x, as `InPlaceABN` does, it gets a copy of the array of the caller. If x comes
    from a layer instead, the identity shortcut uses a copy of x, which is freed after the sum. The sum is
    written over one of its terms if that term is not saved for a backward.

    Parameters
    ----------
    branch : Layer
    shortcut : Layer, optional
        Runs before the branch. Default: the identity.
    preactivation : Layer, optional
        Runs before branch and shortcut. Without a shortcut, it runs before the branch alone.
    activation : Layer, optional
        Applied to the sum.
    may_overwrite_input : bool
        As for `Sequential`.

    Raises
    ------
    TypeError
        If an argument is no layer. In a call, if branch or shortcut does not return one array.
    ValueError
        In a call, if the results of branch and shortcut differ in shape or dtype, or if a layer of one would
        overwrite an array that the other needs.

    Examples
    --------
    >>> import numpy as np
    >>> from inplace_abn.layers import Activation, Conv2d, InPlaceABN, Sequential
    >>> branch = Sequential(Conv2d(4, 4, 3, padding=1, bias=False), InPlaceABN(4, activation="identity"))
    >>> block = Residual(branch, activation=Activation("leaky_relu", inplace=True))
    >>> x = np.ones((2, 4, 6, 6), np.float32)
    >>> z = block(x)
    >>> dx = block.backward(np.ones_like(z))
    >>> z.shape, dx.shape
    ((2, 4, 6, 6), (2, 4, 6, 6))
    """

    def __init__(
        self, branch, shortcut=None, *, preactivation=None, activation=None, may_overwrite_input=False
    ):
        self.may_overwrite_input = bool(may_overwrite_input)
        self.preactivation, self.branch = preactivation, branch
        self.shortcut, self.activation = shortcut, activation
        for key in ("preactivation", "branch", "shortcut", "activation"):
            layer = getattr(self, key)
            if not isinstance(layer, Layer) and (layer is not None or key == "branch"):
                raise TypeError(f"{key} must be a Layer, got {layer!r}")

    places_result = True

    @property
    def overwrites_input(self):
        """True if preactivation, branch or shortcut overwrites x."""
        first = self.preactivation
        if first is not None and (first.overwrites_input or not first.returns_input):
            return first.overwrites_input
        return any(layer.overwrites_input for layer in (self.branch, self.shortcut) if layer is not None)

    @property
    def _fused(self):
        """True if the last normalization of the branch also adds the shortcut and activates."""
        plain = self.activation is None or type(self.activation) is Activation
        return plain and takes_residual(self.branch, self.activation)

    @property
    def takes_mask(self):
        """True if any layer inside takes a mask."""
        return any(takes_mask(layer) for _, layer in self.children())

    def forward(self, ctx, x, *, mask=None, out=None):
        """Return the activated sum of branch and shortcut, written to `out` if that is given.

        All normalizations inside get the mask. Where the mask is False, the result is 0 if the last
        normalization of the branch adds the shortcut, and otherwise the activated sum of the terms there.
        """
        arguments.plain_array("x", x)
        ctx.fused = self._fused
        z, shortcut = self._terms(ctx, x, mask, out)
        if ctx.fused:
            return z
        z = self._add(z, shortcut, x)
        last = with_mask(self.activation, mask)
        if self.activation is None:
            return z if out is None else place(z, out)
        return self.activation(z, **last) if out is None else run_into([self.activation], (z,), [last], out)

    def _terms(self, ctx, x, mask, out):
        """Return the results of branch and shortcut.

        Arrays that one of them still needs are locked while the other runs.
        """
        callers_x, x = x, self._protected_input(ctx, x)
        a = x
        if self.shortcut is not None:
            if self.preactivation is not None:
                a = self.preactivation(x, **with_mask(self.preactivation, mask))
            with ctx.holding("input of the branch", a):
                shortcut = self.shortcut(a, **with_mask(self.shortcut, mask))
        elif x is not callers_x:
            shortcut = callers_x
        elif self.overwrites_input:
            shortcut = x.copy(order="K")
            ctx.temporary(x.nbytes)
        else:
            shortcut = x
        with ctx.holding("shortcut", shortcut):
            if self.shortcut is None and self.preactivation is not None:
                a = self.preactivation(x, **with_mask(self.preactivation, mask))
            last = with_mask(self.branch, mask)
            if ctx.fused:
                last |= {"residual": shortcut, "activation": self.activation}
            if ctx.fused and out is not None:
                return run_into([self.branch], (a,), [last], out), shortcut
            return self.branch(a, **last), shortcut

    def _add(self, branch, shortcut, x):
        """Return the sum, written over a term that does not share memory with x and is not saved."""
        for name, term in (("branch", branch), ("shortcut", shortcut)):
            if not isinstance(term, np.ndarray):
                raise TypeError(f"the {name} must return one array, got {type(term).__name__}")
        if (branch.shape, branch.dtype) != (shortcut.shape, shortcut.dtype):
            raise ValueError(
                f"branch and shortcut: expected the same shape and dtype, got {branch.dtype} of shape "
                f"{branch.shape} and {shortcut.dtype} of shape {shortcut.shape}; use a Conv2d as shortcut, "
                "which changes channels and, with a stride, the size"
            )
        for term, other in ((branch, shortcut), (shortcut, branch)):
            if not np.may_share_memory(term, x) and may_overwrite(term):
                return np.add(term, other, out=term)
        return branch + shortcut

    def gradients(self, ctx, dz, *, overwrite=False):
        """Run the backwards of branch and shortcut, and add their gradients."""
        callers_dz, may_overwrite = dz, overwrite
        if ctx.fused:
            da, dz = self.branch.backward(dz, overwrite=may_overwrite and dz.flags.writeable)
            may_overwrite = True
        else:
            if self.activation is not None:
                dz = self.activation.backward(dz, overwrite=may_overwrite)
                may_overwrite = may_overwrite or not np.may_share_memory(dz, callers_dz)
            da = self.branch.backward(dz)
        if self.shortcut is None:
            dx = self._input_gradient(da, may_overwrite=not np.may_share_memory(da, dz))
            return _sum(dx, dz, dz, may_overwrite)
        last_use = may_overwrite and dz.flags.writeable and not np.may_share_memory(da, dz)
        da = _sum(da, self.shortcut.backward(dz, overwrite=last_use), dz, may_overwrite)
        return self._input_gradient(da, may_overwrite=True)  # _sum writes over dz only if that is allowed

    def _input_gradient(self, da, may_overwrite):
        """Return the gradient of x from that of ``a = preactivation(x)``."""
        if self.preactivation is None:
            return da
        return self.preactivation.backward(da, overwrite=may_overwrite and da.flags.writeable)


def _sum(first, second, dz, may_overwrite):
    """Return a sum of gradients, written over a term; over one that shares memory with dz only if allowed."""
    for term, other in ((first, second), (second, first)):
        if term.flags.writeable and (may_overwrite or not np.may_share_memory(term, dz)):
            return np.add(term, other, out=term)
    return first + second
