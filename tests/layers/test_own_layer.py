"""Mistakes in layers that users write, and gradients that layers refuse: messages name layer and cause."""

import numpy as np
import pytest

from inplace_abn.layers import InPlaceABN, Layer, Linear, Parameter, Sequential


def test_functions_without_the_arguments_that_calls_pass_are_refused_in_the_class_statement():
    with pytest.raises(TypeError, match=r"Square.forward\(self, x\): expected forward\(self, ctx, x, ...\)"):

        class Square(Layer):
            def forward(self, x):
                return x * x

    with pytest.raises(
        TypeError, match=r"Double.gradients\(self, dz\): expected gradients\(self, ctx, dz, ...\)"
    ):

        class Double(Layer):
            def gradients(self, dz):
                return 2 * dz

    with pytest.raises(TypeError, match=r"Half.gradients\(self, ctx, dz\): expected .* overwrite=False"):

        class Half(Layer):
            def gradients(self, ctx, dz):
                return dz / 2


def test_functions_with_other_names_and_any_arguments_are_accepted():
    class Any(Layer):
        def forward(self, context, *inputs, scale=1.0):
            return inputs[0] * scale

        def gradients(self, context, grad, **options):
            return grad

    layer = Any()
    layer(np.ones(2))
    np.testing.assert_array_equal(layer.backward(np.ones(2)), np.ones(2))


class Scale(Layer):
    """A layer whose gradients can be wrong."""

    def __init__(self, role="x", dx=lambda dz: dz):
        self.weight, self.role, self.dx = Parameter(np.ones(3)), role, dx

    def forward(self, ctx, x):
        ctx.save_for_backward(x=x)
        return x * self.weight.data

    def gradients(self, ctx, dz, *, overwrite=False):
        return self.dx(dz * self.weight.data), (dz * ctx.saved[self.role]).sum(axis=0)


class Negate(Layer):
    """A layer without parameters whose gradient can be wrong."""

    def __init__(self, dx):
        self.dx = dx

    def forward(self, ctx, x):
        return -x

    def gradients(self, ctx, dz, *, overwrite=False):
        return self.dx(-dz)


def test_an_unknown_role_is_named_with_the_saved_ones():
    layer = Scale("y")
    dz = np.ones_like(layer(np.ones((2, 3))))
    with pytest.raises(KeyError, match=r"no array was saved as 'y'; ctx.save_for_backward saved 'x'"):
        layer.backward(dz)


@pytest.mark.parametrize(
    "kind", [Negate, lambda dx: Scale(dx=dx)], ids=["without parameters", "with parameters"]
)
@pytest.mark.parametrize(
    ("dx", "got"),
    [
        (lambda dz: dz[:1], r"shape \(1, 3\)"),
        (lambda dz: dz.sum(), "a float64"),
        (lambda dz: dz.tolist, "a b"),
    ],
)
def test_a_gradient_of_a_wrong_shape_is_refused(kind, dx, got):
    layer = kind(dx)
    dz = np.ones_like(layer(np.ones((2, 3))))
    with pytest.raises(ValueError, match=rf"gradients returned {got}.* for input 0, .* shape \(2, 3\)"):
        layer.backward(dz)


def test_none_is_no_gradient():
    layer = Negate(lambda dz: None)
    assert layer.backward(layer(np.ones((2, 3)))) is None


def test_after_a_refused_dz_the_backward_of_a_container_runs_with_another():
    rng = np.random.default_rng(0)
    x, dz = (rng.normal(size=(8, 3)).astype(np.float32) for _ in range(2))
    net = Sequential(Linear(3, 3, rng=rng), InPlaceABN(3))
    net(x)
    want = net.backward(dz)
    z = net(x)
    for wrong in (dz[:1], dz.astype(np.float64), dz.tolist()):
        with pytest.raises((TypeError, ValueError), match="dz"):
            net.backward(wrong)
    assert not z.flags.writeable  # still kept
    np.testing.assert_array_equal(net.backward(dz), want)
