"""Arrays of address space without memory."""

import math
import mmap
import sys

import numpy as np

from . import shapes
from .meter import meter


def new_array(shape, dtype, strides):
    """Return an uninitialized array; a shape array inside `planning`."""
    kind = np.ndarray if meter() is None else ShapeArray
    return kind(shape, dtype, strides=strides)


#: Private pages. Linux must not reserve memory for them: MAP_NORESERVE, which Python names from 3.13 on.
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
if sys.platform == "linux":
    _PRIVATE["flags"] |= 0x4000


class _AddressSpace(mmap.mmap):
    """Pages that take no memory until something is written to them."""

    def __new__(cls, nbytes):
        self = super().__new__(cls, -1, max(1, nbytes), **_PRIVATE)
        self.meter, self.nbytes = meter(), nbytes
        if self.meter is not None:
            self.meter.allocated(nbytes)
        return self

    def __del__(self):
        if getattr(self, "meter", None) is not None:
            self.meter.allocated(-self.nbytes)


class _Rules:
    """What NumPy's functions return for shape arrays; set by `functions`, which needs `ShapeArray`.

    Attributes
    ----------
    functions : dict
        NumPy function -> function with the same arguments.
    of_shapes : set of str
        Names of the NumPy functions that may run, since they allocate, read and write nothing.
    ufunc : function of ufunc, method, inputs, out, options
    """

    functions, of_shapes, ufunc = {}, frozenset(), None


rules = _Rules()


class ShapeArray(np.ndarray):
    """An array without memory; see `inplace_abn._shape_arrays`.

    Parameters
    ----------
    shape : tuple of int
    dtype : dtype
    strides : tuple of int, optional
    """

    def __new__(cls, shape, dtype=np.float64, strides=None):
        dtype = np.dtype(dtype)
        space = _AddressSpace(math.prod(shape) * dtype.itemsize)
        self = super().__new__(cls, shape, dtype, buffer=space, strides=strides)
        self._root = None
        return self

    def __array_finalize__(self, source):
        if isinstance(source, ShapeArray):
            self._root = source if source._root is None else source._root
        else:
            self._root = None

    @property
    def base(self):
        """The array that this one is a view of, or None, as for arrays with memory."""
        return self._root

    # ---- functions -----------------------------------------------------------------------------------------

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        if meter() is not None:
            meter().passed(*inputs, *(out or ()))
        return rules.ufunc(ufunc, method, inputs, out, options)

    def __array_function__(self, function, types, arguments, options):
        if function in rules.functions:
            return rules.functions[function](*arguments, **options)
        if function.__name__ in rules.of_shapes:
            return super().__array_function__(function, types, arguments, options)
        raise TypeError(
            f"a plan has no rule for NumPy's {function.__name__}, only for ufuncs, sums, matmul and views"
        )

    # ---- methods that allocate, read or write --------------------------------------------------------------

    def copy(self, order="C"):
        """Return a new array."""
        return like(self, keep_order=order == "K")

    def __copy__(self):
        return self.copy("K")

    def __deepcopy__(self, memo):
        return self.copy("K")

    def astype(self, dtype, order="K", casting="unsafe", subok=True, copy=True):
        """Return a new array of another dtype, or this one if it has the dtype and `copy` is False."""
        ordered = order == "K" or (order == "C" and self.flags.c_contiguous)
        if not copy and self.dtype == dtype and ordered:
            return self
        return like(self, dtype, keep_order=order == "K")

    def reshape(self, *shape, order="C"):
        """Return a view if the strides permit it, else a new array."""
        shape = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        shape = shapes.completed(shape, self.size)
        if math.prod(shape) != self.size:
            raise ValueError(f"cannot reshape array of size {self.size} into shape {shape}")
        if shapes.has_view(self, shape):
            return super().reshape(shape)
        return ShapeArray(shape, self.dtype)

    def ravel(self, order="C"):
        """Return the elements as a vector."""
        return self.reshape(-1)

    def flatten(self, order="C"):
        """Return a copy as a vector."""
        return ShapeArray((self.size,), self.dtype)

    def fill(self, value):
        """Do nothing."""

    def take(self, indices, axis=None, out=None, mode="raise"):
        """Return the array of the elements at some positions."""
        return np.take(self, indices, axis, out)

    def __getitem__(self, index):
        if shapes.is_advanced(index):
            return ShapeArray(shapes.selected_shape(self.shape, index), self.dtype)
        view = super().__getitem__(index)
        if not isinstance(view, np.ndarray):
            raise TypeError("a plan has shapes alone, and a value of an array is read")
        return view

    def __setitem__(self, index, value):
        if meter() is not None:
            meter().passed(self if index is Ellipsis else super().__getitem__(index), value)

    def __repr__(self):
        return f"ShapeArray({self.shape}, {self.dtype})"

    __str__ = __repr__


def like(array, dtype=None, shape=None, keep_order=True):
    """Return a new array with the shape, dtype and order of axes of another one."""
    dtype, shape = np.dtype(dtype or array.dtype), array.shape if shape is None else tuple(shape)
    if not keep_order or len(shape) != array.ndim or array.flags.c_contiguous:
        return ShapeArray(shape, dtype)
    strides, step = [0] * len(shape), dtype.itemsize
    for axis in sorted(range(len(shape)), key=lambda axis: (abs(array.strides[axis]), -axis)):
        strides[axis] = step
        step *= max(1, shape[axis])
    return ShapeArray(shape, dtype, tuple(strides))
