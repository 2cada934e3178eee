"""Concatenation along channels: results, gradients, and kept memory in bytes."""

import numpy as np
import pytest
from networks import STRATEGIES, abn, as_layout, conv, normal

from inplace_abn import gradcheck, layers, memory
from inplace_abn.layers import Activation, Concat, Identity, MaxPool2d, Residual, Sequential, no_grad

SHAPE = (3, 4, 5, 6)
IN_PLACE = ["inplace_1", "inplace_2"]


def joined_branches(strategy="inplace", activation="leaky_relu", **options):
    """Return branches of several kinds, with 4 input channels and 4 + 2 + 4 + 4 output channels."""
    style = {"strategy": strategy, "activation": activation, **options}
    axis = {key: value for key, value in options.items() if key == "channel_axis"}
    return Concat(
        Sequential(conv(**axis), abn(4, **style)),
        Sequential(conv(4, 2, 1, seed=1, **axis), abn(2, **style)),
        Sequential(MaxPool2d(3, 1, padding=1, **axis)),
        Identity(),
        **axis,
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_concat_equals_numpy_concatenate_of_its_branches(strategy):
    layer, x, dz = joined_branches(strategy), normal(SHAPE), normal((3, 14, 5, 6), 1)
    z = layer(x)
    dx = layer.backward(dz)
    parts = [branch(x.copy()) for branch in list(layer)]
    np.testing.assert_array_equal(z, np.concatenate(parts, 1))
    want = sum(
        branch.backward(dz[:, first:end].copy())
        for branch, first, end in zip(list(layer), (0, 4, 6, 10), (4, 6, 10, 14), strict=True)
    )
    np.testing.assert_allclose(dx, want, atol=1e-12)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradients_against_finite_differences(strategy):
    report = gradcheck(joined_branches(strategy), normal(SHAPE), samples=3)
    assert report.ok, report


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("memory_axis", [1, -1])
def test_layouts(channel_axis, memory_axis):
    layer = joined_branches(channel_axis=channel_axis)
    nchw, dz = normal(SHAPE), normal((3, 14, 5, 6), 1)
    want = Sequential(joined_branches())(nchw)
    x = as_layout(nchw, channel_axis, memory_axis)
    z = layer(x)
    np.testing.assert_allclose(np.moveaxis(z, channel_axis, 1), want, atol=1e-12)
    assert np.argsort(z.strides).tolist() == np.argsort(x.strides).tolist()
    dx = layer.backward(as_layout(dz, channel_axis, memory_axis))
    assert np.argsort(dx.strides).tolist() == np.argsort(x.strides).tolist()


@pytest.mark.parametrize("end", ["abn", "residual", "activation", "nested"])
def test_a_branch_that_ends_in_place_uses_the_memory_of_the_joined_array(end):
    ends = {
        "abn": lambda: Sequential(conv(), abn(4, "inplace")),
        "residual": lambda: Residual(
            Sequential(conv(), abn(4, "inplace", "identity")), activation=Activation(inplace=True)
        ),
        "activation": lambda: Residual(conv(), activation=Activation("relu", inplace=True)),
        "nested": lambda: Sequential(conv(), Sequential(abn(4, "inplace"))),
    }
    net = Sequential(Concat(ends[end](), ends[end]()), conv(8, 2, 1))
    x = normal(SHAPE)
    with memory.ledger() as book:
        z = net(x)
        dx = net.backward(np.ones_like(z))
    assert book.kept == x.nbytes + 2 * x.nbytes
    assert book.live == 0
    assert dx.flags.writeable
    report = gradcheck(net, x, samples=4)
    assert report.ok, report


def test_a_branch_of_an_unknown_number_of_channels_is_copied():
    class Own(layers.Layer):
        def forward(self, ctx, x):
            return x[:, :2].copy()

        def gradients(self, ctx, dz, *, overwrite=False):
            return np.concatenate([dz, np.zeros_like(dz)], 1)

    report = gradcheck(Concat(Sequential(conv(), abn(4, "inplace")), Own()), normal(SHAPE), samples=4)
    assert report.ok, report


def test_inputs_are_not_overwritten():
    layer, x = Concat(abn(4, "inplace"), Sequential(abn(4, "inplace")), conv()), normal(SHAPE)
    given = x.copy()
    assert not layer.overwrites_input
    with no_grad():
        layer(x)
    np.testing.assert_array_equal(x, given)
    report = gradcheck(layer, x, samples=4)
    assert report.ok, report


def test_names_and_errors():
    layer = Concat({"left": conv(), "right": Sequential(conv())})
    assert [name for name, _ in layer.named_parameters()][:2] == ["left.weight", "left.bias"]
    with pytest.raises(TypeError, match="layer '0' must be a Layer, got 3"):
        Concat(3)
    with pytest.raises(ValueError, match=r"x must be of shape \(N, C, ...\), got \(3,\)"):
        Concat(Identity())(np.ones(3))
    with pytest.raises(ValueError, match="Concat: expected at least one branch, got none"):
        Concat()(normal(SHAPE))
    assert [len(layer[:1]), layer[:1].channel_axis] == [1, 1]
    with pytest.raises(ValueError, match=r"arrays\[1\]: expected the shape of arrays\[0\]"):
        Concat(conv(), Sequential(conv(stride=2)))(normal(SHAPE))


# ---- the function ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channel_axis", [1, -1])
def test_parts_in_their_slice_of_out_are_not_copied(channel_axis):
    nchw = normal((3, 6, 5, 4))
    joined = np.moveaxis(nchw, 1, channel_axis).copy()
    index = [(slice(None), slice(0, 4)), (slice(None), slice(4, 6))]
    if channel_axis == -1:
        index = [(..., slice(0, 4)), (..., slice(4, 6))]
    layer = abn(4, "inplace", channel_axis=channel_axis)
    left, right = layer(joined[index[0]]), normal(joined[index[1]].shape, 1)
    z = layers.concat([left, right], channel_axis=channel_axis, out=joined)
    assert z is joined
    np.testing.assert_array_equal(z[index[1]], right)
    with pytest.raises(
        ValueError, match=r"copying arrays\[0\] into out writes in place, but ABN keeps that memory as 'z'"
    ):
        layers.concat([normal(left.shape), right], channel_axis=channel_axis, out=joined)


@pytest.mark.parametrize(
    ("arrays", "options", "error", "message"),
    [
        ([], {}, ValueError, "arrays: expected at least one array, got none"),
        ([np.ones((2, 3)), [1]], {}, TypeError, r"arrays\[1\] must be a numpy.ndarray, got list"),
        ([np.ones(3)], {}, ValueError, r"arrays\[0\]"),
        (
            [np.ones((2, 3)), np.ones((2, 3), np.float32)],
            {},
            TypeError,
            r"arrays\[1\]: expected dtype float64",
        ),
        (
            [np.ones((2, 3)), np.ones((1, 3))],
            {},
            ValueError,
            r"arrays\[1\]: expected the shape of arrays\[0\]",
        ),
        ([np.ones((2, 3))], {"channel_axis": 2}, ValueError, "channel_axis must be 1"),
        ([np.ones((2, 3))], {"out": np.ones((2, 4))}, ValueError, r"out: expected shape \(2, 3\)"),
        (
            [np.ones((2, 3))],
            {"out": np.broadcast_to(1.0, (2, 3))},
            ValueError,
            "out: expected a writeable array",
        ),
    ],
)
def test_arguments_that_concat_refuses(arrays, options, error, message):
    with pytest.raises(error, match=message):
        layers.concat(arrays, **options)


def test_an_out_that_overlaps_an_input_outside_of_its_slice_is_refused():
    joined = np.ones((2, 4))
    with pytest.raises(
        ValueError, match=r"arrays\[0\] overlaps out, but is not its slice of channels 0 to 2"
    ):
        layers.concat([joined[:, 1:3], np.ones((2, 2))], out=joined)


@pytest.mark.parametrize("operation", [layers.add, layers.mul])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((2, 3, 4, 5), (2, 3, 1, 1)),
        ((3, 1, 1), (2, 3, 4, 5)),
        ((2, 1), (1, 3)),
        ((2, 3), (2, 3)),
        ((4,), (2, 4)),
    ],
)
def test_sums_and_products_of_shapes_that_broadcast(operation, a, b):
    def function(a, b):
        with layers.record(a, b) as tape:
            z = operation(a, b)
        return z, tape.backward

    assert gradcheck(function, (normal(a), normal(b, 1)))


@pytest.mark.parametrize("operation", [layers.add, layers.mul])
def test_sums_and_products_with_numbers_and_errors(operation):
    a = normal((2, 3))
    numpy = {layers.add: np.add, layers.mul: np.multiply}[operation]
    for pair in ((a, 2.0), (2, a)):
        with layers.record(a) as tape:
            z = operation(*pair)
        np.testing.assert_array_equal(z, numpy(*pair))
        np.testing.assert_array_equal(tape.backward(np.ones_like(a)), 1 if operation is layers.add else 2)
    with pytest.raises(
        ValueError, match=r"b: expected a shape that broadcasts with that of a, \(2, 3\), got \(4,\)"
    ):
        operation(a, np.ones(4))
    with pytest.raises(TypeError, match="a is float64 and b is float32"):
        operation(a, a.astype(np.float32))
    with pytest.raises(TypeError, match=r"a must be a numpy\.ndarray, got float"):
        operation(1.0, 2.0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types(dtype):
    dtype = np.dtype(getattr(pytest.importorskip("ml_dtypes"), dtype, dtype))
    a, gate = normal((2, 3, 8, 8)).astype(dtype), normal((2, 3, 1, 1), 1).astype(dtype)
    with layers.record(a, gate) as tape:
        z = layers.mul(a, gate)
    da, dgate = tape.backward(np.ones_like(z))
    assert da.dtype == dgate.dtype == z.dtype == dtype
    exact = a.astype(np.float64).sum(axis=(2, 3), keepdims=True)
    np.testing.assert_allclose(
        dgate.astype(np.float64), exact, rtol=2.0**-8 if dtype != np.float16 else 2.0**-11
    )


def test_without_a_tape_nothing_is_kept():
    a = normal((2, 3))
    with memory.ledger() as book:
        layers.mul(a, a)
        layers.concat([a, a])
    assert book.kept == 0
    assert a.flags.writeable


def test_a_slice_that_a_context_keeps_is_not_written_again():
    x, layer = normal(SHAPE), Sequential(conv(), abn(4, "inplace"))
    joined, (left, _) = layers.joined_array(x, (4, 4))
    z = layer(x, out=left)
    assert z is left
    kept = z.copy()
    for other in (Sequential(conv(), abn(4, "inplace")), conv(), Sequential(MaxPool2d(1))):
        with pytest.raises(ValueError, match=r"writes in place, but .*ABN.* keeps that memory as 'z'"):
            other(x, out=joined[:, :4])
    np.testing.assert_array_equal(z, kept)
