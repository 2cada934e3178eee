"""The library and the reference against PyTorch's batch norm and activations."""

import numpy as np
import pytest
from batches import LAYOUTS, PARAM, SCHEMES, lay_out, random_batch, relative_l2
from bounds import without_kinks
from keywords import as_parameters, as_running

from inplace_abn import functional, reference

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", reason="PyTorch is not installed")
F = torch.nn.functional

# The activations that PyTorch has.
ACTIVATIONS = {
    "identity": lambda y, _: y,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "relu": lambda y, _: F.relu(y),
    "relu6": lambda y, _: F.relu6(y),
    "hardsigmoid": lambda y, _: F.relu6(y + 3) / 6,  # F.hardsigmoid has a slope of float32's 1 / 6
    "hardswish": lambda y, _: F.hardswish(y),
}


def torch_results(batch, activation, training, running):
    """PyTorch's z, dx, dweight, dbias, running mean and variance in float64."""
    x, weight, bias = (
        torch.tensor(a.astype(np.float64), requires_grad=True) for a in (batch.x, batch.weight, batch.bias)
    )
    mean, var = (torch.tensor(a.astype(np.float64)) for a in running)
    y = F.batch_norm(x, mean, var, weight, bias, training)
    z = ACTIVATIONS[activation](y, PARAM[activation])
    z.backward(torch.tensor(batch.dz.astype(np.float64)))
    return [t.detach().numpy() for t in (z, x.grad, weight.grad, bias.grad, mean, var)]


def our_results(batch, layout, activation, strategy, training, running):
    """Return the same results of inplace_abn."""
    x, axis = LAYOUTS[layout](batch.x)
    running = [a.copy() for a in running]
    z, ctx = functional.forward(
        x, weight=batch.weight, bias=batch.bias, **as_running(running), training=training,
        activation=activation,
        activation_param=PARAM[activation], strategy=strategy, channel_axis=axis,
    )  # fmt: skip
    z = np.moveaxis(z, axis, 1).copy()
    dx, dweight, dbias = functional.backward(ctx, lay_out(batch.dz, layout))
    return [z, np.moveaxis(dx, axis, 1), dweight, dbias, *running]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("dtype", "most"), [("float64", 1e-13), ("float32", 1e-6)])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("activation", "strategy"), [scheme for scheme in SCHEMES if scheme[0] in ACTIVATIONS]
)
def test_forward_and_backward(activation, strategy, layout, dtype, most, training):
    batch = random_batch((4, 17, 5, 7), dtype)
    running = batch.bias / 2, np.abs(batch.weight)
    statistics = None if training else running
    batch = without_kinks(batch, dtype, activation=activation, statistics=statistics)
    want = torch_results(batch, activation, training, running)
    got = our_results(batch, layout, activation, strategy, training, running)
    names = ["z", "dx", "dweight", "dbias", "running_mean", "running_var"]
    for name, ours, theirs in zip(names, got, want, strict=True):
        assert relative_l2(ours, theirs) < most, name


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(9, 4), (3, 4, 5), (3, 4, 5, 2), (3, 4, 5, 2, 2)], ids=str)
def test_the_reference(shape, activation, training):
    batch = random_batch(shape, "float64")
    running = batch.bias / 2, np.abs(batch.weight)
    want = torch_results(batch, activation, training, running)
    z, ctx = reference.forward(
        batch.x, weight=batch.weight, bias=batch.bias, **as_running(running), training=training,
        activation=activation, activation_param=PARAM[activation], strategy="standard",
    )  # fmt: skip
    got = [z, *reference.backward(ctx, batch.dz)]
    if training:
        got += reference.update_running(*running, *reference.statistics(batch.x))
    for ours, theirs in zip(got, want, strict=False):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_channels_last_tensors_are_not_copied():
    """.numpy() of a channels_last tensor is a (N, C, H, W) view of (N, H, W, C) memory."""
    tensor = torch.randn(4, 16, 6, 5, generator=torch.Generator().manual_seed(0))
    tensor = tensor.to(memory_format=torch.channels_last)
    want = F.leaky_relu(F.batch_norm(tensor, None, None, training=True), 0.01)
    view = tensor.numpy()
    z, ctx = functional.forward(view)
    assert z is view
    assert z.ctypes.data == tensor.data_ptr()
    torch.testing.assert_close(tensor, want)
    dx = functional.backward(ctx, torch.ones_like(tensor).numpy()).dx
    assert dx.strides == view.strides


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4, 4), (2, 3, 0)], ids=str)
def test_empty_batches(shape):
    x = torch.zeros(shape, requires_grad=True)
    weight, bias = torch.ones(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    mean, var = torch.full((3,), 2.0), torch.full((3,), 5.0)
    want = F.batch_norm(x, mean, var, weight, bias, True)
    want.sum().backward()
    running = np.full(3, 2, np.float32), np.full(3, 5, np.float32)
    parameters = np.ones(3, np.float32), np.zeros(3, np.float32)
    z, ctx = functional.forward(
        np.zeros(shape, np.float32), **as_parameters(parameters), **as_running(running)
    )
    dx, dweight, dbias = functional.backward(ctx, np.ones(shape, np.float32))
    assert z.shape == tuple(want.shape)
    assert dx.shape == tuple(x.grad.shape)
    assert dweight.tolist() == weight.grad.tolist()
    assert dbias.tolist() == bias.grad.tolist()


def test_one_value_per_channel_is_refused_with_the_message_of_torch():
    with pytest.raises(ValueError, match="more than 1 value per channel") as theirs:
        F.batch_norm(torch.zeros(1, 3), None, None, training=True)
    with pytest.raises(ValueError, match="more than 1 value per channel") as ours:
        functional.forward(np.zeros((1, 3), np.float32))
    assert type(ours.value) is type(theirs.value)


def test_nan_in_one_channel_propagates_as_in_torch():
    x = np.random.default_rng(0).normal(size=(4, 3, 5)).astype(np.float32)
    x[1, 1, 2], x[2, 2, 2] = np.nan, np.inf
    want = F.leaky_relu(F.batch_norm(torch.tensor(x), None, None, training=True), 0.01).numpy()
    z, _ = functional.forward(x)
    np.testing.assert_allclose(z, want, rtol=1e-5, atol=1e-6)
