"""Layers in sequence, and the base class of layers that call other layers."""

from itertools import combinations

import numpy as np

from .abn import ABN
from .base import Layer
from .masks import takes_mask, with_mask
from .modules import LayerSequence
from .placing import run_into


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

    Raises
    ------
    TypeError, ValueError
        If an element is no layer, or if a name is empty, in use or contains a dot.

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

    def _with_layers(self, layers):
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
        return takes_residual(self[-1], activation) if len(self) else False

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
        callers_dz, may_overwrite, options = dz, overwrite, ()
        # The last layer got the keyword arguments; their gradients are the last ones that it returns.
        named = sum(isinstance(name, str) for name in ctx.inputs)
        for layer in reversed(list(self)):
            dz = layer.backward(dz, overwrite=may_overwrite and _are_writeable(dz))
            if named:
                dz, options, named = dz[:-named], dz[-named:], 0
                dz = dz[0] if len(dz) == 1 else dz
            may_overwrite = may_overwrite or not _share_memory(dz, callers_dz)
        return (*dz, *options) if isinstance(dz, tuple) else (dz, *options) if options else dz


def _options_of_each(layers, mask=None, **options):
    """Return the keyword arguments of each layer: the mask where it is taken; all others for the last one."""
    if mask is not None and not any(takes_mask(layer) for layer in layers):
        options["mask"] = mask  # the last layer raises the error
        mask = None
    options_of_each = [with_mask(layer, mask) for layer in layers]
    options_of_each[-1] = options_of_each[-1] | options
    return options_of_each


def _pass_on(*inputs):
    """Return the result of an empty sequence: its input, or the tuple of its inputs."""
    return inputs[0] if len(inputs) == 1 else inputs


def _are_writeable(gradients):
    """Return True if gradients may be overwritten: all are writeable, and no two of them share memory."""
    if not isinstance(gradients, tuple):
        return gradients.flags.writeable
    present = [gradient for gradient in gradients if gradient is not None]
    return all(gradient.flags.writeable for gradient in present) and not any(
        np.may_share_memory(one, other) for one, other in combinations(present, 2)
    )


def _share_memory(gradients, others):
    """Return True if any gradient of one argument may share memory with one of the other.

    Both are an array, or a tuple of arrays and None.
    """
    if isinstance(gradients, tuple):
        return any(_share_memory(gradient, others) for gradient in gradients if gradient is not None)
    if isinstance(others, tuple):
        return any(_share_memory(gradients, other) for other in others if other is not None)
    return np.may_share_memory(gradients, others)


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


def takes_residual(layer, activation):
    """Return True if the last layer is an `ABN` that takes a residual; see `ABN.takes_residual`."""
    return isinstance(layer, (ABN, Sequential)) and layer.takes_residual(activation)
