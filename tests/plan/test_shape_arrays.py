"""Shape arrays have the shapes, dtypes, memory order and views of arrays, and no memory."""

import tracemalloc

import numpy as np
import pytest

from inplace_abn._shape_arrays import Meter, ShapeArray, ShapeGenerator, planning
from inplace_abn.layers.saved_arrays import is_saved

SHAPE = (4, 3, 6, 5)


def both(function, dtype=np.float32, permuted=False):
    """Return the result of a function of an array, and of a shape array."""
    memory = (4, 6, 5, 3) if permuted else SHAPE
    real, shape = np.ones(memory, dtype), ShapeArray(memory, dtype)
    return tuple(function(np.moveaxis(array, -1, 1) if permuted else array) for array in (real, shape))


#: Results without a fixed order of memory, which nothing depends on.
ANY_ORDER = {
    "sum", "mean", "max", "variance", "take", "repeat", "take along", "index arrays", "packbits", "stack",
}  # fmt: skip
FUNCTIONS = {
    "add": lambda a: a + 1,
    "float64": lambda a: a * np.float64(2),
    "broadcast": lambda a: a[:, :1] + a[0],
    "compare": lambda a: a > 0,
    "integers": lambda a: a.astype(np.int32) // 2,
    "modf": lambda a: np.modf(a)[1],
    "in place": lambda a: np.add(a, a, out=a),
    "sum": lambda a: a.sum(axis=(0, 2), dtype=np.float64),
    "mean": lambda a: a.mean(axis=1, keepdims=True),
    "max": lambda a: np.max(a, axis=-1),
    "variance": lambda a: a.var(axis=(0, 2, 3)),
    "matmul": lambda a: a @ np.ones((5, 7), a.dtype),
    "vector": lambda a: a @ np.ones(5, a.dtype),
    "reduceat": lambda a: np.add.reduceat(a, [0, 2], axis=2),
    "slice": lambda a: a[1:3, ..., ::2],
    "new axis": lambda a: a[:, None],
    "transpose": lambda a: a.transpose(0, 2, 3, 1),
    "view": lambda a: a.reshape(4, -1),
    "reshape with a copy": lambda a: np.moveaxis(a, 1, 2).reshape(4, -1),
    "copy": lambda a: a.copy(),
    "copy in order": lambda a: a.copy("K"),
    "astype": lambda a: a.astype(np.float64),
    "the same dtype": lambda a: a.astype(a.dtype, copy=False),
    "zeros_like": lambda a: np.zeros_like(a),
    "empty like": lambda a: np.empty((2, 3), np.int8, like=a),
    "concatenate": lambda a: np.concatenate([a, a[:, :1]], 1),
    "stack": lambda a: np.stack([a, a], 1),
    "where": lambda a: np.where(a > 0, a, 0),
    "take": lambda a: np.take(a, [0, 2, 2], axis=2),
    "take along": lambda a: np.take_along_axis(a, np.zeros((4, 1, 6, 5), np.intp), 1),
    "packbits": lambda a: np.packbits(a > 0, axis=1),
    "clip": lambda a: np.clip(a, 0, 1),
    "repeat": lambda a: np.repeat(a, 3, axis=1),
    "index arrays": lambda a: a[:, np.array([0, 1])],
    "broadcast_to": lambda a: np.broadcast_to(a[:1], a.shape) + a,
    "flatten": lambda a: a.flatten(),
}


@pytest.mark.parametrize("permuted", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_return_the_same_shape_dtype_and_order(name, permuted):
    real, shape = both(FUNCTIONS[name], permuted=permuted)
    assert isinstance(shape, ShapeArray)
    assert (shape.shape, shape.dtype) == (real.shape, real.dtype)
    if name not in ANY_ORDER:
        assert shape.strides == real.strides


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 2, 3, 1), (3, 2, 1, 0), (1, 0, 2, 3), (2, 3, 0, 1)])
@pytest.mark.parametrize(
    "shape", [(24, 15), (12, 30), (4, 3, 30), (2, 2, 3, 6, 5), (360,), (4, 1, 90), (8, 45), (1, 4, 18, 5)]
)
def test_reshape_is_a_view_where_numpy_makes_one(axes, shape):
    for index in (..., slice(1, 3), (slice(None), slice(None), slice(0, 1))):
        real, array = (a.transpose(axes)[index] for a in (np.ones(SHAPE), ShapeArray(SHAPE)))
        wanted = shape if real.size == 360 else (-1, real.shape[-1])
        results = real.reshape(wanted), array.reshape(wanted)
        assert results[1].shape == results[0].shape
        assert np.may_share_memory(array, results[1]) == np.may_share_memory(real, results[0])
        assert results[1].strides == results[0].strides


def test_nothing_is_allocated():
    tracemalloc.start()
    x = ShapeArray((10**4, 10**4, 10), np.float32)
    z = (np.exp(x) + x).sum(axis=0)
    z[...] = 1
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert used < 10**5
    assert z.nbytes == 4 * 10**5


def test_memory_is_counted_from_allocation_to_release():
    with planning(Meter()) as meter:
        x = ShapeArray((100,), np.float64)
        view = x[10:]
        del x
        assert meter.live == 800  # the view holds the memory
        z = view + 1
        del view
        assert (meter.live, meter.peak) == (720, 1520)
        del z
    assert meter.live == 0


def test_views_share_memory_and_new_arrays_do_not():
    x = ShapeArray(SHAPE)
    assert np.shares_memory(x, x[1:])
    assert not np.shares_memory(x[:2], x[2:])
    assert not np.may_share_memory(x, x.copy())
    assert x[1:].base is x
    assert x.base is None
    assert x[1:][1:].base is x


def test_saved_arrays_are_found_and_locked():
    from inplace_abn.layers import LayerContext

    x, context = ShapeArray(SHAPE), LayerContext("test")
    context.save_for_backward(input=x)
    assert is_saved(x[1:])
    assert not x.flags.writeable
    context.release()
    assert not is_saved(x)
    assert x.flags.writeable


def test_values_cannot_be_read():
    x = ShapeArray(SHAPE)
    with pytest.raises(TypeError, match="shapes alone, and a value"):
        x[0, 0, 0, 0]
    with pytest.raises(TypeError, match="mask of bools"):
        x[x > 0]
    with pytest.raises(TypeError, match="has no rule for NumPy's sort"):
        np.sort(x)
    with pytest.raises(TypeError, match=r"has no rule for NumPy's add\.at"):
        np.add.at(x, 0, 1)
    with pytest.raises(ValueError, match="cannot reshape"):
        x.reshape(7, 7)


def test_a_generator_draws_shape_arrays():
    drawn = ShapeGenerator().random((2, 3), np.float32) < 0.5
    assert isinstance(drawn, ShapeArray)
    assert drawn.shape == (2, 3)
