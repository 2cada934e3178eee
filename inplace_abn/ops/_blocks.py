"""Processing arrays in blocks, so that temporaries stay in the cache for any size of the batch."""

import math
from contextlib import contextmanager

import numpy as np

from .._dtypes import is_half
from .._shape_arrays import first_if_planning

#: Number of elements in a block.
BLOCK = 1 << 15


def element_blocks(shape, max_elements=BLOCK):
    """Iterate over the indices of blocks of at most `max_elements` that partition an array of `shape`.

    >>> list(element_blocks((3, 4), 8))
    [(slice(0, 2, None),), (slice(2, 4, None),)]
    >>> list(element_blocks((2, 4), 3))[:2]
    [(slice(0, 1, None), slice(0, 3, None)), (slice(0, 1, None), slice(3, 6, None))]
    """
    return first_if_planning(_element_blocks(shape, max_elements))


def _element_blocks(shape, max_elements):
    if not shape:
        yield ()
        return
    inner = math.prod(shape[1:])
    if inner <= max_elements or len(shape) == 1:
        step = max(1, max_elements // max(1, inner))
        for first in range(0, shape[0], step):
            yield (slice(first, first + step),)
        return
    for first in range(shape[0]):
        for rest in _element_blocks(shape[1:], max_elements):
            yield (slice(first, first + 1), *rest)


def widened(array):
    """Return a float32 copy of an array of a half type, and any other array itself."""
    return array.astype(np.float32) if is_half(array.dtype) else array


@contextmanager
def rounded_into(ctx, out):
    """Yield the array for a result: `out`, or for half types a float32 array that is then rounded to `out`.

    >>> class Operation:
    ...     def temporary(self, nbytes):
    ...         print("scratch:", nbytes, "bytes")
    >>> out = np.zeros(2, np.float16)
    >>> with rounded_into(Operation(), out) as sums:
    ...     sums[...] = 1 / 3
    scratch: 8 bytes
    >>> out
    array([0.3333, 0.3333], dtype=float16)
    """
    if not is_half(out.dtype):
        yield out
        return
    scratch = np.empty_like(out, np.float32)
    ctx.temporary(scratch.nbytes)
    yield scratch
    out[...] = scratch
