"""Arrays of address space without memory: to follow what a network allocates, without running it.

A `ShapeArray` has shape, strides, dtype and an address of its own, so that views, locks and the ledger work
as for any array. NumPy's functions return further shape arrays, and neither read nor write elements. Layers
run on them unchanged: `inplace_abn.plan` is made of this.

Inside `planning`, layers allocate shape arrays, and operations on blocks of an array process one block or
none of them. The `Meter` counts what is allocated.

>>> import numpy as np
>>> with planning(Meter()) as count:
...     x = ShapeArray((1000, 1000, 1000), np.float32)
...     z = np.exp(x) + x[:1]
>>> z.shape, z.dtype.name, count.live == 2 * x.nbytes, count.peak == 3 * x.nbytes
((1000, 1000, 1000), 'float32', True, True)
"""

from . import functions  # noqa: F401  (enters the rules of NumPy's functions)
from .array import ShapeArray, new_array
from .generator import ShapeGenerator
from .meter import Meter, first_if_planning, meter, none_if_planning, planning

__all__ = [
    "Meter",
    "ShapeArray",
    "ShapeGenerator",
    "first_if_planning",
    "meter",
    "new_array",
    "none_if_planning",
    "planning",
]  # fmt: skip
