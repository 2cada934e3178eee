"""Random numbers without values."""

import numpy as np

from .array import ShapeArray


class ShapeGenerator(np.random.Generator):
    """A generator of random numbers that draws shape arrays.

    >>> ShapeGenerator().random((2, 3), np.float32)
    ShapeArray((2, 3), float32)
    """

    def __init__(self):
        super().__init__(np.random.PCG64(0))

    def random(self, size=None, dtype=np.float64, out=None):
        """Return a shape array."""
        return ShapeArray(size, dtype)

    def uniform(self, low=0.0, high=1.0, size=None):
        """Return a shape array."""
        return ShapeArray(size, np.float64)
