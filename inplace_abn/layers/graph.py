"""A layer made of layers in any order, whose backward follows from its forward."""

import numpy as np

from .base import Layer
from .tape import Tape


class Graph(Layer):
    """A network, or a part of one, that is no chain: subclasses write ``compute``, and the backward is given.

    ``compute(*inputs)`` calls layers, `add`, `mul` and `concat`, and returns one array or a tuple of
    arrays. A `Tape` records these calls. What NumPy makes of an array in between is refused: the tape does
    not know it.

    A `Parameter` of the graph itself is used by its data, as in ``layers.mul(x, self.gain.data)``, and gets
    its gradient.

    Inputs are not overwritten, unless the class says ``overwrites_input = True``: an in-place layer refuses
    them, and a container that begins with one copies them.

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
        """Return the result, by calls of layers."""
        raise NotImplementedError(f"{type(self).__name__} has no compute(*inputs)")

    def forward(self, ctx, *inputs, **options):
        """Record ``compute(*inputs, **options)``."""
        named = dict(enumerate(inputs)) | options
        given = [named[name] for name in ctx.inputs]
        own = [parameter.data for parameter in self.own_parameters().values()]
        ctx.tape = Tape((*given, *own), protected=own if self.overwrites_input else (*given, *own))
        with ctx.tape:
            z = self.compute(*inputs, **options)
            results = z if isinstance(z, tuple) else (z,)
            if ctx.recording:
                ctx.outputs = [ctx.tape.value_of(f"result {i}", result) for i, result in enumerate(results)]
                ctx.values = [ctx.tape.value_of("input", array, first=True) for array in (*given, *own)]
                ctx.like = [(array.shape, array.dtype) for array in given]
        if not self.overwrites_input:
            results = tuple(_apart(result, given) for result in results)
        return results if isinstance(z, tuple) else results[0]

    def gradients(self, ctx, dz, *, overwrite=False):
        """Go back through the tape; gradients of the inputs, and of the parameters of the graph itself."""
        pairs = zip(ctx.outputs, dz if isinstance(dz, tuple) else (dz,), strict=True)
        seeds = [(value, gradient) for value, gradient in pairs if gradient is not None]
        gradients = list(ctx.tape.gradients(seeds, ctx.values, overwrite))
        for i, (shape, dtype) in enumerate(ctx.like):
            twice = ctx.values[i] in ctx.values[:i]  # the same array as an input before, which has it all
            if twice or gradients[i] is None:
                gradients[i] = np.zeros(shape, dtype)
        return tuple(gradients)


def _apart(result, inputs):
    """Return a result, or a copy of one that shares memory with an input."""
    if isinstance(result, np.ndarray) and any(np.may_share_memory(result, array) for array in inputs):
        return result.copy(order="K")
    return result
