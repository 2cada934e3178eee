"""Assignments to parameters, buffers and settings of layers."""

import copy

import numpy as np
import pytest
from networks import normal

from inplace_abn.layers import (
    ABN,
    AvgPool2d,
    Conv2d,
    ConvTranspose2d,
    GroupNorm,
    InPlaceABN,
    Linear,
    Parameter,
    Sequential,
)


@pytest.mark.parametrize(
    ("make", "key", "value", "error", "message"),
    [
        (ABN, "running_mean", [0.0, 0.0], TypeError, "running_mean must be a numpy.ndarray or None, got l"),
        (ABN, "running_var", 1.0, TypeError, "running_var must be a numpy.ndarray or None, got float"),
        (ABN, "running_mean", np.zeros(3), ValueError, r"running_mean: expected shape \(2,\), got \(3,\)"),
        (ABN, "running_mean", np.zeros(2, int), TypeError, "running_mean: expected float32, got int64"),
        (ABN, "num_batches_tracked", 0, TypeError, "num_batches_tracked must be a numpy.ndarray or None"),
        (ABN, "num_batches_tracked", np.array(0.0), TypeError, "num_batches_tracked: expected int64, got"),
        (ABN, "eps", 0.0, ValueError, "eps must be greater than 0, got 0.0"),
        (InPlaceABN, "eps", "small", TypeError, "eps must be a number, got 'small'"),
        (ABN, "eps", None, TypeError, "eps must be a number, got None"),
        (ABN, "momentum", 2, ValueError, r"momentum must be in \[0, 1\], got 2"),
        (ABN, "momentum", np.nan, ValueError, r"momentum must be in \[0, 1\], got nan"),
        (ABN, "channel_axis", 2, ValueError, "channel_axis must be 1, .* got 2"),
        (lambda _: AvgPool2d(2), "channel_axis", 0, ValueError, "channel_axis must be 1, .* got 0"),
        (lambda n: Conv2d(n, n, 1), "channel_axis", None, ValueError, "channel_axis must be 1, "),
        (ABN, "activation", "swish", ValueError, "activation must be one of .* did you mean 'silu'"),
        (ABN, "num_features", 0, ValueError, "num_features must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_messages_about_assignments_name_the_layer(make, key, value, error, message):
    net = Sequential({"net": make(2)})
    before = copy.copy(vars(net.net)[key])
    with pytest.raises(error, match=rf"^net \({type(net.net).__name__}\): {message}"):
        setattr(net.net, key, value)
    np.testing.assert_array_equal(vars(net.net)[key], before)


def test_accepted_assignments():
    layer, x = ABN(2), normal((4, 2), dtype=np.float32)
    layer.running_mean, layer.running_var = np.ones(2, np.float32), np.full(2, 4, np.float32)
    layer.num_batches_tracked = np.array(7)
    layer.momentum, layer.eps, layer.channel_axis = None, 1e-3, -1
    np.testing.assert_allclose(layer.eval()(x)[x > 1], (x[x > 1] - 1) / np.sqrt(4 + 1e-3), rtol=1e-5)
    layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    assert list(layer.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (
            [1.0, 1.0],
            TypeError,
            r"weight.data must be a numpy.ndarray, got list; write .*data\[...\] =",
        ),
        (1.0, TypeError, "weight.data must be a numpy.ndarray, got float"),
        (np.ones(3), ValueError, r"weight.data: expected shape \(2,\), got \(3,\)"),
        (np.ones(2, int), TypeError, "weight.data: expected a floating-point dtype, got int64"),
    ],
)
def test_data_of_a_parameter(data, error, message):
    layer = ABN(2)
    before = layer.weight.data
    with pytest.raises(error, match=message):
        layer.weight.data = data
    assert layer.weight.data is before
    layer.weight.data = np.full(2, 3.0)
    layer.weight.data += 1
    assert layer.weight.data.tolist() == [4, 4]


def test_a_parameter_shares_the_array_that_it_is_made_of():
    array = np.zeros(2)
    assert Parameter(array).data is array


# ---- running statistics ------------------------------------------------------------------------------------

#: training, track_running_stats, buffers present -> (normalizes by the batch, updates the buffers), as in
#: torch/nn/modules/batchnorm.py.
TABLE = {
    (True, True, True): (True, True),
    (True, True, False): (True, False),
    (True, False, True): (True, False),
    (True, False, False): (True, False),
    (False, True, True): (False, False),
    (False, True, False): (True, False),
    (False, False, True): (False, False),
    (False, False, False): (True, False),
}


def prepared(layer, training, track, present, zeros):
    layer.train(training)
    layer.track_running_stats = track
    if not present:
        layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    else:
        layer.running_mean[...], layer.running_var[...] = zeros + 2, zeros + 4
    return layer


@pytest.mark.parametrize("strategy", ["standard", "inplace"])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("case", TABLE)
def test_which_statistics_are_used(case, momentum, strategy):
    layer = ABN(3, 1e-5, momentum, activation="identity", strategy=strategy, dtype=np.float64)
    layer, x = prepared(layer, *case, 0.0), normal((8, 3, 5))
    by_batch, updates = TABLE[case]
    mean, var = (x.mean((0, 2)), x.var((0, 2))) if by_batch else (np.full(3, 2.0), np.full(3, 4.0))
    want = (x - mean[:, None]) / np.sqrt(var[:, None] + 1e-5)
    dz, before = normal(x.shape, 1), x.copy()
    np.testing.assert_allclose(layer(x), want, rtol=0, atol=1e-12)
    layer.backward(dz)
    if case[2]:
        share = 0.1 if momentum else 1.0
        new = (1 - share) * 2 + share * before.mean((0, 2))
        np.testing.assert_allclose(layer.running_mean, new if updates else np.full(3, 2.0))
        assert layer.num_batches_tracked == int(updates)
    if not by_batch:
        assert layer(normal((1, 3))).shape == (1, 3)  # one sample is enough


@pytest.mark.torch
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("case", TABLE)
def test_which_statistics_pytorch_uses(case, momentum):
    torch = pytest.importorskip("torch")
    ours = ABN(3, 1e-5, momentum, activation="identity", dtype=np.float64)
    theirs = torch.nn.BatchNorm1d(3, momentum=momentum, dtype=torch.float64)
    ours, theirs = prepared(ours, *case, 0.0), prepared(theirs, *case, torch.zeros(3))
    x = normal((8, 3, 5))
    np.testing.assert_allclose(ours(x), theirs(torch.tensor(x)).detach().numpy(), rtol=0, atol=1e-12)
    if case[2]:
        np.testing.assert_allclose(ours.running_mean, theirs.running_mean)
        np.testing.assert_allclose(ours.running_var, theirs.running_var)
        assert ours.num_batches_tracked == int(theirs.num_batches_tracked)


def test_reset():
    layer, fresh = (ABN(3, activation="prelu", dtype=np.float64) for _ in range(2))
    for array in layer.state_dict():
        assert array in fresh.state_dict()
    layer(normal((4, 3)))
    for parameter in layer.parameters():
        parameter.data += 1
    before = layer.weight.data
    layer.reset_running_stats()
    assert layer.num_batches_tracked == 0
    assert (layer.running_var == 1).all()
    assert layer.weight.data is before
    assert (before == 2).all()
    layer.reset_parameters()
    for name, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, fresh.state_dict()[name])
    ABN(3, affine=False, track_running_stats=False).reset_parameters()
    layer = ABN(3)
    layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    layer.reset_running_stats()


@pytest.mark.parametrize(
    "make",
    [
        lambda **rng: Linear(3, 2, **rng),
        lambda **rng: Conv2d(3, 2, 3, **rng),
        lambda **rng: Conv2d(3, 2, 3, bias=False, **rng),
        lambda **rng: ConvTranspose2d(3, 2, 3, **rng),
        lambda rng: GroupNorm(1, 3),
    ],
)
def test_reset_parameters_are_those_of_a_new_layer(make):
    layer, fresh = make(rng=1), make(rng=0)
    for parameter in layer.parameters():
        parameter.data += 1
    layer.reset_parameters(**({} if isinstance(layer, GroupNorm) else {"rng": 0}))
    for name, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, fresh.state_dict()[name])
