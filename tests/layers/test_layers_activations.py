"""Activations as layers, and the slope of prelu."""

import numpy as np
import pytest
from batches import dtype_of, without_ml_dtypes
from networks import abn, assert_close, normal, run

from inplace_abn import gradcheck, memory, reference
from inplace_abn.layers import ABN, Activation, InPlaceABN, Sequential
from inplace_abn.optim import SGD

ACTIVATIONS = list(reference.ACTIVATIONS)
#: They keep their input.
AMBIGUOUS = ["prelu", "silu", "gelu", "gelu_tanh", "mish", "hardswish"]


def slopes(activation, channels=3):
    return {"num_slopes": channels, "dtype": np.float64} if activation == "prelu" else {}


# ---- Activation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_activation_equals_the_reference(activation, inplace):
    param, x, dz = 0.3, 3 * normal((50, 3, 40)), normal((50, 3, 40), 1)
    phi, derivative, *_ = reference.ACTIVATIONS[activation]
    want = {"z": phi(x, param), "dx": dz * derivative(x, param)}
    if activation == "prelu":
        want["slope"] = (dz * np.minimum(x, 0)).sum(axis=(0, 2))
    layer = Activation(activation, param, inplace, **slopes(activation))
    assert_close(run(layer, x, dz), want)
    assert_close(run(layer, x, dz, overwrite=True), want)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_activation_equals_that_of_an_identity_normalization(activation):
    """In evaluation, with mean 0 and variance 1 - eps."""
    layer, twin = Activation(activation, 0.3), ABN(3, 0.25, activation=activation, activation_param=0.3)
    twin.eval()
    twin.running_var[...] = 0.75
    x, dz = normal((50, 3, 400), 0, np.float32), normal((50, 3, 400), 1, np.float32)
    got, want = run(layer, x, dz), run(twin, x, dz)
    assert got["z"].dtype == got["dx"].dtype == np.float32
    np.testing.assert_allclose(got["z"], want["z"], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(got["dx"], want["dx"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_activation_keeps_one_array_and_overwrites_its_input_where_it_can(activation):
    layer, x = Activation(activation, inplace=True), normal((2, 3, 4))
    with memory.ledger() as ledger:
        z = layer(x)
    assert ledger.live == x.nbytes
    assert (z is x) == layer.overwrites_input == (activation not in AMBIGUOUS)
    assert [row.role for row in ledger.table()] == ["input" if activation in AMBIGUOUS else "z"]
    layer.release()
    assert x.flags.writeable


@pytest.mark.parametrize("dtype", ["float16", pytest.param("bfloat16", marks=without_ml_dtypes)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_half_types_are_computed_in_float32(activation, dtype):
    x, dz = (normal((6, 3, 5), seed).astype(dtype_of(dtype)) for seed in (0, 1))
    layer = Activation(activation)
    got, want = run(layer, x, dz), run(layer, x.astype(np.float32), dz.astype(np.float32))
    assert got["z"].dtype == got["dx"].dtype == x.dtype
    eps = float(2.0**-7 if dtype == "bfloat16" else 2.0**-10)
    np.testing.assert_allclose(got["z"].astype(np.float32), want["z"], rtol=eps, atol=eps)
    np.testing.assert_allclose(got["dx"].astype(np.float32), want["dx"], rtol=2 * eps, atol=2 * eps)


@pytest.mark.parametrize("channel_axis", [1, -1])
@pytest.mark.parametrize("num_slopes", [1, 3])
def test_gradients_of_a_prelu_alone(num_slopes, channel_axis):
    layer = Activation("prelu", 0.25, num_slopes=num_slopes, channel_axis=channel_axis, dtype=np.float64)
    shape = (4, 3, 5) if channel_axis == 1 else (4, 5, 3)
    report = gradcheck(layer, normal(shape))
    assert report, report
    assert [row.name for row in report.rows] == ["x", "slope"] * 2


def test_a_read_only_input_is_not_overwritten():
    x = normal((2, 3))
    x.flags.writeable = False
    with pytest.raises(ValueError, match="Activation: x is read-only, and inplace=True overwrites it"):
        Activation(inplace=True)(x)
    assert Activation("silu", inplace=True)(x).shape == x.shape  # keeps its input


def test_slopes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="num_slopes=3 requires an x with as many channels"):
        Activation("prelu", num_slopes=3)(normal((2, 4, 5)))
    with pytest.raises(ValueError, match="num_slopes must be one of 1, 4, got 3"):
        ABN(4, activation="prelu", num_slopes=3)
    with pytest.raises(ValueError, match="activation_param must be finite"):
        InPlaceABN(4, activation="prelu", activation_param=np.nan)


# ---- the slope of a normalization --------------------------------------------------------------------------


@pytest.mark.parametrize("num_slopes", [1, 4])
def test_the_slope_is_a_parameter(num_slopes):
    layer = InPlaceABN(4, activation="prelu", activation_param=-0.25, num_slopes=num_slopes)
    assert layer.slope.data.tolist() == [-0.25] * num_slopes
    assert list(layer.state_dict())[:3] == ["weight", "bias", "slope"]
    assert f"num_slopes={num_slopes}" in repr(layer)
    assert [parameter.name for parameter in Sequential(layer).parameters()] == [
        "0.weight",
        "0.bias",
        "0.slope",
    ]
    other = ABN(4, activation="prelu", num_slopes=num_slopes, strategy="checkpoint")
    other.load_state_dict(layer.state_dict())
    assert np.array_equal(other.slope.data, layer.slope.data)
    assert ABN(4).slope is None


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("num_slopes", [1, 4])
@pytest.mark.parametrize(
    "strategy", ["standard", "checkpoint", "checkpoint_xhat", "pre_activation", "inplace_1", "inplace_2"]
)
def test_gradients_of_slopes_accumulate(strategy, num_slopes, affine):
    options = {"num_features": 4, "affine": affine, "dtype": np.float64}
    layer = ABN(strategy=strategy, activation="prelu", activation_param=0.5, num_slopes=num_slopes, **options)
    plain, end = (
        ABN(activation="identity", **options),
        Activation("prelu", 0.5, **slopes("prelu", num_slopes)),
    )
    x, dz = normal((3, 4, 5)), normal((3, 4, 5), 1)
    got, want = run(layer, x, dz), run(Sequential(plain, end), x, dz)
    np.testing.assert_allclose(got["dx"], want["dx"], atol=1e-12)
    np.testing.assert_allclose(got["slope"], want["1.slope"], atol=1e-12)
    layer(x.copy())
    layer.backward(dz)
    np.testing.assert_allclose(layer.slope.grad, 2 * want["1.slope"], atol=1e-12)


def test_a_slope_is_trained():
    """Fit data generated with another slope."""
    x = normal((64, 2, 8), dtype=np.float32)
    target = np.where(x >= 0, x, np.float32(0.6) * x)
    layer = InPlaceABN(2, activation="prelu", track_running_stats=False)
    optimizer = SGD(layer.parameters(), lr=0.5)
    for _ in range(100):
        z = layer(x.copy())
        optimizer.zero_grad()
        layer.backward((z - target) / np.float32(x.size))
        optimizer.step()
    assert layer.slope.data == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "mish"])
def test_activations_with_a_minimum_keep_a_bit_per_element_in_place(activation):
    layer, x = abn(3, "inplace", activation), normal((8, 3, 40))
    with memory.ledger() as ledger:
        layer(x)
        kept = {row.role: row.nbytes for row in ledger.table()}
    assert kept.pop("z") == x.nbytes
    assert kept.pop("branch_mask") == x.size // 8
    assert sum(kept.values()) < x.nbytes / 100  # single elements at the minimum
    assert "on which side of the minimum of the activation" in ledger.explain()
