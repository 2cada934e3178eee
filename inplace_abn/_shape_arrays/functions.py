"""Results of NumPy's functions on shape arrays: their shapes, dtypes and orders of memory.

Importing this module enters them into `array.rules`, where `ShapeArray` finds them.
"""

import math

import numpy as np

from .array import ShapeArray, like, rules
from .meter import meter

# ---- ufuncs ------------------------------------------------------------------------------------------------


def _small(value):
    """Return an array of one element for an array, and other values unchanged."""
    return np.zeros((1,) * value.ndim, value.dtype) if isinstance(value, np.ndarray) else value


def ufunc_result(ufunc, method, inputs, out, options):
    """Return the result of a method of a ufunc: `out`, or new arrays."""
    if method not in _METHODS:
        raise TypeError(f"a plan has no rule for NumPy's {ufunc.__name__}.{method}")
    if out is not None and all(array is not None for array in out):
        if ufunc is np.matmul:
            _count_product(*inputs)
        return out[0] if len(out) == 1 else out
    return _METHODS[method](ufunc, inputs, options)


def _called(ufunc, inputs, options):
    """Return the results of a call of a ufunc in new arrays."""
    if ufunc is np.matmul:
        return _matmul(*inputs)
    if ufunc.signature is not None:
        raise TypeError(f"a plan has no rule for NumPy's {ufunc.__name__}")
    options.pop("where", None)
    with np.errstate(all="ignore"):
        small = ufunc(*map(_small, inputs), **options)  # for the dtypes
    if not isinstance(small, tuple):
        return _elementwise(inputs, small.dtype)
    return tuple(_elementwise(inputs, result.dtype) for result in small)


def _elementwise(inputs, dtype):
    """Return a new array of the broadcast shape, in the memory order of the largest input."""
    shape = np.broadcast_shapes(*(np.shape(value) for value in inputs))
    candidates = [value for value in inputs if isinstance(value, np.ndarray) and value.ndim == len(shape)]
    if not candidates:
        return ShapeArray(shape, dtype)
    return like(max(candidates, key=lambda value: (0 not in value.strides, value.size)), dtype, shape)


def _reduced(ufunc, inputs, options):
    """Return the result of `ufunc.reduce`."""
    (array, *_), axis, keep = inputs, options.get("axis", 0), bool(options.get("keepdims"))
    options.pop("where", None)
    with np.errstate(all="ignore"):
        dtype = ufunc.reduce(_small(array), **options).dtype
    axes = range(array.ndim) if axis is None else np.atleast_1d(axis) % array.ndim
    shape = tuple(1 if i in axes else n for i, n in enumerate(array.shape) if keep or i not in axes)
    # A reduction of all elements is a number, which the caller may test, for example for errors. It is 0, and
    # True for np.all.
    return ShapeArray(shape, dtype) if shape else dtype.type(ufunc is np.logical_and)


def _reduced_at(ufunc, inputs, options):
    """Return the result of `ufunc.reduceat`."""
    array, indices = inputs
    shape = list(array.shape)
    shape[options.get("axis", 0)] = len(indices)
    return like(array, options.get("dtype"), shape)


_METHODS = {"__call__": _called, "accumulate": _called, "reduce": _reduced, "reduceat": _reduced_at}


def _count_product(a, b):
    """Count the operations of a matrix product."""
    if meter() is not None:
        meter().multiplied(math.prod(a.shape) * (b.shape[-1] if b.ndim > 1 else 1))


def _matmul(a, b):
    _count_product(a, b)
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    rows, columns = a.shape[-2:-1], b.shape[-1:] if b.ndim > 1 else ()
    return ShapeArray((*batch, *rows, *columns), np.result_type(a, b))


# ---- functions ---------------------------------------------------------------------------------------------

#: Functions that make views, compare memory or shapes, or are implemented by ufuncs.
OF_SHAPES = {
    "all", "amax", "amin", "any", "array_split", "atleast_1d", "atleast_2d", "broadcast_arrays",
    "broadcast_to", "can_cast", "clip", "expand_dims", "flip", "hsplit", "iscomplexobj", "max",
    "may_share_memory", "mean", "min", "moveaxis", "ndim", "prod", "ravel", "reshape", "result_type",
    "rollaxis", "round", "shape", "shares_memory", "size", "split", "squeeze", "std", "sum", "swapaxes",
    "transpose", "var", "vsplit",
}  # fmt: skip


def _concatenate(arrays, axis=0, out=None, **options):
    if out is not None:
        return out
    first, shape = arrays[0], list(arrays[0].shape)
    shape[axis] = sum(array.shape[axis] for array in arrays)
    if meter() is not None:
        meter().passed(*arrays, *arrays)
    return like(first, np.result_type(*arrays), shape)


def _where(condition, a, b):
    return _elementwise((condition, a, b), np.result_type(_small(a), _small(b)))


def _take(array, indices, axis=None, out=None, mode="raise"):
    if out is not None:
        return out
    before = () if axis is None else array.shape[: axis % array.ndim]
    after = () if axis is None else array.shape[axis % array.ndim + 1 :]
    return ShapeArray((*before, *np.shape(indices), *after), array.dtype)


def _take_along_axis(array, indices, axis):
    shape = list(np.broadcast_shapes(*(_with_length_1(each.shape, axis) for each in (array, indices))))
    shape[axis] = indices.shape[axis]
    return ShapeArray(tuple(shape), array.dtype)


def _with_length_1(shape, axis):
    """Return a shape whose axis `axis` has the length 1."""
    return (*shape[:axis], 1, *shape[axis % len(shape) + 1 :])


def _packed(array, axis=None, **_):
    shape = [array.size] if axis is None else list(array.shape)
    shape[axis or 0] = -(-shape[axis or 0] // 8)
    return ShapeArray(tuple(shape), np.uint8)


def _unpacked(array, axis=None, count=None, **_):
    shape = [array.size] if axis is None else list(array.shape)
    shape[axis or 0] = 8 * shape[axis or 0] if count is None else count
    return ShapeArray(tuple(shape), np.uint8)


def _repeat(array, repeats, axis):
    shape = list(array.shape)
    shape[axis] *= repeats
    return ShapeArray(tuple(shape), array.dtype)


def _stack(arrays, axis=0, **_):
    return _concatenate([np.expand_dims(array, axis) for array in arrays], axis)


def _new(shape, dtype=np.float64, *_, **__):
    return ShapeArray((shape,) if isinstance(shape, int) else shape, dtype)


def _full(shape, value, dtype=None, **_):
    return _new(shape, np.result_type(value) if dtype is None else dtype)


def _new_like(array, dtype=None, order="K", subok=True, shape=None, **_):
    return like(array, dtype, shape)


def _full_like(array, value, dtype=None, **_):
    return like(array, dtype)


def _nothing(*_, **__):
    pass


def _as_array(array, dtype=None, **_):
    return array.astype(dtype or array.dtype, copy=False)


#: NumPy function -> function with the same arguments that returns the result for shape arrays.
RULES = {
    np.asarray: _as_array,
    np.concatenate: _concatenate,
    np.copy: lambda array, order="K", subok=False: array.copy(order),
    np.copyto: _nothing,
    np.empty: _new,
    np.empty_like: _new_like,
    np.full: _full,
    np.full_like: _full_like,
    np.ones: _new,
    np.ones_like: _new_like,
    np.packbits: _packed,
    np.put_along_axis: _nothing,
    np.repeat: _repeat,
    np.stack: _stack,
    np.take: _take,
    np.take_along_axis: _take_along_axis,
    np.unpackbits: _unpacked,
    np.where: _where,
    np.zeros: _new,
    np.zeros_like: _new_like,
}

rules.functions, rules.of_shapes, rules.ufunc = RULES, OF_SHAPES, ufunc_result
