"""The tape: arrays that are not recorded, that were overwritten, or that are constants."""

import numpy as np
import pytest
from networks import abn, conv, normal

from inplace_abn import layers
from inplace_abn.layers import Flatten, Linear, no_grad, record

pytestmark = pytest.mark.essential

SHAPE = (3, 4, 3, 4)


def test_views_that_numpy_makes_of_recorded_arrays_are_refused():
    x, linear = normal((2, 4, 1, 1)), Linear(4, 2, dtype=float)
    with record() as tape:
        a = conv()(x)
        for view in (a.reshape(2, 4), a[:, :, 0, 0], a[:1, :, 0, 0]):
            with pytest.raises(
                ValueError, match=r"Linear: input 0, .* shares memory with the result of Conv2d of shape"
            ):
                linear(view)
        linear(Flatten()(a))
    assert tape.backward(np.ones((2, 2))).shape == x.shape


def test_results_of_numpy_functions_are_refused():
    x, layer = normal((2, 4)), Linear(4, 4, dtype=float)
    with (
        record(x),
        pytest.raises(ValueError, match=r"Linear: input 0, .* is neither an input of the tape nor"),
    ):
        layer(np.tanh(layer(x)))
    with record() as tape:
        z = layer(np.tanh(layer(x)))
    with pytest.raises(ValueError, match=r"outputs: 2 results, of .* are not inputs of other recorded calls"):
        tape.backward(np.ones((2, 4)))
    with pytest.raises(ValueError, match=r"inputs: 2 arrays were not made by recorded calls, and of these"):
        tape.backward(np.ones((2, 4)), outputs=z)
    with pytest.raises(ValueError, match=r"inputs\[0\]: .* no recorded call leads from it"):
        tape.backward(np.ones((2, 4)), outputs=z, inputs=[x, tape._outside[1][0]()])


def test_recorded_arrays_are_read_only_until_the_block_ends():
    x, layer = normal((2, 4)), layers.GlobalAvgPool2d()
    images = normal(SHAPE)
    with record():
        a = layer(images)
        with pytest.raises(ValueError, match="read-only"):
            a *= 2
        with pytest.raises(ValueError, match="read-only"):
            images[0] = 0
        z = layers.add(a, 1.0)
    z *= 2
    images[0] = 0
    assert x.flags.writeable


def test_an_overwritten_array_is_refused_under_every_name():
    with record() as tape:
        a = conv()(normal((2, 4, 1, 1)))
        flat = Flatten()(a)
        z = abn(strategy="inplace")(flat)
        with pytest.raises(ValueError, match=r"input 0, of shape \(2, 4, 1, 1\), was overwritten by ABN"):
            conv()(a)
        assert z is flat
    with pytest.raises(ValueError, match="ABN has overwritten this array"):
        tape.backward(np.ones(a.shape), outputs=a)
    assert tape.backward(np.ones((2, 4))).shape == a.shape


def test_an_input_that_shares_memory_with_another_is_refused():
    x = normal((4, 4))
    with record(), pytest.raises(ValueError, match="shares memory with an array from outside"):
        layers.add(layers.mul(x, 2.0), x[::-1])


def test_results_inside_no_grad_are_constants():
    x, teacher = normal(SHAPE), layers.Sequential(conv(), abn(strategy="inplace"))
    with record(x) as tape:
        with no_grad():
            target = teacher(x)
        layers.mul(x, target)
    np.testing.assert_array_equal(tape.backward(np.ones(SHAPE)), target)


def test_an_input_without_a_gradient_may_come_first():
    class Scaled(layers.Layer):
        inputs_without_gradient = (0,)

        def forward(self, ctx, factor, x):
            ctx.factor = factor
            return factor * x

        def gradients(self, ctx, dz, *, overwrite=False):
            return ctx.factor * dz

    x, factor = normal((2, 3)), normal((2, 3), 1)
    with record(x) as tape:
        Scaled()(factor, x)
    np.testing.assert_array_equal(tape.backward(np.ones((2, 3))), factor)


def test_a_target_with_a_gradient_is_refused():
    x = normal((2, 3))
    with record(), pytest.raises(ValueError, match="this layer returns no gradient for it"):
        layers.MSELoss()(x, layers.mul(x, 2.0))
