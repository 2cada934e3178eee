"""`functional.forward` and `backward` on arrays of a simulated GPU."""

import numpy as np
import pytest
from simulated import needs_compiler

from inplace_abn import functional

pytestmark = [needs_compiler, pytest.mark.usefixtures("simulated")]


class DeviceArray:
    """An array of the simulated GPU, with what the functions use of the array API."""

    def __init__(self, array):
        self.array = array
        self.shape, self.dtype, self.device = array.shape, array.dtype, "simulated"

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, stream):
        assert stream == 1
        return self.array.__dlpack__()

    def __array_namespace__(self):
        return Namespace

    def __setitem__(self, key, value):
        self.array[key] = value.array

    def __iadd__(self, other):
        self.array += other.array
        return self

    def sum(self):
        return DeviceArray(self.array.sum())


class Namespace:
    uint8, float32 = np.uint8, np.float32

    @staticmethod
    def empty(count, dtype, device):
        assert device == "simulated"
        return DeviceArray(aligned(count, dtype))

    @staticmethod
    def empty_like(array):
        empty = aligned(array.array.size, array.dtype).reshape(array.shape)
        if array.array.flags.c_contiguous:
            return DeviceArray(empty)
        last = (array.shape[0], *array.shape[2:], array.shape[1])
        return DeviceArray(np.moveaxis(empty.reshape(last), -1, 1))


def aligned(count, dtype):
    """Return an ndarray at a multiple of 64 bytes, as memory of a GPU is."""
    memory = np.full(count * np.dtype(dtype).itemsize + 64, 0xFF, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : len(memory) - 64 + start].view(dtype)


def on_device(array):
    copied = Namespace.empty_like(DeviceArray(array))
    copied.array[...] = array
    return copied


def batches(count, layout="first", dtype=np.float32, shape=(3, 8, 5, 7)):
    random = np.random.default_rng(5)
    made = [random.normal(size=shape).astype(dtype) for _ in range(count)]
    if layout == "last":
        made = [np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1) for a in made]
    return made


def vectors(channels=8):
    random = np.random.default_rng(6)
    return {
        "weight": random.uniform(0.5, 2, channels).astype(np.float32),
        "bias": random.normal(size=channels).astype(np.float32),
    }


@pytest.mark.parametrize("strategy", ["inplace", "pre_activation", "standard"])
@pytest.mark.parametrize("layout", ["first", "last"])
def test_results_are_those_of_the_cpu(layout, strategy):
    x, residual, dz, total = batches(4, layout)
    arguments = vectors() | {"running_mean": np.zeros(8, np.float32), "running_var": np.ones(8, np.float32)}
    z, ctx = functional.forward(np.copy(x), residual=residual, strategy=strategy, **arguments)
    z, wanted = z.copy(), functional.backward(ctx, dz)
    device = {name: on_device(array) for name, array in arguments.items()}
    for name in ("running_mean", "running_var"):
        device[name].array[...] = name == "running_var"
    x, residual, dz, total = map(on_device, (x, residual, dz, total))
    before = total.array.copy()
    found, ctx = functional.forward(x, residual=residual, strategy=strategy, **device)
    assert (found is x) == (strategy == "inplace")
    assert sorted(ctx.saved) == sorted(
        [{"inplace": "z", "pre_activation": "y", "standard": "x"}[strategy], "residual"]
    )
    gradients = functional.backward(ctx, dz, overwrite=True, residual_grad=total)
    assert ctx.freed
    assert gradients.dx is dz
    assert gradients.dresidual is total
    np.testing.assert_allclose(found.array, z, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dz.array, wanted.dx, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradients.dweight.array, wanted.dweight, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradients.dbias.array, wanted.dbias, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(total.array - before, wanted.dresidual, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(device["running_mean"].array, arguments["running_mean"], rtol=1e-5, atol=1e-6)


def test_one_slope_arrays_of_the_caller_and_a_second_backward():
    x, dz = batches(2)
    slope = np.array([0.25], np.float32)
    _, ctx = functional.forward(x.copy(), activation="prelu", slope=slope, **vectors())
    wanted = functional.backward(ctx, dz)
    x, dz, slope = map(on_device, (x, dz, slope))
    weights = {name: on_device(array) for name, array in vectors().items()}
    found, ctx = functional.forward(x, activation="prelu", slope=slope, hold=False, **weights)
    assert found is x
    assert ctx.saved == {}
    out = on_device(dz.array)
    for _ in range(2):
        gradients = functional.backward(ctx, dz, kept=x, out=out, keep=True)
        assert gradients.dx is out
        assert gradients.dslope.array.shape == (1,)
        np.testing.assert_allclose(gradients.dslope.array, wanted.dslope, rtol=1e-5)
        np.testing.assert_allclose(out.array, wanted.dx, rtol=1e-4, atol=1e-5)
    ctx.release()
    with pytest.raises(RuntimeError, match="freed"):
        functional.backward(ctx, dz, kept=x)


def test_refusals_of_the_forward_are_those_of_the_cpu():
    x, other = batches(2)
    for changes in (
        {"weight": np.ones(5, np.float32)}, {"residual": other[:1]}, {"eps": 0}, {"activation": "relu"},
        {"activation": "none"}, {"residual": other.astype(np.float64)}, {"momentum": 2}, {"training": False},
    ):  # fmt: skip
        errors = []
        for convert in (lambda a: a, on_device):
            moved = {name: convert(v) if isinstance(v, np.ndarray) else v for name, v in changes.items()}
            with pytest.raises((TypeError, ValueError)) as raised:
                functional.forward(convert(x), **moved)
            errors.append((raised.type, str(raised.value)))
        assert errors[0] == errors[1]


def test_refusals_of_a_gpu():
    x, other = batches(2)
    device, dz = on_device(x), on_device(other)
    with pytest.raises(TypeError, match="weight must be on the GPU of x"):
        functional.forward(device, weight=np.ones(8, np.float32))
    with pytest.raises(ValueError, match="mask is not possible on a GPU"):
        functional.forward(device, mask=np.ones((3, 5, 7), bool))
    with pytest.raises(ValueError, match="supports identity, leaky_relu, prelu"):
        functional.forward(device, activation="silu")
    with pytest.raises(ValueError, match="must have no gaps"):
        functional.forward(DeviceArray(device.array[:, :4]))
    with pytest.raises(ValueError, match="multiple of 16 bytes"):
        functional.forward(DeviceArray(aligned(41, np.float32)[1:].reshape(5, 8)))
    with pytest.raises(ValueError, match="x must have elements"):
        functional.forward(on_device(x[:0]))
    assert (device.array == x).all()
    _, ctx = functional.forward(device)
    for arguments, message in (
        ({"out": dz, "overwrite": True}, "give one of them"), ({"kept": dz}, "leave it out"),
        ({"residual_out": dz}, "that was given residual"), ({"out": dz}, "share memory"),
        ({"residual_activation": "relu"}, "pass the residual itself"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            functional.backward(ctx, dz, **arguments)
    with pytest.raises(ValueError, match="must have the strides of x"):
        functional.backward(ctx, on_device(batches(1, "last")[0]))
    with pytest.raises(TypeError, match="dz must be float32"):
        functional.backward(ctx, on_device(other.astype(np.float16)))
    for elsewhere in (None, other):
        with pytest.raises(TypeError, match="dz must be on the GPU of x"):
            functional.backward(ctx, elsewhere)
    assert not ctx.freed
