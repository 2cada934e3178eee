"""`SyncABN` with threads as ranks: the arithmetic, the number of exchanges, errors on all ranks."""

import copy
import threading

import numpy as np
import pytest
from groups import SIZES, assert_as_one, in_ranks, inputs, make, part, step, thread_groups

from inplace_abn import layers, plan
from inplace_abn._activations import ACTIVATIONS, KEEPS
from inplace_abn.distributed import Group, MPIGroup
from inplace_abn.distributed.exchange import Exchange

INVERTIBLE = [name for name, activation in ACTIVATIONS.items() if activation.is_invertible(0.5)]


def both(activation, strategy, sizes, dtype=np.float64, overwrite=False):
    """Return the results of three ranks, and of one process."""
    arrays = inputs(dtype=dtype)

    def run(group):
        layer = make(activation, strategy, group, dtype=dtype)
        return step(layer, *part(arrays, sizes, group.rank), overwrite=overwrite)

    ranks = in_ranks(run, thread_groups(3))
    errors = [rank for rank in ranks if isinstance(rank, Exception)]
    assert not errors, errors
    return ranks, step(make(activation, strategy, dtype=dtype), *arrays)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("strategy", KEEPS)
def test_ranks_equal_one_process(strategy, sizes):
    for activation in INVERTIBLE if KEEPS[strategy] == "z" else ACTIVATIONS:
        assert_as_one(*both(activation, strategy, SIZES[sizes], overwrite=sizes == "unequal"), 1e-12)


def test_ranks_equal_one_process_in_float32():
    ranks, whole = both("leaky_relu", "inplace", SIZES["unequal"], np.float32)
    assert_as_one(ranks, whole, 1e-5)
    assert all(array.dtype == np.float32 for rank in ranks for kind in rank for array in kind)


def test_merged_statistics_have_the_same_bits_on_all_ranks_and_in_all_runs():
    runs = [both("silu", "inplace", SIZES["unequal"])[0] for _ in range(3)]
    first, *others = [rank[2] for run in runs for rank in run]
    assert all(np.array_equal(a, b) for other in others for a, b in zip(first, other, strict=True))
    assert all(
        np.array_equal(a[0][1], b[0][1]) for run in runs[1:] for a, b in zip(runs[0], run, strict=True)
    )


def test_one_exchange_per_forward_and_backward_and_settings_once():
    groups = thread_groups(2)

    def run(group):
        layer = make("leaky_relu", "inplace", group)
        for _ in range(3):
            step(layer, *inputs(2))
        with layers.no_grad():
            layer.eval()(inputs(2)[0])

    assert in_ranks(run, groups) == [None, None]
    assert groups[0].lengths == [256] + [2 * 5 + 2] * 6


def test_masks_are_counted_across_ranks():
    arrays, sizes = inputs(), SIZES["unequal"]
    mask = np.random.default_rng(1).random((6, 3, 2)) < 0.6

    def run(group):
        layer = make("leaky_relu", "inplace", group)
        x, _, dz = part(arrays, sizes, group.rank)
        z = layer(x, mask=part([mask], sizes, group.rank)[0]).copy()
        return [z, layer.backward(dz)], [layer.weight.grad], [layer.running_var]

    alone = make("leaky_relu", "inplace")
    z = alone(arrays[0].copy(), mask=mask).copy()
    whole = [z, alone.backward(arrays[2])], [alone.weight.grad], [alone.running_var]
    assert_as_one(in_ranks(run, thread_groups(3)), whole, 1e-12)


def test_one_value_per_channel_on_each_rank():
    values = np.array([[1.0], [3.0]])

    def run(group):
        layer = layers.SyncABN(1, activation="identity", dtype=np.float64, group=group)
        return layer(values[group.rank : group.rank + 1]).item()

    assert np.allclose(in_ranks(run, thread_groups(2)), [-1, 1], atol=1e-4)


def test_one_value_in_all_ranks_is_refused_on_all():
    def run(group):
        return layers.SyncABN(1, group=group)(np.ones((group.rank, 1), np.float32))

    results = in_ranks(run, thread_groups(2))
    assert all("more than 1 value per channel in all processes together" in str(r) for r in results)


def test_a_network_by_convert_sync_equals_one_process():
    def network():
        net = layers.Sequential(
            layers.Conv2d(5, 4, 1, dtype=np.float64),
            layers.InPlaceABN(4, activation="elu", activation_param=1.0, dtype=np.float64),
            layers.Recompute(layers.Conv2d(4, 4, 1, dtype=np.float64), layers.ABN(4, dtype=np.float64)),
            layers.Residual(
                layers.Sequential(
                    layers.Conv2d(4, 4, 1, dtype=np.float64),
                    layers.InPlaceABN(4, activation="identity", dtype=np.float64),
                ),
                activation=layers.Activation("leaky_relu"),
            ),
            layers.ABN(4, activation="prelu", dtype=np.float64),
        )
        for i, parameter in enumerate(net.parameters()):
            rng = np.random.default_rng(i)
            parameter.data[...] = rng.normal(1 if parameter.data.ndim == 1 else 0, 0.5, parameter.data.shape)
        return net

    x, _, dz = inputs()
    sizes = SIZES["unequal"]

    def run(group, net=None):
        net = net or layers.convert_sync(network(), group)
        own, own_dz = (x, dz[:, :4]) if group is None else part([x, dz[:, :4]], sizes, group.rank)
        z = net(own.copy()).copy()
        dx = net.backward(own_dz.copy())
        return [z, dx], [p.grad for p in net.parameters()], [net[1].running_mean, net[4].running_var]

    ranks = in_ranks(run, thread_groups(3))
    assert not any(isinstance(rank, Exception) for rank in ranks), ranks
    assert_as_one(ranks, run(None, network()), 1e-12)


# ---- disagreement and errors -------------------------------------------------------------------------------

DIFFERENT = {
    "num_features": 3,
    "dtype": np.float16,
    "eps": 1e-3,
    "momentum": None,
    "strategy": "standard",
    "activation": "elu",
    "activation_param": 0.2,
}
CASES = [(name, False) for name in DIFFERENT] + [(name, True) for name in list(DIFFERENT)[2:]]


@pytest.mark.parametrize(("name", "agreed_before"), CASES)
def test_disagreement_is_an_error_on_all_ranks_and_writes_nothing(name, agreed_before):
    def run(group):
        different = {name: DIFFERENT[name]} if group.rank == 1 else {}
        dtype = different.pop("dtype", np.float32)
        layer = layers.SyncABN(
            **{"num_features": 4, "strategy": "inplace"} | ({} if agreed_before else different), group=group
        )
        x = np.ones((3, layer.num_features), dtype)
        if agreed_before:
            layer.backward(np.ones_like(layer(x.copy())))
            for setting in different.items():
                setattr(layer, *setting)
        before = layer.running_mean.copy()
        message = rf"^SyncABN: {name} must be equal in all processes, got .* on rank 0 and .* on rank 1$"
        with pytest.raises(ValueError, match=message):
            layer(x)
        assert (x == 1).all()
        assert x.flags.writeable
        assert np.array_equal(layer.running_mean, before)
        layers.SyncABN(2, group=group)(np.eye(2, dtype=np.float32))  # the group can still be used

    assert in_ranks(run, thread_groups(3)) == [None] * 3


@pytest.mark.parametrize("first", [True, False])
def test_an_error_of_one_rank_is_reported_to_all(first):
    def run(group):
        layer = layers.SyncABN(2, strategy="inplace", group=group)
        x = np.eye(2, dtype=np.float32)
        if not first:
            layer(x.copy())
        residual = np.zeros((3, 2), np.float32) if group.rank == 1 else None
        try:
            layer(x, residual=residual)
        except (RuntimeError, ValueError) as error:
            assert np.array_equal(x, np.eye(2))
            layer(x)  # all can go on
            return type(error), str(error)

    shape = "residual must have the shape (2, 2) and dtype float32 of x, got shape (3, 2) and float32"
    results = in_ranks(run, thread_groups(3))
    assert results[1] == (ValueError, f"SyncABN: {shape}")
    assert results[0] == results[2] == (RuntimeError, f"SyncABN: rank 1 failed: ValueError: {shape}")


def test_a_long_error_is_cut():
    def run(group):
        error = ValueError("x̂" * 1000) if group.rank else None
        return Exchange(group).gather({"eps": 0.1}, np.zeros(1), error)

    first, second = in_ranks(run, thread_groups(2))
    assert str(first).startswith("rank 1 failed: 'ValueError: x\\u0302")
    assert second is None


def test_an_error_in_the_backward_is_reported_to_all():
    def run(group):
        layer = make("leaky_relu", "inplace", group)
        x, _, dz = inputs(2)
        layer(x)
        x.flags.writeable = group.rank == 1  # unlocked on rank 1
        try:
            layer.backward(dz)
        except RuntimeError as error:
            return str(error)

    first, second = in_ranks(run, thread_groups(2))
    assert first.startswith("SyncABN: rank 1 failed: RuntimeError: ")
    assert "writeable" in second


def test_a_rank_that_does_not_call_is_an_error_within_the_timeout():
    def run(group):
        x = np.eye(2, dtype=np.float32)
        if group.rank == 0:
            return x
        with pytest.raises(threading.BrokenBarrierError):
            layers.SyncABN(2, strategy="inplace", group=group)(x)
        return x

    assert all(np.array_equal(x, np.eye(2)) for x in in_ranks(run, thread_groups(2, timeout=0.2)))


# ---- the group argument ------------------------------------------------------------------------------------


class Alone:
    size, rank = 1, 0

    def all_gather(self, values):
        raise AssertionError("a group of one exchanges nothing")


def test_a_group_of_one_is_abn():
    whole = step(make("silu", "inplace"), *inputs())
    assert_as_one([step(make("silu", "inplace", Alone()), *inputs())], whole, 0)
    with pytest.raises(ValueError, match="more than 1 value per channel in training"):
        layers.SyncABN(2, group=Alone())(np.ones((1, 2), np.float32))


def test_groups_are_checked():
    assert isinstance(Alone(), Group)
    with pytest.raises(TypeError, match="SyncABN: group must be None, a communicator of mpi4py or an object"):
        layers.SyncABN(2, group=4)
    with pytest.raises(TypeError, match="communicator must be a mpi4py"):
        MPIGroup(3)


def test_set_group_and_copies():
    net = layers.Sequential(layers.InPlaceABNSync(2, group=Alone()), layers.ABN(2))
    other = Alone()
    layers.set_active_group(net, other)
    assert net[0].group is other
    assert copy.deepcopy(net)[0].group is other
    net[0].set_group(None)
    assert net[0].group is None
    assert repr(net[0]).startswith("InPlaceABNSync(2, eps=")
    assert isinstance(net[0], layers.InPlaceABN)
    assert set(net.state_dict()) == set(layers.Sequential(layers.ABN(2), layers.ABN(2)).state_dict())


def test_a_plan_needs_no_group():
    net = layers.Sequential(layers.Conv2d(3, 4, 1), layers.InPlaceABN(4))
    settings = {"loss": None, "strategies": (None,), "advice": False}
    alone = plan(net, (2, 3, 8, 8), **settings)["as it is"].step.kept
    assert plan(layers.convert_sync(net), (2, 3, 8, 8), **settings)["as it is"].step.kept == alone
