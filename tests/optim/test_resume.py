"""Saving and resuming a run: bit-equal to an uninterrupted run; files; errors."""

import doctest
import importlib
import sys

import ml_dtypes
import numpy as np
import pytest

from inplace_abn import checkpoint, optim
from inplace_abn.layers import (
    ABN,
    Activation,
    Conv2d,
    CrossEntropy,
    Dropout,
    GlobalAvgPool2d,
    InPlaceABN,
    Linear,
    Recompute,
    Residual,
    Sequential,
)

ENDINGS = [".npz", ".safetensors"]
BIT_GENERATORS = [np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64]


@pytest.fixture(params=ENDINGS)
def path(request, tmp_path):
    if request.param == ".safetensors":
        pytest.importorskip("safetensors", reason="the library safetensors is not installed")
    return tmp_path / f"run{request.param}"


def network(seed, dtype=np.float32):
    """Return a network with all strategies, and dropout in two places; weights of `dtype`."""
    rng = np.random.default_rng(seed)

    def unit(strategy, **options):
        return Conv2d(4, 4, 3, padding=1, rng=rng, dtype=dtype), ABN(4, strategy=strategy, **options)

    return Sequential(
        Conv2d(1, 4, 3, padding=1, rng=rng, dtype=dtype),
        InPlaceABN(4, momentum=None),
        Residual(
            Sequential(*unit("standard"), Dropout(0.3, rng=seed), *unit("inplace", activation="identity")),
            activation=Activation(inplace=True),
        ),
        Recompute(*unit("checkpoint", activation="elu"), *unit("inplace_1")),
        *unit("checkpoint_xhat", activation="prelu"),
        GlobalAvgPool2d(),
        Dropout(0.5, rng=seed + 1),
        Linear(4, 3, rng=rng, dtype=dtype),
    )


class Run:
    """A network, Adam, a cosine schedule, and a generator of the batches."""

    def __init__(self, seed, dtype=np.float32):
        self.network, self.loss, self.dtype = network(seed, dtype), CrossEntropy(), dtype
        self.optimizer = optim.Adam(optim.decay_groups(self.network, 0.01), lr=0.01)
        self.schedule = optim.CosineSchedule(self.optimizer, 8, warmup=2)
        self.rng = np.random.default_rng(seed)

    @property
    def parts(self):
        return {name: getattr(self, name) for name in ("network", "optimizer", "schedule", "rng")}

    def train(self, steps):
        losses = []
        for _ in range(steps):
            x = self.rng.standard_normal((6, 1, 8, 8), np.float32).astype(self.dtype)
            losses.append(self.loss(self.network(x), self.rng.integers(3, size=6)))
            self.network.backward(self.loss.backward(), overwrite=True)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.schedule.step()
        return losses

    def everything(self):
        """Return the bytes of all states of the run."""
        states = {name: getattr(self, name).state_dict() for name in ("network", "optimizer", "schedule")}
        found = {f"{part}.{name}": array for part in states for name, array in states[part].items()}
        return {name: array.tobytes() for name, array in found.items()}


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_resumed_run_is_bit_equal(dtype, path):
    whole, first, second = Run(0, dtype), Run(0, dtype), Run(7, dtype)
    losses = whole.train(6)
    assert first.train(3) == losses[:3]
    checkpoint.save(path, **first.parts, epoch=3)
    first.train(1)  # must not change the file
    others = checkpoint.load(path, **second.parts)
    assert others.keys() == {"epoch"}
    assert others["epoch"] == 3
    assert second.train(3) == losses[3:]
    assert second.everything() == whole.everything()


def test_load_returns_the_other_parts(path):
    run = Run(0)
    run.train(1)
    more = {"numbers": {"a": np.arange(3), "b.c": np.ones(2, ml_dtypes.bfloat16)}, "file": np.float32(7)}
    checkpoint.save(path, **run.parts, **more)
    found = checkpoint.load(path)
    assert found.keys() == {*run.parts, *more}
    other = network(3)
    other.load_state_dict(found["network"])
    for name, array in other.state_dict().items():
        assert (array == run.network.state_dict()[name]).all()
    assert found["numbers"]["b.c"].dtype == ml_dtypes.bfloat16
    assert found["numbers"]["a"].tolist() == [0, 1, 2]
    assert found["file"] == 7


@pytest.mark.parametrize("kind", BIT_GENERATORS)
def test_generators_of_every_kind(kind, tmp_path):
    one, two = np.random.Generator(kind(1)), np.random.Generator(kind(2))
    one.integers(10, size=3, dtype=np.int32)  # leaves a buffered half of a 64-bit number
    checkpoint.save(tmp_path / "rng.npz", rng=one)
    checkpoint.load(tmp_path / "rng.npz", rng=two)
    assert (
        one.integers(10, size=9, dtype=np.int32).tolist() == two.integers(10, size=9, dtype=np.int32).tolist()
    )


class Foreign:
    """An object of another library with a state_dict."""

    def __init__(self):
        self.state = {"a": np.zeros(2)}

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def test_objects_of_other_libraries(tmp_path):
    one, two = Foreign(), Foreign()
    one.state = {"a": np.ones(3)}
    checkpoint.save(tmp_path / "x.npz", part=one)
    checkpoint.load(tmp_path / "x.npz", part=two)
    assert two.state["a"].tolist() == [1, 1, 1]


def saved(tmp_path):
    run = Run(0)
    run.train(1)
    checkpoint.save(tmp_path / "run.npz", **run.parts, epoch=1)
    return tmp_path / "run.npz"


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (
            {"scheduler": Run(3).schedule},
            ValueError,
            "scheduler: the file has no such part; it has network, ",
        ),
        (
            {"network": Sequential(Linear(2, 2))},
            RuntimeError,
            r'Unexpected key\(s\) in state_dict: "1.weight"',
        ),
        ({"optimizer": optim.SGD(Linear(2, 2).parameters())}, ValueError, "state has missing="),
        (
            {"rng": np.random.Generator(np.random.Philox(0))},
            ValueError,
            "rng: expected the state of a Philox generator",
        ),
        ({"epoch": 5}, TypeError, "epoch must have load_state_dict, or be a Generator, got int"),
    ],
)
def test_all_states_are_checked_before_the_first_write(change, kind, words, tmp_path):
    path, run = saved(tmp_path), Run(5)
    run.train(2)
    before, position = run.everything(), run.rng.bit_generator.state
    with pytest.raises(kind, match=words):
        checkpoint.load(path, **run.parts | change)
    assert run.everything() == before
    assert run.rng.bit_generator.state == position


def test_a_network_with_other_generators_is_refused(tmp_path):
    checkpoint.save(tmp_path / "x.npz", network=Sequential(Linear(2, 2), Dropout()))
    with pytest.raises(
        ValueError, match=r"network: generators .* missing=\['2.rng'\], unexpected=\['1.rng'\]"
    ):
        checkpoint.load(tmp_path / "x.npz", network=Sequential(Linear(2, 2), Activation(), Dropout()))


@pytest.mark.parametrize(
    ("parts", "kind", "words"),
    [
        ({"generators": 1}, ValueError, "cannot be called 'generators'"),
        ({"a.b": 1}, ValueError, "cannot be called 'a.b'"),
        ({"a": object()}, TypeError, "a: an array of object cannot be written to a .npz file"),
        ({"a": Sequential(Activation())}, ValueError, "a: the state is empty"),
    ],
)
def test_parts_that_cannot_be_saved_are_refused(parts, kind, words, tmp_path):
    with pytest.raises(kind, match=words):
        checkpoint.save(tmp_path / "x.npz", **parts)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    checkpoint.save(path, a=1)

    def fails(*args, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", fails)
    with pytest.raises(OSError, match="no space left"):
        checkpoint.save(path, a=2)
    monkeypatch.undo()
    assert [file.name for file in tmp_path.iterdir()] == ["x.npz"]
    assert checkpoint.load(path)["a"] == 1


def test_other_files_are_refused(tmp_path, monkeypatch):
    for path in ("x.pth", "x"):
        with pytest.raises(ValueError, match=r"path must end in \.npz or \.safetensors, got .* numpy.savez"):
            checkpoint.read(path)
    np.savez(tmp_path / "x.npz", a=np.array([{}]))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        checkpoint.load(tmp_path / "x.npz")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r"pip install 'inplace-abn-numpy\[safetensors\]'"):
        checkpoint.save(tmp_path / "x.safetensors", a=1)


def test_safetensors_files_cannot_hold_text(tmp_path):
    pytest.importorskip("safetensors", reason="the library safetensors is not installed")
    checkpoint.save(tmp_path / "x.npz", a="text")
    assert checkpoint.load(tmp_path / "x.npz")["a"] == "text"
    with pytest.raises(TypeError, match=r"a: an array of <U4 cannot be written to a \.safetensors file"):
        checkpoint.save(tmp_path / "x.safetensors", a="text")


@pytest.mark.parametrize("name", ["run", "weights"])
def test_docstring_examples(name):
    assert doctest.testmod(importlib.import_module(f"inplace_abn.checkpoint.{name}")).failed == 0
