"""Gradients of recorded values: sums at forks, and which of them may be overwritten."""

from itertools import combinations

import numpy as np

from .recorded_arrays import share_memory


class _Buffer:
    """Memory that gradients lie in.

    Attributes
    ----------
    users : int or None
        How many gradients lie in it; None if it is not the tape's own.
    """

    __slots__ = ("users",)

    def __init__(self, users=1):
        self.users = users

    def leave(self):
        """Note that one gradient less lies in it."""
        if self.users is not None:
            self.users -= 1

    def enter(self):
        """Note that one gradient more lies in it."""
        if self.users is not None:
            self.users += 1


class GradientSums:
    """The gradient of each value, summed over all calls that took it.

    A gradient may be overwritten if nothing else lies in its memory and a layer of the tape made it.

    Parameters
    ----------
    seeds : sequence of (int, ndarray or float)
        Values, and the gradients to begin with.
    overwrite : bool
        True if the seeds may be overwritten.
    """

    def __init__(self, seeds, overwrite):
        self._sums = {}  # value -> (gradient, _Buffer)
        own = overwrite and not any(_share(a, b) for (_, a), (_, b) in combinations(seeds, 2))
        for value, gradient in seeds:
            self._add(value, gradient, _Buffer(1 if own else None))

    def pop(self, value, keep=False):
        """Return (gradient, buffer) of a value, or None; with `keep` it stays in the table."""
        if not keep:
            return self._sums.pop(value, None)
        found = self._sums.get(value)
        if found is not None:
            found[1].enter()
        return found

    def add(self, values, gradients, given):
        """Add what the backward of one call returned.

        Parameters
        ----------
        values : sequence of int or None
            What the gradients belong to; None where it is not asked for.
        gradients : sequence of ndarray or None
        given : sequence of (ndarray, buffer)
            What that backward was given. Its results may lie in the same memory.
        """
        pairs = zip(values, gradients, strict=True)
        wanted = [(v, gradient) for v, gradient in pairs if v is not None and gradient is not None]
        buffers = [self._buffer_of(i, wanted, given) for i in range(len(wanted))]
        for _, buffer in given:
            buffer.leave()
        for (value, gradient), buffer in zip(wanted, buffers, strict=True):
            self._add(value, gradient, buffer)

    def add_result(self, value, gradient, dz, own):
        """Add the gradient that a backward returned for `dz`, which it might overwrite if `own` is True."""
        self.add([value], [gradient], [(dz, _Buffer(1 if own else None))])

    def _buffer_of(self, i, wanted, given):
        """Return the buffer that result `i` lies in: that of a given gradient, or a new one."""
        gradient = wanted[i][1]
        alone = not any(_share(gradient, other) for j, (_, other) in enumerate(wanted) if j != i)
        for dz, buffer in given:
            if _share(gradient, dz):
                if alone and buffer.users == 1:
                    return _Buffer()  # such as the parts of a joined array: they do not overlap
                buffer.enter()
                return buffer
        return _Buffer(1 if alone else None)

    def _add(self, value, gradient, buffer):
        known = self._sums.get(value)
        if known is None:
            self._sums[value] = gradient, buffer
            return
        total, its_buffer = known
        if may_overwrite(total, its_buffer):
            buffer.leave()
            self._sums[value] = np.add(total, gradient, out=total), its_buffer
        elif may_overwrite(gradient, buffer):
            its_buffer.leave()
            self._sums[value] = np.add(gradient, total, out=gradient), buffer
        else:
            buffer.leave()
            its_buffer.leave()
            self._sums[value] = total + gradient, _Buffer()

    def take(self, value):
        """Return the gradient of a value as an array that belongs to the caller, or None."""
        gradient, buffer = self._sums.pop(value, (None, None))
        if not isinstance(gradient, np.ndarray) or may_overwrite(gradient, buffer):
            return gradient
        buffer.leave()
        return gradient.copy(order="K")


def may_overwrite(gradient, buffer):
    """Return whether nothing else lies in the memory of a gradient, and it can be written."""
    return buffer.users == 1 and isinstance(gradient, np.ndarray) and gradient.flags.writeable


def _share(gradient, other):
    return (
        isinstance(gradient, np.ndarray) and isinstance(other, np.ndarray) and share_memory(gradient, other)
    )
