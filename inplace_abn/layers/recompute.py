"""Layers that are run once more in the backward, instead of keeping anything between."""

from contextlib import contextmanager

import numpy as np

from ..ops import _arguments as arguments
from .containers import Sequential
from .context import no_grad, once_more


class Recompute(Sequential):
    """Layers one after the other, of which only the input is kept; the backward runs them once more first.

    As `torch.utils.checkpoint` does it (Chen et al. 2016, https://arxiv.org/abs/1604.06174): memory for time.
    Worth it where the layers' input is small and what is between large, as in the stem of a network for
    photographs: the image has 3 channels, and what goes into the pooling has 64 of the same size that no
    convolution needs.

    Results and gradients are those of `Sequential`, to the bit: the layers run again in the mode they were
    called in, running statistics are updated by the call alone, and `Dropout` drops the same, as does every
    layer that draws from a `numpy.random.Generator` which is an attribute of it. Names and states are the
    same as well. Weights, and in evaluation running statistics, have to be those of the call still when its
    backward runs: step the optimizer afterwards. What the layers keep while they are gone back through is let
    go with the backward.

    Parameters
    ----------
    *layers : Layer, or one dict of names to layers
        If they overwrite their input, that is copied; if they pass it on, the result is a copy.

    Examples
    --------
    >>> import numpy as np
    >>> from inplace_abn import memory
    >>> from inplace_abn.layers import Conv2d, InPlaceABN, MaxPool2d
    >>> stem = Recompute(Conv2d(3, 8, 3, padding=1, rng=0), InPlaceABN(8), MaxPool2d(2))
    >>> with memory.ledger() as book:
    ...     z = stem(np.ones((2, 3, 8, 8), np.float32))
    >>> book.kept == 2 * 3 * 8 * 8 * 4  # the input
    True
    >>> dx = stem.backward(np.ones_like(z))
    """

    def takes_residual(self, activation=None):
        """Return False: a residual would have to be kept as well."""
        return False

    @property
    def overwrites_input(self):
        """False: what the layers would overwrite is copied."""
        return False

    @property
    def returns_input(self):
        """False: what the layers pass on is copied."""
        return False

    def forward(self, ctx, x):
        """Run the layers without keeping anything but x, and what the next run has to find."""
        arguments.plain("x", x)
        ctx.save_for_backward(input=x)
        ctx.modes, ctx.random = self._modes(), _states(self._generators())
        with no_grad():
            z = super().forward(ctx, self._own_input(ctx, x))
        return z.copy(order="K") if np.may_share_memory(z, x) else z  # x is locked, z may be overwritten

    def gradients(self, ctx, dz, *, overwrite=False):
        """Run the layers as the call has, and go back through them."""
        with once_more(), self._as_it_was(ctx):
            super().forward(ctx, self._own_input(ctx, ctx.saved["input"]))
        return super().gradients(ctx, dz, overwrite=overwrite)

    def _own_input(self, ctx, x):
        if not super().overwrites_input:
            return x
        ctx.temporary(x.nbytes)
        return x.copy(order="K")

    def _modes(self):
        return [(layer, layer.training) for _, layer in self.named_layers()]

    def _generators(self):
        found = [value for _, layer in self.named_layers() for value in vars(layer).values()]
        return [value for value in found if isinstance(value, np.random.Generator)]

    @contextmanager
    def _as_it_was(self, ctx):
        modes, states = self._modes(), _states(self._generators())
        try:
            _set(ctx.modes, ctx.random)
            yield
        finally:
            _set(modes, states)


def _states(generators):
    return [(generator, generator.bit_generator.state) for generator in generators]


def _set(modes, states):
    for layer, training in modes:
        layer.training = training
    for generator, state in states:
        generator.bit_generator.state = state
