"""Layers that keep only their input; the backward runs them again."""

from contextlib import contextmanager

import numpy as np

from .. import _arguments as arguments
from .containers import Sequential
from .context import no_grad, recomputing
from .placing import copy_if_shared


class Recompute(Sequential):
    """A sequence of layers that keeps only its input; the backward runs the layers again.

    As `torch.utils.checkpoint` (Chen et al. 2016, https://arxiv.org/abs/1604.06174): it takes less memory and
    more time. It is useful if the input of the layers is small and their intermediate results are large, as
    in the first layers of a network for photographs: an image has 3 channels, and the input of the pooling
    has 64 of the same size.

    It takes the inputs of its first layer, the first of which is an array, and the keyword argument ``mask``.
    Arrays among the inputs are kept and read-only until the backward has run.

    Results, gradients, names and states are bitwise those of `Sequential`: the layers run again in the mode
    of the call, and with the same random numbers if they draw them from a `numpy.random.Generator` that is
    an attribute. Only the call updates running statistics. Weights, and in evaluation running statistics,
    must not change between the call and its backward. Intermediate results are freed after the backward.

    Parameters
    ----------
    *layers : Layer, or one dict of names to layers
        If they overwrite the input, it is copied. If the result shares memory with the input, it is copied.

    Raises
    ------
    TypeError
        In a call, if the first input is not an array.

    Examples
    --------
    >>> import numpy as np
    >>> from inplace_abn import memory
    >>> from inplace_abn.layers import Conv2d, InPlaceABN, MaxPool2d
    >>> stem = Recompute(Conv2d(3, 8, 3, padding=1, rng=0), InPlaceABN(8), MaxPool2d(2))
    >>> with memory.ledger() as ledger:
    ...     z = stem(np.ones((2, 3, 8, 8), np.float32))
    >>> ledger.kept == 2 * 3 * 8 * 8 * 4  # the input
    True
    >>> dx = stem.backward(np.ones_like(z))
    """

    def takes_residual(self, activation=None):
        """Return False: a residual would have to be kept in addition to the input."""
        return False

    @property
    def works_in_place(self):
        """False: the result does not share memory with the input."""
        return False

    @property
    def overwrites_input(self):
        """False: an input that the layers overwrite is copied."""
        return False

    @property
    def returns_input(self):
        """False: a result that shares memory with the input is copied."""
        return False

    def forward(self, ctx, x, *others, mask=None):
        """Run the layers. Keep the inputs, a copy of the mask, and the states of modes and generators."""
        arguments.plain_array("x", x)
        ctx.others = [None if isinstance(value, np.ndarray) else value for value in others]
        arrays = {f"input {i}": value for i, value in enumerate(others, 1) if isinstance(value, np.ndarray)}
        ctx.save_for_backward(input=x, **arrays)
        ctx.options = {} if mask is None else {"mask": mask}
        if isinstance(mask, np.ndarray) and ctx.recording:
            ctx.options["mask"] = mask.copy()
            ctx.save_for_backward(mask=ctx.options["mask"])
        ctx.modes, ctx.generator_states = self._modes(), _states(self._generators())
        with no_grad():
            z = super().forward(ctx, self._copy_for_layers(ctx, x), *others, **ctx.options)
        kept = [x, *arrays.values()]  # read-only, while the next layer may overwrite z
        if isinstance(z, tuple):
            return tuple(copy_if_shared(result, kept) for result in z)
        return copy_if_shared(z, kept)

    def gradients(self, ctx, dz, *, overwrite=False):
        """Run the layers as in the call, then run their backward."""
        others = [ctx.saved.get(f"input {i}", value) for i, value in enumerate(ctx.others, 1)]
        with recomputing(), self._restored(ctx):
            super().forward(ctx, self._copy_for_layers(ctx, ctx.saved["input"]), *others, **ctx.options)
        return super().gradients(ctx, dz, overwrite=overwrite)

    def _copy_for_layers(self, ctx, x):
        """Return x, or a copy if the layers overwrite their input."""
        if not super().overwrites_input:
            return x
        ctx.temporary(x.nbytes)
        return x.copy(order="K")

    def _modes(self):
        return [(layer, layer.training) for _, layer in self.named_layers()]

    def _generators(self):
        attributes = [value for _, layer in self.named_layers() for value in vars(layer).values()]
        return [value for value in attributes if isinstance(value, np.random.Generator)]

    @contextmanager
    def _restored(self, ctx):
        """Set modes and generators to their states at the call while the block runs."""
        modes, states = self._modes(), _states(self._generators())
        try:
            _set_states(ctx.modes, ctx.generator_states)
            yield
        finally:
            _set_states(modes, states)


def _states(generators):
    return [(generator, generator.bit_generator.state) for generator in generators]


def _set_states(modes, states):
    """Set the modes of layers and the states of generators."""
    for layer, training in modes:
        layer.training = training
    for generator, state in states:
        generator.bit_generator.state = state
