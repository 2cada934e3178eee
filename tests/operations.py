"""Forward and backward of an operation of `inplace_abn.ops`, and checks of its gradients."""

import numpy as np
from finite_differences import numerical_gradient

EPS = {"float32": 2.0**-23, "float64": 2.0**-52}


class Context:
    """The attributes of a context that operations use; `scratch` is the largest temporary reported."""

    def __init__(self):
        self.saved, self.scratch = {}, 0

    def save_for_backward(self, **arrays):
        self.saved.update(arrays)

    def temporary(self, nbytes):
        self.scratch = max(self.scratch, nbytes)


def generator(seed=0):
    return np.random.default_rng(seed)


def normal(shape, dtype="float64", seed=0):
    return generator(seed).standard_normal(shape).astype(dtype)


def laid_out(array, channel_axis):
    """Return (N, C, ...) with the channels at `channel_axis`, in memory of that order."""
    return np.ascontiguousarray(np.moveaxis(array, 1, channel_axis))


def strided(array):
    """Return the same values in memory with gaps along every axis, which BLAS does not accept."""
    memory = np.zeros(tuple(2 * length for length in array.shape), array.dtype).T
    view = memory.T[tuple(slice(None, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def run(operation, x, *arguments, dz=None, overwrite=False, **keywords):
    """Return z, the result of the backward for dz (ones by default), and dz itself."""
    ctx = Context()
    z = operation.forward(ctx, x, *arguments, **keywords)
    dz = np.ones_like(z) if dz is None else dz
    return z, operation.backward(ctx, dz, overwrite=overwrite), dz


def assert_gradients(operation, arrays, *arguments, most=1e-9, **keywords):
    """Compare the gradients by `arrays` (x first) with central differences, for a random dz."""
    z = operation.forward(Context(), *arrays, *arguments, **keywords)
    dz = normal(np.shape(z), seed=9)
    _, gradients, _ = run(operation, *arrays, *arguments, dz=dz, **keywords)

    def loss():
        return float((operation.forward(Context(), *arrays, *arguments, **keywords) * dz).sum())

    for number, (array, gradient) in enumerate(zip(arrays, gradients, strict=True)):
        want = numerical_gradient(loss, array)
        assert gradient.shape == array.shape
        assert np.abs(gradient - want).max(initial=0) <= most * max(1, np.abs(want).max(initial=0)), number
