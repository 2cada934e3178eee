"""A layer whose forward calls other layers in any order, and whose backward is derived from that."""

import numpy as np

from .base import Layer
from .placing import copy_if_shared
from .tape import Tape


class Graph(Layer):
    """A network, or a part of one, that is not a sequence. Subclasses implement ``compute``.

    ``compute(*inputs)`` calls layers, `add`, `mul` and `concat`, and returns one array or a tuple of arrays.
    A `Tape` records these calls, and the backward runs in reverse order. Results of NumPy functions in
    between are refused, since their gradient is unknown.

    Use the data of a `Parameter` of the graph itself, as in ``layers.mul(x, self.gain.data)``. The
    backward adds its gradient to ``grad``.

    Inputs are not overwritten unless the class sets ``overwrites_input = True``: an in-place layer raises an
    error, and a container that begins with one copies the input.

    Raises
    ------
    TypeError, ValueError
        In a call, if an array that no recorded call has made is passed to a layer.

    Examples
    --------
    >>> import numpy as np
    >>> from inplace_abn import gradcheck, layers
    >>> class SqueezeExcite(layers.Graph):
    ...     def __init__(self, channels):
    ...         self.pool = layers.GlobalAvgPool2d(keepdims=True)
    ...         self.weights = layers.Conv2d(channels, channels, 1)
    ...         self.gate = layers.Activation("sigmoid")
    ...     def compute(self, x):
    ...         return layers.mul(x, self.gate(self.weights(self.pool(x))))
    >>> gradcheck(SqueezeExcite(3), np.random.default_rng(0).normal(size=(2, 3, 4, 4))).ok
    True
    """

    def compute(self, *inputs):
        """Return the result, an array or a tuple of arrays, by calls of layers."""
        raise NotImplementedError(f"{type(self).__name__} has no compute(*inputs)")

    def forward(self, ctx, *inputs, **options):
        """Record ``compute(*inputs, **options)``."""
        named = dict(enumerate(inputs)) | options
        differentiated = [named[name] for name in ctx.inputs]
        own = [parameter.data for parameter in self.own_parameters().values()]
        ctx.tape = Tape(
            (*differentiated, *own), protected=own if self.overwrites_input else (*differentiated, *own)
        )
        with ctx.tape:
            z = self.compute(*inputs, **options)
            results = z if isinstance(z, tuple) else (z,)
            if ctx.recording:
                ctx.outputs = [ctx.tape.value_of(f"result {i}", result) for i, result in enumerate(results)]
                ctx.values = [
                    ctx.tape.value_of("input", array, first=True) for array in (*differentiated, *own)
                ]
                ctx.input_shapes = [(array.shape, array.dtype) for array in differentiated]
        if not self.overwrites_input:
            results = tuple(copy_if_shared(result, differentiated) for result in results)
        return results if isinstance(z, tuple) else results[0]

    def gradients(self, ctx, dz, *, overwrite=False):
        """Return the gradients of the inputs, and of the parameters of the graph itself."""
        pairs = zip(ctx.outputs, dz if isinstance(dz, tuple) else (dz,), strict=True)
        seeds = [(value, gradient) for value, gradient in pairs if gradient is not None]
        gradients = list(ctx.tape.gradients(seeds, ctx.values, overwrite))
        for i, (shape, dtype) in enumerate(ctx.input_shapes):
            is_duplicate = ctx.values[i] in ctx.values[:i]  # of an earlier input, which gets the gradient
            if is_duplicate or gradients[i] is None:
                gradients[i] = np.zeros(shape, dtype)
        return tuple(gradients)
