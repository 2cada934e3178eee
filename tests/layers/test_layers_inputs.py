"""Layers with several inputs and results, and the gradients that their backward returns."""

import numpy as np
import pytest
from networks import abn, conv, normal

from inplace_abn import gradcheck
from inplace_abn.layers import (
    Layer,
    Linear,
    Parameter,
    Sequential,
)


class Bilinear(Layer):
    """z = sum over i and j of x_i weight_ij y_j, + bias."""

    def __init__(self, first=3, second=2):
        self.weight, self.bias = Parameter(normal((first, second))), Parameter(np.array(0.5))

    def forward(self, ctx, x, y):
        ctx.save_for_backward(x=x, y=y)
        return np.einsum("ni,ij,nj->n", x, self.weight.data, y) + self.bias.data

    def gradients(self, ctx, dz, *, overwrite=False):
        x, y = ctx.saved["x"], ctx.saved["y"]
        dz = dz[:, None]
        weight = self.weight.data
        return dz * (y @ weight.T), dz * (x @ weight), (dz * x).T @ y, dz.sum()


class Split(Layer):
    """The first columns and the others."""

    def forward(self, ctx, x):
        return x[:, :3].copy(), x[:, 3:].copy()

    def gradients(self, ctx, dz, *, overwrite=False):
        return np.concatenate(dz, axis=1)


class Both(Layer):
    """Sum and product: two inputs, two outputs."""

    def forward(self, ctx, x, y):
        ctx.save_for_backward(x=x, y=y)
        return x + y, x * y

    def gradients(self, ctx, dz, *, overwrite=False):
        dsum, dproduct = dz
        return dsum + dproduct * ctx.saved["y"], dsum + dproduct * ctx.saved["x"]


@pytest.mark.parametrize(
    ("make", "shapes"),
    [
        (Bilinear, [(4, 3), (4, 2)]),
        (Both, [(4, 3), (4, 3)]),
        (Split, [(4, 5)]),
        (lambda: Sequential(Split(), Bilinear()), [(4, 5)]),
        (lambda: Sequential(Both(), Both(), Bilinear(3, 3)), [(4, 3), (4, 3)]),
        (lambda: Sequential(Linear(4, 5, dtype=np.float64), Sequential(Split(), Bilinear())), [(2, 4)]),
        (lambda: Sequential(Linear(4, 5, dtype=np.float64), Split()), [(2, 4)]),
    ],
)
def test_gradients_of_several_inputs_and_outputs(make, shapes):
    inputs = [normal(shape, seed) for seed, shape in enumerate(shapes)]
    report = gradcheck(make(), inputs)
    assert report.ok, report
    assert len({row.name for row in report.rows}) >= len(inputs)


@pytest.mark.parametrize("make", [lambda: abn(), lambda: Sequential(conv(), abn(4, "inplace"))])
def test_gradients_of_an_input_by_keyword(make):
    report = gradcheck(make(), {"x": normal((2, 4, 3, 3)), "residual": normal((2, 4, 3, 3), 1)})
    assert report.ok, report
    assert [row.name for row in report.rows][:2] == ["x", "residual"]


def test_a_wrong_gradient_of_a_second_output_is_found():
    class Wrong(Both):
        def gradients(self, ctx, dz, *, overwrite=False):
            dx, dy = super().gradients(ctx, dz)
            return dx, dy + dz[1]

    report = gradcheck(Wrong(), [normal((2, 3)), normal((2, 3), 1)])
    assert not report.ok
    assert {row.name for row in report.rows if row.wrong} == {"y"}


def test_the_backward_of_several_inputs_returns_a_tuple():
    layer, x, y = Bilinear(), normal((4, 3)), normal((4, 2), 1)
    layer(x, y)
    dx, dy = layer.backward(np.ones(4))
    assert (dx.shape, dy.shape) == (x.shape, y.shape)
    assert layer.weight.grad.shape == (3, 2)
    assert layer.bias.grad == 4


def test_a_result_without_influence_has_the_gradient_none():
    layer, x, y = Both(), normal((4, 3)), normal((4, 3), 1)
    layer(x, y)
    dx, dy = layer.backward((None, np.ones((4, 3))))
    np.testing.assert_array_equal(dx, y)
    np.testing.assert_array_equal(dy, x)


@pytest.mark.parametrize(
    ("dz", "error", "message"),
    [
        (np.ones((4, 3)), TypeError, "dz: expected a tuple of 2 gradients, .* got ndarray"),
        ((np.ones((4, 3)),), TypeError, "dz: expected a tuple of 2 gradients, .* got 1 of them"),
        ((None, np.ones((3, 4))), ValueError, r"^net \(Both\): dz\[1\] must be of shape \(4, 3\)"),
        ((np.ones((4, 3)), np.ones((4, 3), np.float32)), TypeError, r"dz\[1\] must be float64"),
    ],
)
def test_gradients_of_several_outputs_that_do_not_fit(dz, error, message):
    net = Sequential({"net": Both()})
    net(normal((4, 3)), normal((4, 3)))
    with pytest.raises(error, match=message):
        net.net.backward(dz)
    assert len(net.net.backward((None, None))) == 2  # a single layer's backward can be repeated


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda dx, dy, dw, db: (dx, dw), "2 arrays, expected 4: for inputs 0 and 1, parameters weight and"),
        (lambda dx, dy, dw, db: dx, "1 array, expected 4: for inputs 0 and 1, parameters weight and bias"),
        (lambda dx, dy, dw, db: (dx, dw, db), "3 arrays, expected 4: for inputs 0 and 1, parameters w"),
        (lambda dx, dy, dw, db: (dx, dy, dw, db, db), "5 arrays, expected 4"),
    ],
)  # fmt: skip
def test_a_wrong_number_of_gradients(returned, message):
    class Wrong(Bilinear):
        def gradients(self, ctx, dz, *, overwrite=False):
            return returned(*super().gradients(ctx, dz))

    net = Sequential({"my": Wrong(2, 2)})
    net(normal((4, 2)), normal((4, 2)))  # of one shape: gradients cannot be told apart
    with pytest.raises(ValueError, match=rf"^my \(Wrong\): gradients returned {message}"):
        net.backward(np.ones(4))
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_layer_with_parameters_that_returns_dx_alone():
    class Scale(Layer):
        def __init__(self):
            self.weight = Parameter(np.ones(3))

        def forward(self, ctx, x):
            return x * self.weight.data

        def gradients(self, ctx, dz, *, overwrite=False):
            return dz * self.weight.data

    layer = Scale()
    layer(normal((2, 3)))
    message = "Scale: gradients returned 1 array, expected 2: for input 0, parameter weight"
    with pytest.raises(ValueError, match=message):
        layer.backward(np.ones((2, 3)))


def test_integer_arrays_and_numbers_get_no_gradient():
    class Picks(Layer):
        def __init__(self, returned):
            self.returned = returned

        def forward(self, ctx, x, index, *, factor=2.0):
            return factor * x[index]

        def gradients(self, ctx, dz, *, overwrite=False):
            return self.returned(dz)

    x, index = normal((4, 3)), np.array([2, 0, 1, 3])
    for returned in (lambda dz: dz, lambda dz: (dz,), lambda dz: (dz, None)):
        layer = Picks(returned)
        layer(x, index, factor=3.0)
        assert layer.backward(np.ones((4, 3))).shape == x.shape
    layer = Picks(lambda dz: (dz, dz))
    layer(x, index)
    with pytest.raises(ValueError, match=r"2 arrays, expected 1: for input 0$"):
        layer.backward(np.ones((4, 3)))


def test_a_residual_by_position_or_by_name():
    layer, x, r = abn(), normal((2, 4, 3)), normal((2, 4, 3), 1)
    layer(x, residual=r)
    want = layer.backward(np.ones_like(x))
    layer(x, r)
    for got, gradient in zip(layer.backward(np.ones_like(x)), want, strict=True):
        np.testing.assert_array_equal(got, gradient)
