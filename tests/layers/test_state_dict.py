"""state_dict and load_state_dict: names of PyTorch, checkpoints in .npz, and mismatches."""

import ml_dtypes
import numpy as np
import pytest
from networks import STRATEGIES, assert_close, normal, run

from inplace_abn import models
from inplace_abn.layers import (
    ABN,
    Conv2d,
    Flatten,
    InPlaceABN,
    Layer,
    Linear,
    Parameter,
    Sequential,
    no_grad,
)


def network(**style):
    return models.residual_network(1, 3, (4, 8), 1, dtype=np.float64, **style)


def trained(net):
    """Give every entry of the state another value."""
    state = {name: normal(array.shape, seed) ** 2 for seed, (name, array) in enumerate(net.named_state())}
    state.update((name, np.array(7)) for name in state if name.endswith("num_batches_tracked"))
    net.load_state_dict(state)
    return net


def test_names_are_pytorchs():
    net = Sequential(Conv2d(1, 2, 3), InPlaceABN(2), Flatten(), Linear(8, 3, bias=False))
    assert list(net.state_dict()) == [
        "0.weight", "0.bias",
        "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked",
        "3.weight",
    ]  # fmt: skip
    assert net.state_dict()["1.num_batches_tracked"].shape == ()
    assert list(ABN(2, affine=False).state_dict()) == ["running_mean", "running_var", "num_batches_tracked"]
    assert list(ABN(2, track_running_stats=False).state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_checkpoint_in_npz(strategy, tmp_path):
    net, other = trained(network(rng=0)), network(strategy=strategy, rng=1)
    np.savez(tmp_path / "checkpoint.npz", **net.state_dict())
    with np.load(tmp_path / "checkpoint.npz") as checkpoint:
        assert other.load_state_dict(checkpoint) == ([], [])
    x, dz = normal((2, 1, 8, 8)), normal((2, 3), 1)
    assert_close(run(other, x, dz), run(net, x, dz), rtol=1e-11)
    assert_close(run(other.eval(), x, dz), run(net.eval(), x, dz), rtol=1e-11)
    assert_close(other.state_dict(), net.state_dict())


def test_the_state_is_a_copy_and_is_loaded_in_place():
    net = network()
    state = net.state_dict()
    weight = net.stem.weight.data
    weight += 1
    assert not np.array_equal(state["stem.weight"], weight)
    net.load_state_dict(state)
    assert net.stem.weight.data is weight
    assert np.array_equal(state["stem.weight"], weight)


def test_other_floating_dtypes_are_converted():
    layer = InPlaceABN(2)
    layer.load_state_dict({**layer.state_dict(), "weight": np.array([0.5, 2.0])})
    assert layer.weight.data.dtype == np.float32
    assert layer.weight.data.tolist() == [0.5, 2]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("count", "loaded"),
    [(7.0, 7), (3.5, 3), (-3.5, -3), ([7], 7), ([7.5], 7), (np.int32(7), 7), (np.float32(7), 7), (True, 1)],
)
def test_num_batches_tracked_is_converted_as_in_pytorch(count, loaded, strict):
    layer = InPlaceABN(2)
    kept = layer.num_batches_tracked
    layer.load_state_dict({**layer.state_dict(), "num_batches_tracked": np.array(count)}, strict=strict)
    assert layer.num_batches_tracked is kept
    assert (kept.shape, kept.dtype, int(kept)) == ((), np.int64, loaded)


def test_the_mean_of_two_states_loads():
    one, two = trained(network(rng=0)), network(rng=1)
    states = one.state_dict(), two.state_dict()
    mean = {name: (array + states[1][name]) / 2 for name, array in states[0].items()}
    two.load_state_dict(mean)
    counts = {name: array for name, array in two.state_dict().items() if array.shape == ()}
    assert {int(count) for count in counts.values()} == {3}  # of 7 and 0


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (np.nan, "value mismatch for num_batches_tracked: nan does not fit into int64"),
        ([1, 2], r"size mismatch for num_batches_tracked: expected shape \(\), got \(2,\)"),
        (1j, "dtype mismatch for num_batches_tracked: complex128 does not fit into int64"),
    ],
)
def test_counts_that_do_not_fit(count, words):
    layer = InPlaceABN(2)
    with pytest.raises(RuntimeError, match=words):
        layer.load_state_dict({"num_batches_tracked": np.array(count)}, strict=False)


def test_read_only_arrays_are_found_before_anything_is_loaded():
    net = Sequential(Linear(2, 3), Linear(3, 2))
    state = {name: array + 1 for name, array in net.state_dict().items()}
    net[1].bias.data.flags.writeable = False
    before = net.state_dict()
    with pytest.raises(
        RuntimeError, match=r"memory mismatch for 1\.bias: the array of the layer is read-only"
    ):
        net.load_state_dict(state)
    assert_close(net.state_dict(), before)


def test_arrays_saved_for_a_backward_are_not_loaded_into():
    class Scale(Layer):
        def __init__(self):
            self.weight = Parameter(np.ones(2))

        def forward(self, ctx, x):
            ctx.save_for_backward(input=x, weight=self.weight.data[:1])
            return x * self.weight.data

    layer = Scale()
    state = {"weight": np.full(2, 3.0)}
    layer(np.ones((1, 2)))
    with pytest.raises(RuntimeError, match=r"memory mismatch for weight: Scale.* keeps it as 'weight'"):
        layer.load_state_dict(state)
    layer.release()
    layer.load_state_dict(state)
    assert layer.weight.data.tolist() == [3, 3]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_in_npz(dtype, tmp_path):
    state = {name: array.astype(dtype) for name, array in trained(network()).state_dict().items()}
    np.savez(tmp_path / "half.npz", **state)
    other = network()
    with np.load(tmp_path / "half.npz") as checkpoint:
        other.load_state_dict(checkpoint)
    for name, array in other.state_dict().items():
        assert (array == state[name].astype(array.dtype)).all()


def test_num_batches_tracked_may_be_missing():
    layer = InPlaceABN(2)
    state = layer.state_dict()
    del state["num_batches_tracked"]
    assert layer.load_state_dict(state) == ([], [])


def test_missing_and_unexpected_names_are_listed():
    net = Sequential(Linear(2, 3), InPlaceABN(3))
    state = net.state_dict()
    del state["0.bias"], state["1.running_var"]
    state.update({"2.weight": np.ones(3), "module.bias": np.ones(3)})
    before = net.state_dict()
    with pytest.raises(RuntimeError) as caught:
        net.load_state_dict(state)
    assert str(caught.value).splitlines() == [
        "Error(s) in loading state_dict for Sequential:",
        '\tMissing key(s) in state_dict: "0.bias", "1.running_var".',
        '\tUnexpected key(s) in state_dict: "2.weight", "module.bias".',
    ]
    assert_close(net.state_dict(), before)
    state["0.weight"] = np.full((3, 2), 9)
    result = net.load_state_dict(state, strict=False)
    assert result.missing_keys == ["0.bias", "1.running_var"]
    assert result.unexpected_keys == ["2.weight", "module.bias"]
    assert (net[0].weight.data == 9).all()


@pytest.mark.parametrize("strict", [True, False])
def test_shapes_that_differ_are_listed_and_nothing_is_loaded(strict):
    net = Sequential(Linear(2, 3))
    before = net.state_dict()
    message = r"size mismatch for 0\.bias: expected shape \(3,\), got \(4,\)"
    with pytest.raises(RuntimeError, match=message):
        net.load_state_dict({"0.weight": np.zeros((3, 2)), "0.bias": np.zeros(4)}, strict=strict)
    assert_close(net.state_dict(), before)


def test_dtypes_that_do_not_fit():
    net = Sequential(Linear(2, 3, bias=False))
    with pytest.raises(
        RuntimeError, match=r"dtype mismatch for 0.weight: complex128 does not fit into float32"
    ):
        net.load_state_dict({"0.weight": np.zeros((3, 2), complex)})
    with pytest.raises(TypeError, match="state must be a mapping of names to arrays"):
        net.load_state_dict([1])


# ---- against PyTorch ---------------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_loaded_batch_norm_of_pytorch_gives_the_same_results(strategy, training, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    theirs = torch.nn.BatchNorm2d(5, dtype=torch.float64)
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(normal(5)))
        theirs.bias.copy_(torch.tensor(normal(5, 1)))
        theirs(torch.tensor(normal((4, 5, 3, 3), 2)))
    np.savez(tmp_path / "bn.npz", **{name: value.numpy() for name, value in theirs.state_dict().items()})
    ours = ABN(5, strategy=strategy, dtype=np.float64)
    ours.load_state_dict(np.load(tmp_path / "bn.npz"))

    x, dz = normal((4, 5, 3, 3), 3), normal((4, 5, 3, 3), 4)
    given = torch.tensor(x, requires_grad=True)
    z = torch.nn.functional.leaky_relu(theirs.train(training)(given), 0.01)
    z.backward(torch.tensor(dz))
    got = run(ours.train(training), x, dz)
    want = {"z": z.detach(), "dx": given.grad, "weight": theirs.weight.grad, "bias": theirs.bias.grad}
    assert_close(got, {name: value.numpy() for name, value in want.items()}, rtol=1e-11)
    assert_close(ours.state_dict(), {name: value.numpy() for name, value in theirs.state_dict().items()})


@pytest.mark.torch
def test_pytorch_loads_what_we_save_and_lists_the_same_keys():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    ours = Sequential(Conv2d(2, 3, 3), InPlaceABN(3))
    theirs = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    state = {name: torch.tensor(array) for name, array in ours.state_dict().items()}
    assert list(state) == list(theirs.state_dict())
    theirs.load_state_dict(state)
    del state["0.bias"]
    state["2.bias"] = torch.zeros(3)
    with pytest.raises(RuntimeError) as theirs_says:
        theirs.load_state_dict(state)
    with pytest.raises(RuntimeError) as ours_says:
        ours.load_state_dict(state)
    assert str(ours_says.value).split() == str(theirs_says.value).split()


@pytest.mark.torch
@pytest.mark.parametrize("count", [7.0, 3.5, -3.5, [7], [7.5], True])
def test_counts_are_converted_as_pytorch_does(count):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    theirs, ours = torch.nn.BatchNorm1d(2), ABN(2)
    theirs.load_state_dict({**theirs.state_dict(), "num_batches_tracked": torch.tensor(count)})
    ours.load_state_dict({**ours.state_dict(), "num_batches_tracked": np.array(count)})
    assert ours.num_batches_tracked == theirs.num_batches_tracked.item()


@pytest.mark.torch
@pytest.mark.parametrize("momentum", [0.3, None])
def test_running_statistics_are_pytorchs(momentum):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    ours = InPlaceABN(3, momentum=momentum, dtype=np.float64)
    theirs = torch.nn.BatchNorm1d(3, momentum=momentum, dtype=torch.float64)
    for seed in range(3):
        x = normal((6, 3), seed)
        theirs(torch.tensor(x))
        with no_grad():
            ours(x)
    assert_close(
        ours.state_dict(), {name: value.detach().numpy() for name, value in theirs.state_dict().items()}
    )
