"""Refused arguments: messages name the argument, its value and what is expected; no array is changed."""

import re

import numpy as np
import pytest
from batches import without_ml_dtypes
from refusals import (
    SHAPE,
    Subclass,
    field,
    forward_arguments,
    matrix,
    misaligned,
    read_only,
    refused,
    strided,
)

from inplace_abn import _core, functional, reference

pytestmark = pytest.mark.essential

IN_PLACE = ["inplace", "inplace_1", "inplace_2", "checkpoint_xhat", "pre_activation"]
ACTIVATIONS = [f"'{name}'" for name in reference.ACTIVATIONS]

# ---- forward: arrays ---------------------------------------------------------------------------------------

X_KINDS = {
    "list": ([[1.0, 2.0]], "got 'list'; numpy.asarray"),
    "None": (None, "got 'NoneType'"),
    "scalar": (np.float32(3), "got 'numpy.float32'"),
    "masked": (np.ma.ones(SHAPE, np.float32), "got 'MaskedArray'; pass x.view(numpy.ndarray)"),
    "matrix": (matrix((4, 3), np.float32), "got 'matrix'; pass x.view(numpy.ndarray)"),
    "subclass": (np.ones(SHAPE, np.float32).view(Subclass), "got 'Subclass'"),
    "int32": (np.ones(SHAPE, np.int32), "got int32; pass x.astype(numpy.float32)"),
    "bool": (np.ones(SHAPE, bool), "got bool"),
    "complex64": (np.ones(SHAPE, np.complex64), "got complex64"),
    "longdouble": (np.ones(SHAPE, np.clongdouble), "must be float32, float64, float16 or ml_dtypes.bfloat16"),
    "object": (np.ones(SHAPE, object), "got object"),
    "swapped": (np.ones(SHAPE, np.dtype("f4").newbyteorder()), "native byte order"),
}


@pytest.mark.parametrize("kind", X_KINDS)
def test_x_that_is_no_plain_floating_point_array(kind):
    x, message = X_KINDS[kind]
    refused(_core.forward, forward_arguments(x=x), TypeError, "x must be", message)
    refused(_core.statistics, {"x": x}, TypeError, "x must be", message)


@without_ml_dtypes
def test_x_of_another_registered_dtype():
    import ml_dtypes

    x = np.ones(SHAPE, ml_dtypes.float8_e4m3)
    refused(_core.forward, {"x": x}, TypeError, "x must be", "got float8_e4m3")
    x = np.ones(SHAPE, np.dtype(ml_dtypes.bfloat16).newbyteorder())
    refused(_core.forward, {"x": x}, TypeError, "x must be in native byte order")


X_VALUES = {
    "0-d": (np.ones((), np.float32), "x must have 2 to 5 dimensions, (N, C, *spatial), got shape ()"),
    "1-d": (np.ones(3, np.float32), "got shape (3,)"),
    "6-d": (np.ones((1, 2, 1, 1, 1, 2), np.float32), "got shape (1, 2, 1, 1, 1, 2)"),
    "read-only": (read_only(SHAPE), "x is written in place, but it is read-only; pass a copy"),
    "misaligned": (misaligned(SHAPE), "x must be aligned"),
    "field": (field(SHAPE), "x must be aligned"),
    "broadcast": (strided(SHAPE, (30, 10, 0, 1)), "x overlaps itself, as a broadcast array does"),
    "broadcast N": (strided(SHAPE, (0, 10, 2, 1)), "x overlaps itself"),
    "backwards": (np.ones(SHAPE, np.float32)[::-1], "x runs backwards in memory"),
    "windows": (strided((4, 3, 10), (10, 5, 1)), "x overlaps itself"),
    "sliding": (strided((4, 3), (1, 1)), "x overlaps itself"),
    "gaps in rows": (
        np.ones((4, 3, 5, 4), np.float32)[..., :2],
        "spatial dimensions that cannot be read as one",
    ),
    "every second": (np.ones((4, 3, 10), np.float32)[..., ::2], "neither (N, C, *spatial)"),
    "spatial transposed": (
        np.ones((4, 3, 2, 5), np.float32).swapaxes(2, 3),
        "cannot be read as one with a single stride",
    ),
    "Fortran": (np.ones(SHAPE, np.float32, order="F"), "strides (4, 16, 48, 240) in bytes"),
    "one value per channel": (np.ones((1, 3, 1), np.float32), "x must have more than 1 value per channel"),
    "one value, 2-d": (np.ones((1, 3), np.float32), "training, got shape (1, 3); use a larger batch or"),
}


@pytest.mark.parametrize("kind", X_VALUES)
def test_x_of_another_layout_or_shape(kind):
    x, message = X_VALUES[kind]
    refused(_core.forward, forward_arguments(x=x), ValueError, message)


def test_channels_last_x_of_another_layout_or_shape():
    for x, message in [
        (np.ones((4, 5, 6, 6), np.float32)[..., ::2], "neither (N, C, *spatial)"),
        (np.ones((4, 5, 6, 3), np.float32)[:, :, :3], "cannot be read as one with a single stride"),
        (np.ones(3, np.float32), "2 to 5 dimensions, (N, *spatial, C), got shape (3,)"),
    ]:
        refused(_core.forward, {"x": x, "channel_axis": -1}, ValueError, "x ", message)


VECTORS = ["weight", "bias", "running_mean", "running_var"]


@pytest.mark.parametrize("name", VECTORS)
def test_vectors_of_another_dtype_or_shape(name):
    for value, error, message in [
        ([1.0, 1.0, 1.0], TypeError, "must be a numpy.ndarray, got 'list'"),
        (1.0, TypeError, "got 'float'"),
        (np.ma.ones(3, np.float32), TypeError, "got 'MaskedArray'"),
        (np.ones(3), TypeError, f"must be float32, got float64; pass {name}.astype(numpy.float32)"),
        (np.ones(3, np.float16), TypeError, "got float16"),
        (np.ones(3, np.dtype("f4").newbyteorder()), TypeError, "native byte order"),
        (np.ones(4, np.float32), ValueError, "must have shape (3,), one element per channel, got (4,)"),
        (np.ones((3, 1), np.float32), ValueError, "must have one dimension, got 2"),
        (np.ones((), np.float32), ValueError, "must have one dimension, got 0"),
        (misaligned((3,)), ValueError, "must be aligned"),
        (np.ones(3, np.float32)[::-1], ValueError, "must step forward in memory, got a stride of -4 bytes"),
        (strided((3,), (0,)), ValueError, "must step forward"),
    ]:
        refused(_core.forward, forward_arguments(**{name: value}), error, name, message)
    double = forward_arguments(x=np.ones(SHAPE), **dict.fromkeys(VECTORS))
    refused(_core.forward, {**double, name: np.ones(3, np.float32)}, TypeError, f"{name} must be float64")


def test_running_mean_needs_running_var():
    message = "running_mean and running_var go together"
    for name in ("running_mean", "running_var"):
        refused(_core.forward, forward_arguments(**{name: None}), ValueError, message)
        arguments = forward_arguments(**{name: None}, training=False)
        refused(_core.forward, arguments, ValueError, message)
    arguments = forward_arguments(running_mean=None, running_var=None, training=False)
    message = "training=False normalizes with running_mean and running_var: give both"
    refused(_core.forward, arguments, ValueError, message)


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
def test_read_only_running_statistics_are_refused_in_training_only(name):
    frozen = read_only((3,))
    message = f"{name} is written in place, but it is read-only"
    refused(_core.forward, forward_arguments(**{name: frozen}), ValueError, message)
    functional.forward(**forward_arguments(**{name: frozen}, training=False))


# ---- forward: overlap --------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", IN_PLACE)
@pytest.mark.parametrize("name", VECTORS)
def test_overwritten_x_must_not_share_memory(name, strategy):
    arguments = forward_arguments(**{name: lambda good: good["x"][1, :, 2, 1]}, strategy=strategy)
    refused(_core.forward, arguments, ValueError, f"x is written and shares memory with {name}")


def test_read_only_arguments_may_share_memory():
    arguments = forward_arguments(weight=lambda good: good["x"][1, :, 2, 1], strategy="standard")
    z, _ = functional.forward(**arguments)
    assert np.isfinite(z).all()


@pytest.mark.parametrize("written", ["running_mean", "running_var"])
def test_running_statistics_must_not_share_memory(written):
    for other in VECTORS:
        if other != written:
            same = forward_arguments(**{written: lambda good, other=other: good[other]})
            refused(_core.forward, same, ValueError, "is written and shares memory with", written, other)
    inside = forward_arguments(**{written: lambda good: good["x"][0, :, 0, 0]}, strategy="standard")
    refused(_core.forward, inside, ValueError, f"{written} is written and shares memory with x")


# ---- forward: numbers and choices --------------------------------------------------------------------------

OPTIONS = {
    "momentum": [
        *((v, ValueError, "in [0, 1]") for v in (-0.1, 1.1, np.nan, np.inf, 2)),
        *((v, TypeError, "must be a number") for v in ("0.1", None, [0.1], np.ones(1))),
    ],
    "eps": [
        *((v, ValueError, "positive and finite") for v in (0, 0.0, -1e-5, np.nan, np.inf)),
        ("1e-5", TypeError, "must be a number"),
        (10**400, ValueError, "must be a number that fits a float"),
    ],
    "activation_param": [
        *((v, ValueError, "positive and finite with strategy") for v in (0, -0.01, np.nan, np.inf)),
        (1e-60, ValueError, "float32's range"),
        (None, TypeError, "must be a number"),
    ],
    "activation": [
        ("swish", ValueError, f"{', '.join(ACTIVATIONS[:-1])} or {ACTIVATIONS[-1]}, got 'swish'"),
        ("leaky", ValueError, "got 'leaky'"),
        (3, TypeError, "'leaky_relu'"),
        (None, TypeError, "got None"),
    ],
    "strategy": [
        ("in-place", ValueError, "'pre_activation', 'inplace_1', 'inplace_2' or 'inplace', got 'in-place'"),
        (1, TypeError, "got 1"),
    ],
    "channel_axis": [
        *((v, ValueError, "must be 1 for (N, C, *spatial) or -1") for v in (0, 2, 3, -2)),
        *((v, TypeError, "must be an integer") for v in (1.0, "1", None, True)),
    ],
    "threads": [
        *((v, ValueError, "between 1 and") for v in (0, -1, 10**6, 10**30)),
        *((v, TypeError, "must be an integer") for v in (1.5, "2", True)),
    ],
    "isa": [("avx9", ValueError, "'baseline'"), (3, TypeError, "'baseline'")],
    "training": [(v, TypeError, "must be True or False") for v in (1, None, "yes", np.ones(2))],
}  # fmt: skip
OPTION_CASES = [(name, *case) for name, cases in OPTIONS.items() for case in cases]


@pytest.mark.parametrize(("name", "value", "error", "message"), OPTION_CASES)
def test_options(name, value, error, message):
    refused(_core.forward, forward_arguments(**{name: value}), error, name, message)


def test_options_take_numbers_and_strings_of_other_types():
    class Name(str):
        __slots__ = ()

    x = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    want, _ = functional.forward(x.copy(), momentum=1.0, eps=1.0, activation="elu", activation_param=0.5)
    got, ctx = functional.forward(
        x.copy(), momentum=1, eps=np.float32(1), activation=Name("elu"), activation_param=np.float64(0.5),
        training=np.True_, channel_axis=np.int8(1), threads=np.int64(1),
    )  # fmt: skip
    assert np.array_equal(got, want)
    assert ctx.activation == "elu"


@pytest.mark.parametrize("strategy", ["inplace", "inplace_1", "inplace_2"])
def test_relu_is_refused_by_strategies_that_keep_z(strategy):
    arguments = forward_arguments(activation="relu", strategy=strategy)
    refused(_core.forward, arguments, ValueError, "'relu' has no inverse", f"'{strategy}'", "use leaky_relu")


def test_a_parameter_that_the_activation_does_not_have_is_ignored():
    functional.forward(**forward_arguments(activation="identity", activation_param=-1))
    functional.forward(np.ones((2, 3)), activation_param=1e-60)


# ---- the binder --------------------------------------------------------------------------------------------


def test_unknown_keywords():
    x = np.ones(SHAPE, np.float32)
    for name, meant in [("wieght", "weight"), ("momentun", "momentum"), ("Eps", "eps")]:
        message = f"forward() got an unexpected keyword argument '{name}'; did you mean '{meant}'?"
        with pytest.raises(TypeError, match=re.escape(message)):
            _core.forward(x, **{name: 1})
    message = (
        "unexpected keyword argument 'inplace'; it takes x, weight, bias, running_mean, running_var, tra"
    )
    with pytest.raises(TypeError, match=message):
        _core.forward(x, inplace=True)
    with pytest.raises(TypeError, match="unexpected keyword argument 'é'"):
        _core.forward(x, é=1)
    with pytest.raises(TypeError, match="unexpected keyword"):
        _core.forward(x, **{"": 1})
    assert x.flags.writeable


def test_keywords_built_at_run_time():
    x = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    want, _ = functional.forward(x.copy(), momentum=0.5, activation_param=0.25)
    got, _ = _core.forward(**{"".join(["activation", "_", "param"]): 0.25, "".join("momentum"): 0.5, "x": x})
    assert np.array_equal(got, want)


def test_arguments_that_are_doubled_missing_or_too_many():
    x, c = np.ones(SHAPE, np.float32), np.ones(3, np.float32)
    for call, message in [
        (lambda: _core.forward(), "forward() needs 'x'"),
        (lambda: _core.forward(weight=c), "forward() needs 'x'"),
        (lambda: _core.forward(x, x=x), "forward() got 'x' twice, by position and by name"),
        (
            lambda: _core.forward(x, c, c),
            "forward() takes x only by position, got 3 positional arguments; pass the others by keyword: "
            "weight=, bias=, running_mean=, running_var=, training=, ",
        ),
        (lambda: _core.backward(), "backward() needs 'ctx'"),
        (lambda: _core.backward(dz=x), "backward() needs 'ctx'"),
        (lambda: _core.backward(x, x, x), "backward() takes ctx and dz only by position, got 3"),
        (lambda: _core.normalize(x, mean=c, var=c), "normalize() needs 'count'"),
        (lambda: _core.statistics(), "statistics() needs 'x'"),
        (lambda: _core.set_num_threads(1, 2), "set_num_threads() takes n only by position, got 2"),
    ]:
        with pytest.raises(TypeError, match=re.escape(message)):
            call()
    assert x.flags.writeable
