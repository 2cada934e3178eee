"""Layers that contain layers: sequences, and residual blocks."""

from itertools import combinations

import numpy as np

from .. import _arguments as arguments
from .abn import ABN
from .activation import Activation
from .base import Layer
from .modules import LayerSequence
from .placing import place, run_into
from .saved_arrays import may_overwrite


class Container(Layer):
    """Base of the layers that call other layers. The array of the caller is not overwritten."""

    copies_input = True

    def _protected_input(self, ctx, x):
        """Return x, or a copy of it if a layer inside would overwrite the caller's array."""
        if not isinstance(x, np.ndarray) or not self.overwrites_input or not ctx.is_from_outside(x):
            return x
        if not ctx.recording:
            ctx.temporary(x.nbytes)
        return x.copy(order="K")


class Sequential(Container, LayerSequence):
    """Layers in sequence: each takes the result of the one before.

    If the first layer overwrites its input, as `InPlaceABN` does, it gets a copy of the array of the caller,
    which is not changed. A container inside another container does not copy.

    In the backward, each layer may overwrite the gradient that the next layer has returned.

    Parameters
    ----------
    *layers : Layer, or one dict of names to layers
        Default names are "0", "1" and so on.
    may_overwrite_input : bool
        True if the first layer may overwrite the array of the caller: no copy is made. Only the value of the
        outermost container has an effect.

    Examples
    --------
    >>> import numpy as np
    >>> from inplace_abn.layers import InPlaceABN
    >>> net = Sequential(InPlaceABN(3), Sequential(InPlaceABN(3, activation="identity")))
    >>> net
    Sequential(
      (0): InPlaceABN(3, eps=1e-05, momentum=0.1, affine=True, ...)
      (1): Sequential(
        (0): InPlaceABN(3, eps=1e-05, momentum=0.1, affine=True, ...)
      )
    )
    >>> net[1][0].name
    '1.0'
    """

    places_result = True

    def __init__(self, *layers, may_overwrite_input=False):
        self.may_overwrite_input = bool(may_overwrite_input)
        named = layers[0] if len(layers) == 1 and isinstance(layers[0], dict) else dict(enumerate(layers))
        for key, layer in named.items():
            self.append(layer, str(key))

    def _of(self, layers):
        return Sequential(*layers, may_overwrite_input=self.may_overwrite_input)

    @property
    def overwrites_input(self):
        """True if a layer overwrites the input; layers before it return the input unchanged."""
        for layer in self:
            if layer.overwrites_input:
                return True
            if not layer.returns_input:
                return False
        return False

    @property
    def returns_input(self):
        """True if all layers may return their input."""
        return all(layer.returns_input for layer in self)

    @property
    def works_in_place(self):
        """True if all layers work in place."""
        return len(self) > 0 and all(layer.works_in_place for layer in self)

    def takes_residual(self, activation=None):
        """Return True if the last layer takes a residual; see `ABN.takes_residual`."""
        return _takes_residual(self[-1], activation) if len(self) else False

    @property
    def takes_mask(self):
        """True if any layer takes a mask."""
        return any(takes_mask(layer) for layer in self)

    def forward(self, ctx, *inputs, out=None, **options):
        """Run the layers in sequence.

        Parameters
        ----------
        ctx : LayerContext
        *inputs : ndarray
            Of the first layer. If a layer returns a tuple, its elements are the inputs of the next layer.
        out : ndarray, optional
            The result is written to it. Layers at the end that work in place do so in this array; see
            `concat`.
        **options
            Keyword arguments of the last layer, such as ``residual``. ``mask`` is passed to all layers that
            take a mask.
        """
        if inputs:
            inputs = (self._protected_input(ctx, inputs[0]), *inputs[1:])
        layers = list(self)
        if not layers:
            return _pass_on(*inputs, **options)
        options = _options_of_each(layers, **options)
        if out is not None:
            return run_into(layers, inputs, options, out)
        for layer, chosen in zip(layers, options, strict=True):
            result = layer(*inputs, **chosen)
            inputs = result if isinstance(result, tuple) else (result,)
        return result

    def gradients(self, ctx, dz, *, overwrite=False):
        """Run the backwards of the layers, from the last to the first."""
        given, may_overwrite, options = dz, overwrite, ()
        # The last layer got the keyword arguments; their gradients are the last ones that it returns.
        named = sum(isinstance(name, str) for name in ctx.inputs)
        for layer in reversed(list(self)):
            dz = layer.backward(dz, overwrite=may_overwrite and _writeable(dz))
            if named:
                dz, options, named = dz[:-named], dz[-named:], 0
                dz = dz[0] if len(dz) == 1 else dz
            may_overwrite = may_overwrite or not _share_memory(dz, given)
        return (*dz, *options) if isinstance(dz, tuple) else (dz, *options) if options else dz


def _options_of_each(layers, mask=None, **options):
    """Return the options of each layer: the mask for all that take one, the others for the last layer."""
    if mask is not None and not any(takes_mask(layer) for layer in layers):
        options["mask"] = mask  # the last layer raises the error
        mask = None
    options_of_each = [with_mask(layer, mask) for layer in layers]
    options_of_each[-1] = options_of_each[-1] | options
    return options_of_each


def takes_mask(layer):
    """Return True if a layer, or any layer inside it, takes a mask."""
    return any(one.takes_mask for _, one in layer.named_layers())


def with_mask(layer, mask):
    """Return the options that pass a mask to a layer, empty if the mask is None or the layer takes none.

    Raises
    ------
    TypeError
        If a layer inside takes a mask but `layer` itself does not, and so cannot pass it on.
    """
    if layer is None or mask is None:
        return {}
    if layer.takes_mask:
        return {"mask": mask}
    for _, inner in layer.named_layers():
        if inner.takes_mask:
            raise TypeError(
                f"{layer.label} takes no mask, but {inner.label} inside needs it; pass mask= on in its "
                "forward, and set takes_mask = True in its class"
            )
    return {}


def _pass_on(*inputs):
    return inputs[0] if len(inputs) == 1 else inputs


def _writeable(gradients):
    """Return whether gradients may be overwritten: all are writeable, and no two of them share memory."""
    if not isinstance(gradients, tuple):
        return gradients.flags.writeable
    present = [gradient for gradient in gradients if gradient is not None]
    return all(gradient.flags.writeable for gradient in present) and not any(
        np.may_share_memory(one, other) for one, other in combinations(present, 2)
    )


def _share_memory(some, others):
    if isinstance(some, tuple):
        return any(_share_memory(one, others) for one in some if one is not None)
    if isinstance(others, tuple):
        return any(_share_memory(some, one) for one in others if one is not None)
    return np.may_share_memory(some, others)


class Identity(Layer):
    """A layer that returns its input, as `torch.nn.Identity`. It ignores its arguments.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.ones(2)
    >>> Identity()(x) is x
    True
    """

    returns_input = True

    def __init__(self, *args, **kwargs):
        pass

    def forward(self, ctx, x):
        """Return x."""
        return x

    def gradients(self, ctx, dz, *, overwrite=False):
        """Return dz."""
        return dz


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
    >>> from inplace_abn.layers import Activation, Conv2d, InPlaceABN
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
        return plain and _takes_residual(self.branch, self.activation)

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
        if out is not None:
            return (
                place(z, out) if self.activation is None else run_into([self.activation], (z,), [last], out)
            )
        return z if self.activation is None else self.activation(z, **last)

    def _terms(self, ctx, x, mask, out):
        """Return (branch, shortcut). Arrays that one of them still needs are locked while the other runs."""
        given, x = x, self._protected_input(ctx, x)
        a = x
        if self.shortcut is not None:
            a = (
                x
                if self.preactivation is None
                else self.preactivation(x, **with_mask(self.preactivation, mask))
            )
            with ctx.holding("input of the branch", a):
                shortcut = self.shortcut(a, **with_mask(self.shortcut, mask))
        elif x is not given:
            shortcut = given
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
        given, may_overwrite = dz, overwrite
        if ctx.fused:
            da, dz = self.branch.backward(dz, overwrite=may_overwrite and dz.flags.writeable)
            may_overwrite = True
        else:
            if self.activation is not None:
                dz = self.activation.backward(dz, overwrite=may_overwrite)
                may_overwrite = may_overwrite or not np.may_share_memory(dz, given)
            da = self.branch.backward(dz)
        if self.shortcut is None:
            dx = self._before(da, owned=not np.may_share_memory(da, dz))
            return _sum(dx, dz, dz, may_overwrite)
        last_use = may_overwrite and dz.flags.writeable and not np.may_share_memory(da, dz)
        da = _sum(da, self.shortcut.backward(dz, overwrite=last_use), dz, may_overwrite)
        return self._before(da, owned=True)  # _sum writes over dz only if dz may be overwritten

    def _before(self, da, owned):
        """Return the gradient of x from that of a; `owned` is True if da may be overwritten."""
        if self.preactivation is None:
            return da
        return self.preactivation.backward(da, overwrite=owned and da.flags.writeable)


def _takes_residual(layer, activation):
    return isinstance(layer, (ABN, Sequential)) and layer.takes_residual(activation)


def _sum(first, second, dz, may_overwrite):
    """Return a sum of gradients, written over a term; over one that shares memory with dz only if allowed."""
    for term, other in ((first, second), (second, first)):
        if term.flags.writeable and (may_overwrite or not np.may_share_memory(term, dz)):
            return np.add(term, other, out=term)
    return first + second
