"""Arguments and batches that layers refuse: messages name the layer, the value and what is expected."""

from functools import partial

import numpy as np
import pytest
from batches import without_ml_dtypes
from networks import abn, conv, normal

from inplace_abn import functional, memory, models, reference
from inplace_abn._activations import KEEPS
from inplace_abn.layers import (
    ABN,
    Activation,
    Conv2d,
    CrossEntropy,
    Dropout,
    GroupNorm,
    InPlaceABN,
    Layer,
    Linear,
    MaxPool2d,
    MSELoss,
    Residual,
    Sequential,
    Upsample,
    no_grad,
)

SHAPE = (2, 4, 3, 3)


def test_shapes_that_do_not_fit_name_the_layer_and_both_shapes():
    x = np.zeros((2, 3, 8, 8), np.float32)
    for layer, message in [
        (Conv2d(4, 8, 3), r"net \(Conv2d\): .*\(8, 4, 3, 3\).*\(2, 3, 8, 8\)"),
        (Linear(4, 8), r"net \(Linear\): .*\(8, 4\).*\(2, 3, 8, 8\)"),
        (
            InPlaceABN(4),
            r"net \(InPlaceABN\): num_features=4 takes x of shape \(N, 4, ...\), got \(2, 3, 8, 8\) with 3",
        ),
        (
            ABN(4, channel_axis=-1),
            r"net \(ABN\): num_features=4 takes x of shape \(N, ..., 4\), got \(2, 3, 8, 8\) wi",
        ),
        (
            Residual(Conv2d(3, 4, 3, stride=2, padding=1)),
            r"net \(Residual\): branch and shortcut: .* float32 of shape \(2, 4, 4, 4\) and .*\(2, 3, 8, 8\)",
        ),
        (MaxPool2d(9), r"net \(MaxPool2d\): .*9 x 9.*8 x 8"),
    ]:
        with pytest.raises(ValueError, match=message):
            Sequential({"net": layer})(x)
    with pytest.raises(
        ValueError, match=r"CrossEntropy: target must be of shape \(2,\).*\(2, 5\).*got \(3,\)"
    ):
        CrossEntropy()(np.zeros((2, 5)), np.zeros(3, int))


def test_an_image_that_an_encoder_decoder_cannot_halve_names_the_level():
    net = models.encoder_decoder(1, 2, (4, 4))
    with pytest.raises(ValueError, match=r"body.across \(Residual\): .*\(1, 4, 8, 6\).*\(1, 4, 7, 6\)"):
        net(np.zeros((1, 1, 7, 6), np.float32))


def test_other_dtypes_name_the_layer():
    for layer in (conv(), abn()):
        with pytest.raises(TypeError, match=f"^{type(layer).__name__}: .*float"):
            layer(np.zeros(SHAPE, np.float32))
    with pytest.raises(TypeError, match=r"Activation: x must be float32, .*, got int64"):
        Activation()(np.zeros(3, np.int64))
    for layer in (Activation(), InPlaceABN(3), Linear(3, 3)):
        with pytest.raises(TypeError, match=f"{type(layer).__name__}: x must be a numpy.ndarray"):
            layer([1.0, 2.0])


@pytest.mark.parametrize(
    "make",
    [
        lambda **dtype: Conv2d(4, 4, 3, **dtype),
        lambda **dtype: Linear(3, 3, **dtype),
        lambda **dtype: InPlaceABN(4, **dtype),
        lambda **dtype: ABN(4, affine=False, **dtype),
        lambda **dtype: ABN(4, affine=False, track_running_stats=False, activation="prelu", **dtype),
    ],
    ids=["Conv2d", "Linear", "InPlaceABN", "without weight", "with slope alone"],
)
@pytest.mark.parametrize(("x_dtype", "own"), [("float64", "float32"), ("float32", "float64")])
def test_the_message_for_another_precision_names_both_remedies(make, x_dtype, own):
    layer, x = make(dtype=own), np.ones(SHAPE, x_dtype)
    message = (
        rf"x is {x_dtype} and the layer's parameters are {own}; pass x.astype\(numpy.{own}\), or make the "
        rf"layer with dtype=numpy.{x_dtype}$"
    )
    with pytest.raises(TypeError, match=message):
        layer(x)
    assert x.flags.writeable
    assert (x == 1).all()
    layer(x.astype(own)), make(dtype=x_dtype)(x)


def test_half_types_accept_float32_parameters():
    with pytest.raises(TypeError, match=r"x is float16 and .*, or make the layer with dtype=numpy.float32"):
        InPlaceABN(4, dtype=np.float64)(np.ones(SHAPE, np.float16))
    InPlaceABN(4)(np.ones(SHAPE, np.float16))


@without_ml_dtypes
def test_the_message_for_another_dtype_than_bfloat16_names_bfloat16():
    import ml_dtypes

    layer, x, dz = InPlaceABN(4), normal(SHAPE).astype(ml_dtypes.bfloat16), np.ones(SHAPE, np.float32)
    layer(x.copy())
    _, ctx = functional.forward(x)
    for backward in (layer.backward, partial(functional.backward, ctx)):
        with pytest.raises(TypeError, match=r"dz must be bfloat16.*; pass dz.astype\(ml_dtypes.bfloat16\)"):
            backward(dz)
        backward(dz.astype(ml_dtypes.bfloat16))


def test_unknown_names_list_the_valid_ones():
    strategies = ", ".join(map(repr, KEEPS))
    with pytest.raises(ValueError, match=f"strategy must be one of {strategies}, got 'in_place'"):
        ABN(3, strategy="in_place")
    activations = ", ".join(f"'{name}'" for name in reference.ACTIVATIONS)
    for make in (ABN, InPlaceABN):
        with pytest.raises(ValueError, match=f"activation must be one of {activations}, got 'swish'"):
            make(3, activation="swish")
    with pytest.raises(ValueError, match=f"activation must be one of {activations}, got 'swish'"):
        Activation("swish")
    with pytest.raises(
        ValueError, match="block must be one of 'preactivation', 'postactivation', got 'both'"
    ):
        models.residual_network(1, 2, block="both")


def test_relu_in_place_is_refused_and_leaky_relu_suggested():
    with pytest.raises(ValueError, match=r"'relu' has no inverse.*use leaky_relu"):
        InPlaceABN(3, activation="relu")
    layer = ABN(3, activation="relu")
    with pytest.raises(ValueError, match="use leaky_relu"):
        layer.strategy = "inplace_1"
    assert layer.strategy == "standard"


def test_layer_and_function_refuse_relu_with_the_same_message():
    words = []
    x = np.ones(SHAPE, np.float32)
    for refused in (
        lambda: ABN(3, activation="relu", strategy="inplace_1"),
        lambda: functional.forward(x, activation="relu", strategy="inplace_1"),
    ):
        with pytest.raises(ValueError, match="has no inverse") as caught:
            refused()
        words.append(str(caught.value))
    assert words[0] == f"ABN: {words[1]}"


@pytest.mark.parametrize(
    ("called", "meant"),
    [
        ("swish", "silu"),
        ("SiLU", "silu"),
        ("linear", "identity"),
        ("None", "identity"),
        ("leaky", "leaky_relu"),
        ("LeakyReLU", "leaky_relu"),
        ("lrelu", "leaky_relu"),
        ("gelu-tanh", "gelu_tanh"),
    ],
)
def test_the_message_for_another_name_of_an_activation_suggests_its_name(called, meant):
    for make in (ABN, InPlaceABN, Activation):
        with pytest.raises(ValueError, match=f"got '{called}'; did you mean '{meant}'\\?$"):
            make(*([3] * (make is not Activation)), activation=called)


def test_an_unknown_activation_gets_no_suggestion():
    for name in ("xyz", 3, True):
        with pytest.raises(ValueError, match=f"activation must be one of .*, got {name!r}$"):
            Activation(name)


def test_num_slopes_needs_prelu():
    for make in (ABN, InPlaceABN, Activation):
        with pytest.raises(ValueError, match="num_slopes: expected 1 for activation 'leaky_relu', got 3"):
            make(*([3] * (make is not Activation)), num_slopes=3)


@pytest.mark.parametrize(("shape", "axis"), [((2, 8, 8, 3), 1), ((2, 3, 8, 8), -1)])
def test_the_message_for_channels_on_the_wrong_axis_names_channel_axis(shape, axis):
    hint = f"axis {-axis} of x has 3: pass channel_axis={-axis} if the channels are there"
    for make in (partial(InPlaceABN, 3), partial(Conv2d, 3, 4, 3)):
        x = np.ones(shape, np.float32)
        with pytest.raises(ValueError, match=f"; {hint}$"):
            make(channel_axis=axis)(x)
        make(channel_axis=-axis)(x)
        with pytest.raises(ValueError, match=r"(4 channels|C = 4)$"):
            make(channel_axis=axis)(np.ones((2, 4, 4, 4), np.float32))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: InPlaceABN(0), ValueError, "num_features must be at least 1, got 0"),
        (lambda: InPlaceABN(2.5), TypeError, "num_features must be an integer, got 2.5"),
        (lambda: InPlaceABN(2, eps=0), ValueError, "eps must be greater than 0, got 0"),
        (lambda: InPlaceABN(2, momentum=1.5), ValueError, r"momentum must be in \[0, 1\], got 1\.5"),
        (lambda: InPlaceABN(2, momentum="a"), TypeError, "momentum must be a number, got 'a'"),
        (
            lambda: InPlaceABN(2, activation_param=-1),
            ValueError,
            "activation_param must be positive and finite with strategy 'inplace', got -1",
        ),
        (lambda: InPlaceABN(2, activation_param=np.inf), ValueError, "activation_param must be finite"),
        (lambda: InPlaceABN(2, channel_axis=2), ValueError, "channel_axis must be 1, .* got 2"),
        (lambda: InPlaceABN(2, channel_axis=1.0), ValueError, "channel_axis must be 1, .* got 1.0"),
        (lambda: InPlaceABN(2, eps=10**400), ValueError, "eps must be finite, got 1000"),
        (
            lambda: InPlaceABN(2, activation=["relu"]),
            ValueError,
            r"activation must be one of .* got \['relu'\]",
        ),
        (
            lambda: InPlaceABN(2, num_slopes=np.array([1, 2])),
            ValueError,
            "num_slopes must be one of 1, 2, got",
        ),
        (lambda: ABN(2, strategy={}), ValueError, "strategy must be one of .* got {}"),
        (
            lambda: ABN(2)(np.ones((2, 2), np.float32), activation="relu"),
            TypeError,
            "activation must be an Activation, an ABN or None",
        ),
        (
            lambda: Activation("prelu", num_slopes=()),
            TypeError,
            r"num_slopes must be an integer, got \(\)",
        ),
        (
            lambda: Activation("prelu", dtype=3),
            ValueError,
            "dtype must be one of 'float32', 'float64', got 3",
        ),
        (
            lambda: Linear(2, 2, dtype=None),
            ValueError,
            "dtype must be one of 'float32', 'float64', 'float16', ml_dtypes.bfloat16, got None",
        ),
        (lambda: GroupNorm(3, 4), ValueError, "num_groups must divide num_channels=4, got 3"),
        (lambda: GroupNorm(2, 4)(np.zeros((2, 3, 4))), TypeError, "x is float64 and .* are float32"),
        (
            lambda: GroupNorm(2, 4)(np.zeros((2, 3), "f4")),
            ValueError,
            r"num_channels=4 .* got shape \(2, 3\)",
        ),
        (
            lambda: Upsample(2, mode="nearest", align_corners=False),
            ValueError,
            "align_corners goes with mode 'bilinear'",
        ),
        (lambda: Upsample(2, mode="cubic"), ValueError, "mode must be one of 'bilinear', 'nearest', got"),
        (lambda: CrossEntropy(label_smoothing=1.5), ValueError, r"label_smoothing must be in \[0, 1\]"),
        (
            lambda: CrossEntropy(weight=[1, -1])(np.zeros((1, 2)), np.array([0])),
            ValueError,
            "weight must be at least 0 for every class, got -1",
        ),
        (
            lambda: CrossEntropy(weight=[1, 2, 3])(np.zeros((1, 2)), np.array([0])),
            ValueError,
            r"weight must be of shape \(2,\), one per class of x, got \(3,\)",
        ),
        (
            lambda: MSELoss()(np.zeros((1, 2)), np.zeros(2)),
            ValueError,
            r"target must be of shape \(1, 2\)",
        ),
        (lambda: MSELoss()(np.zeros(2), np.zeros(2, int)), TypeError, "target is int64 and x is float64"),
        (lambda: InPlaceABN(2, dtype="float16"), ValueError, "dtype must be one of 'float32', 'float64'"),
        (lambda: Conv2d(3, 4, (1, 2, 3)), ValueError, "kernel_size must be one integer or two"),
        (
            lambda: Conv2d(3, 4, 3, groups=2),
            ValueError,
            "groups must divide in_channels=3 and out_channels=4, got 2",
        ),
        (lambda: Linear(3, -1), ValueError, "out_features must be at least 1, got -1"),
        (lambda: Dropout(1.1), ValueError, r"p must be in \[0, 1\], got 1\.1"),
        (
            lambda: MaxPool2d(2, padding=2),
            ValueError,
            r"padding must be at most half of kernel_size=\(2, 2\)",
        ),
        (lambda: Upsample(), ValueError, "pass either size or scale_factor"),
        (lambda: Upsample(scale_factor=0), ValueError, "scale_factor must be greater than 0, got 0"),
        (lambda: Residual(None), TypeError, "branch must be a Layer, got None"),
        (lambda: Residual(conv(), 3), TypeError, "shortcut must be a Layer, got 3"),
        (
            lambda: models.residual_network(1, 2, ()),
            ValueError,
            "widths must have at least one number of channels",
        ),
    ],
)
def test_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_vector_is_no_batch():
    with pytest.raises(ValueError, match="x must"):
        ABN(3)(np.ones(3, np.float32))


@pytest.mark.parametrize("make", [ABN, InPlaceABN])
@pytest.mark.parametrize(("shape", "axis"), [((1, 3), 1), ((1, 3, 1, 1), 1), ((1, 1, 3), -1)])
def test_the_message_for_one_value_per_channel_suggests_eval(make, shape, axis):
    x = np.ones(shape, np.float32)
    with pytest.raises(ValueError, match="more than 1 value") as caught:
        make(3, channel_axis=axis)(x)
    assert str(caught.value) == (
        f"{make.__name__}: x must have more than 1 value per channel in training, got shape {shape}; use a "
        "larger batch or larger images, or eval(), for the running statistics"
    )
    assert make(3, channel_axis=axis).eval()(x).shape == shape
    layer = make(3, track_running_stats=False, channel_axis=axis)
    for mode in (layer.train, layer.eval):
        with pytest.raises(
            ValueError, match=r"with track_running_stats=False, .* or eval\(\) of a layer with "
        ):
            mode()(x)
    assert make(3, channel_axis=axis)(np.ones((0, *shape[1:]), np.float32)).size == 0


def test_a_parameter_refuses_gradients_of_another_shape():
    parameter = Linear(4, 8).weight
    assert "(8, 4), float32" in repr(parameter)
    with pytest.raises(ValueError, match=r"gradient has shape \(4, 8\), the data \(8, 4\)"):
        parameter.accumulate(np.zeros((4, 8), np.float32))


def test_a_layer_without_gradients_raises_an_error():
    class Twice(Layer):
        def forward(self, ctx, x):
            return 2 * x

    layer = Twice()
    z = layer(np.ones(3, np.float32))
    with pytest.raises(NotImplementedError, match="Twice has no gradients"):
        layer.backward(z)


def test_layers_that_return_their_input_do_not_overwrite_it():
    net = Sequential(Dropout(0.5), Sequential(Dropout(0.5))).eval()
    x = np.ones((2, 3), np.float32)
    assert net(x) is x
    assert net.returns_input
    assert not net.overwrites_input


def test_a_nested_ledger_reports_temporary_memory_to_the_outer_one():
    with memory.ledger() as outer, memory.ledger() as inner:
        Conv2d(3, 4, 3, rng=0)(np.ones((2, 3, 6, 6), np.float32))
    assert outer.peak == inner.peak > inner.kept


def test_nothing_is_kept_inside_no_grad():
    layer = Conv2d(3, 4, 3, rng=0)
    with no_grad():
        z = layer(np.ones((2, 3, 6, 6), np.float32))
    with pytest.raises(RuntimeError, match="without a pending forward: it was called inside no_grad"):
        layer.backward(z)


def test_none_is_saved_as_none():
    class Keeps(Layer):
        def forward(self, ctx, x):
            ctx.save_for_backward(nothing=None)
            return 2 * x

        def gradients(self, ctx, dz, *, overwrite=False):
            assert ctx.saved == {"nothing": None}
            return 2 * dz

    layer = Keeps()
    assert (layer.backward(layer(np.ones(3, np.float32))) == 4).all()
