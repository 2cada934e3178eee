"""Branches of layers, concatenated along the channels."""

import numpy as np

from .. import _arguments as arguments
from .._arguments import choice
from .activation import Activation
from .concat_arrays import channel_slices, joined_array
from .containers import Identity, Sequential
from .gradient_sums import GradientSums
from .linear import Dropout
from .masks import takes_mask, with_mask
from .modules import LayerSequence
from .placing import run_into, same_place
from .pooling import AvgPool2d, GlobalAvgPool2d, MaxPool2d, Upsample
from .residual import Residual

#: Layers whose result has as many channels as their input.
KEEP_CHANNELS = (Activation, AvgPool2d, Dropout, GlobalAvgPool2d, Identity, MaxPool2d, Upsample)


class Concat(LayerSequence):
    """Branches of layers with one input: ``concatenate([branch(x) for branch in branches], channel_axis)``.

    As in Inception, DenseNet and ASPP. If a branch ends in layers that work in place, such as `InPlaceABN`,
    these write into their slice of the joined array. They and the next layer then keep the same memory. The
    results of other branches are copied into the joined array.

    A branch that begins with an in-place layer gets a copy of the input.

    Parameters
    ----------
    *branches : Layer, or one dict of names to layers
        Default names are "0", "1" and so on. `Identity` is the input itself.
    channel_axis : {1, -1}
        -1 for batches (N, ..., C).

    Raises
    ------
    ValueError
        In a call, if there are no branches, or if their results differ in another axis than the channels.

    Examples
    --------
    >>> import numpy as np
    >>> from inplace_abn import memory
    >>> from inplace_abn.layers import Conv2d, InPlaceABN, Sequential
    >>> def branch(size):
    ...     return Sequential(Conv2d(3, 8, size, padding=size // 2), InPlaceABN(8))
    >>> net = Sequential(Concat(branch(1), branch(3)), Conv2d(16, 4, 1))
    >>> x = np.ones((2, 3, 6, 6), np.float32)
    >>> with memory.ledger() as ledger:
    ...     z = net(x)
    >>> ledger.kept == x.nbytes + 2 * 16 * 6 * 6 * 4  # the input and the joined array
    True
    """

    def __init__(self, *branches, channel_axis=1):
        self.channel_axis = choice("channel_axis", channel_axis, (1, -1))
        named = (
            branches[0] if len(branches) == 1 and isinstance(branches[0], dict) else dict(enumerate(branches))
        )
        for name, branch in named.items():
            self.append(branch, str(name))

    def _with_layers(self, layers):
        return Concat(*layers, channel_axis=self.channel_axis)

    @property
    def takes_mask(self):
        """True if any branch takes a mask."""
        return any(takes_mask(branch) for branch in self)

    def forward(self, ctx, x, *, mask=None):
        """Run the branches and concatenate their results. All normalizations inside get the mask."""
        arguments.channel_batch("x", x, self.channel_axis)
        if not len(self):
            raise ValueError("expected at least one branch, got none")
        joined = _JoinedArray(
            [channels_of(branch, x.shape[self.channel_axis]) for branch in self], self.channel_axis
        )
        results = []
        for i, branch in enumerate(self):
            given = x
            if branch.overwrites_input:
                given = x.copy(order="K")
                ctx.temporary(x.nbytes)
            results.append(run_into([branch], (given,), [with_mask(branch, mask)], joined.slot(i)))
        ctx.slices = channel_slices(results, self.channel_axis)
        return joined.finish(results)

    def gradients(self, ctx, dz, *, overwrite=False):
        """Run the backward of each branch with its channels of dz, and add the gradients."""
        sums = GradientSums((), False)
        for branch, index in zip(reversed(list(self)), reversed(ctx.slices), strict=True):
            part = dz[index]
            writable = overwrite and part.flags.writeable
            sums.add_result(0, branch.backward(part, overwrite=writable), part, writable)
        return sums.take(0)

    def extra_repr(self):
        """Return the arguments."""
        return f"channel_axis={self.channel_axis}" if self.channel_axis == -1 else ""


class _JoinedArray:
    """The joined array of several branches, allocated when the first result is known.

    Parameters
    ----------
    widths : list of int or None
        Channels of each result, None if unknown.
    channel_axis : {1, -1}
    """

    def __init__(self, widths, channel_axis):
        self._axis, self._widths = channel_axis, widths
        self._array, self._parts = None, ()

    def slot(self, i):
        """Return a function that maps result `i` to its slice, or to itself if it does not fit there."""

        def find(z):
            if None in self._widths:
                return z
            if self._array is None:
                self._array, self._parts = joined_array(z, self._widths, channel_axis=self._axis)
            part = self._parts[i]
            return part if (part.shape, part.dtype) == (z.shape, z.dtype) else z

        return find

    def finish(self, results):
        """Return the joined array."""
        if len(self._parts) and all(map(same_place, results, self._parts)):
            return self._array
        return np.concatenate(results, self._axis)


def channels_of(layer, channels):
    """Return the number of channels of a layer's result for an input of `channels`, or None if unknown."""
    if isinstance(layer, Sequential):
        for inner in layer:
            channels = channels_of(inner, channels)
        return channels
    if isinstance(layer, Residual):
        if layer.preactivation is not None:
            channels = channels_of(layer.preactivation, channels)
        return channels_of(layer.branch, channels)
    if isinstance(layer, Concat):
        found = [channels_of(branch, channels) for branch in layer]
        return None if None in found else sum(found)
    for name in ("out_channels", "num_features", "num_channels", "out_features"):
        if hasattr(layer, name):
            return getattr(layer, name)
    return channels if isinstance(layer, KEEP_CHANNELS) else None
