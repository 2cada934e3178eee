"""Sums of the gradients of values that several calls took, in place where possible."""

from itertools import combinations

import numpy as np

from .recorded_arrays import share_memory


class _Buffer:
    """Memory that contains gradients.

    Attributes
    ----------
    users : int or None
        Number of gradients in this memory. None if the memory must not be overwritten.
    """

    __slots__ = ("users",)

    def __init__(self, users=1):
        self.users = users

    def remove_user(self):
        """Decrement the number of gradients."""
        if self.users is not None:
            self.users -= 1

    def add_user(self):
        """Increment the number of gradients."""
        if self.users is not None:
            self.users += 1


class GradientSums:
    """The gradient of each value, summed over all calls that took the value.

    A gradient may be overwritten if a recorded layer has made it, and no other gradient shares its memory.

    Parameters
    ----------
    seeds : sequence of (int, ndarray or float)
        Values, and their initial gradients.
    overwrite : bool
        True if the seeds may be overwritten.
    """

    def __init__(self, seeds, overwrite):
        self._sums = {}  # value -> (gradient, _Buffer)
        may_overwrite = overwrite and not any(_share(a, b) for (_, a), (_, b) in combinations(seeds, 2))
        for value, gradient in seeds:
            self._add(value, gradient, _Buffer(1 if may_overwrite else None))

    def pop(self, value, keep=False):
        """Return (gradient, buffer) of a value, or None. Remove it from the table unless `keep` is True."""
        if not keep:
            return self._sums.pop(value, None)
        found = self._sums.get(value)
        if found is not None:
            found[1].add_user()
        return found

    def add(self, values, gradients, passed):
        """Add the gradients that the backward of one call returned.

        Parameters
        ----------
        values : sequence of int or None
            The value of each gradient; None if its gradient is not needed.
        gradients : sequence of ndarray or None
        passed : sequence of (ndarray, buffer)
            The gradients that were passed to that backward. Those it returned may share their memory.
        """
        pairs = zip(values, gradients, strict=True)
        wanted = [(v, gradient) for v, gradient in pairs if v is not None and gradient is not None]
        buffers = [self._buffer_of(i, wanted, passed) for i in range(len(wanted))]
        for _, buffer in passed:
            buffer.remove_user()
        for (value, gradient), buffer in zip(wanted, buffers, strict=True):
            self._add(value, gradient, buffer)

    def add_result(self, value, gradient, dz, may_overwrite):
        """Add the gradient that a backward returned for `dz`, and may have written over it."""
        self.add([value], [gradient], [(dz, _Buffer(1 if may_overwrite else None))])

    def _buffer_of(self, i, wanted, passed):
        """Return the buffer of result `i`: that of a passed gradient with the same memory, or a new one."""
        gradient = wanted[i][1]
        alone = not any(_share(gradient, other) for j, (_, other) in enumerate(wanted) if j != i)
        for dz, buffer in passed:
            if _share(gradient, dz):
                if alone and buffer.users == 1:
                    return _Buffer()  # such as slices of a joined array, which do not overlap
                buffer.add_user()
                return buffer
        return _Buffer(1 if alone else None)

    def _add(self, value, gradient, buffer):
        """Add a gradient to the sum of a value, in place where no other gradient shares the memory."""
        known = self._sums.get(value)
        if known is None:
            self._sums[value] = gradient, buffer
            return
        total, its_buffer = known
        if may_overwrite(total, its_buffer):
            buffer.remove_user()
            self._sums[value] = np.add(total, gradient, out=total), its_buffer
        elif may_overwrite(gradient, buffer):
            its_buffer.remove_user()
            self._sums[value] = np.add(gradient, total, out=gradient), buffer
        else:
            buffer.remove_user()
            its_buffer.remove_user()
            self._sums[value] = total + gradient, _Buffer()

    def take(self, value):
        """Remove and return the gradient of a value, copied if its memory is shared, or None."""
        gradient, buffer = self._sums.pop(value, (None, None))
        if not isinstance(gradient, np.ndarray) or may_overwrite(gradient, buffer):
            return gradient
        buffer.remove_user()
        return gradient.copy(order="K")


def may_overwrite(gradient, buffer):
    """Return True if a gradient is a writeable array, and no other gradient shares its memory."""
    return buffer.users == 1 and isinstance(gradient, np.ndarray) and gradient.flags.writeable


def _share(gradient, other):
    """Return True if both are arrays, and share memory."""
    return (
        isinstance(gradient, np.ndarray) and isinstance(other, np.ndarray) and share_memory(gradient, other)
    )
