"""Networks that are built from the description in a checkpoint."""

import json

import exported
import numpy as np
import pytest

from inplace_abn import checkpoint, layers
from inplace_abn.checkpoint.architecture import description_of, network_from
from inplace_abn.layers import ABN, Conv2d, InPlaceABN, Layer, Sequential


def with_everything():
    """A network with each kind of attribute, shared layers and shared parameters."""
    shared = Conv2d(3, 3, (3, 1), padding="same", rng=0)
    last = Conv2d(3, 3, (3, 1), padding=(1, 0), rng=1)
    last.weight = shared.weight
    return Sequential(
        shared,
        InPlaceABN(3, activation="prelu", num_slopes=3, momentum=None),
        shared,
        ABN(3, affine=False, track_running_stats=False, strategy="checkpoint"),
        last,
        layers.Dropout(0.25, rng=7),
        layers.ModuleDict({"a": layers.GroupNorm(3, 3)})["a"],
        layers.Upsample(scale_factor=(2, 1.5)),
        layers.Concat(layers.Identity(), layers.MaxPool2d(3, 1, 1)),
        layers.Flatten(),
        layers.Linear(864, 2, dtype=np.float16),
    )


@pytest.mark.parametrize("name", exported.NETWORKS)
def test_networks(name, tmp_path):
    net, shape = exported.network(name)
    net.eval()
    checkpoint.save(tmp_path / "net.npz", network=net, epoch=3)
    made = checkpoint.load_network(tmp_path / "net.npz")
    x = exported.samples(shape)
    assert repr(made) == repr(net)
    assert np.array_equal(exported.evaluated(made, x), exported.evaluated(net, x))
    assert checkpoint.load(tmp_path / "net.npz", network=net) == {"epoch": 3}


def test_settings_shared_layers_and_generators(tmp_path):
    net = with_everything()
    net[0].requires_grad_(False)
    net[5](np.ones((2, 3), np.float32))  # advances the generator
    checkpoint.save(tmp_path / "net.npz", network=net)
    made = checkpoint.load_network(tmp_path / "net.npz")
    assert repr(made) == repr(net)
    assert made[0] is made[2]
    assert made[0].weight is made[4].weight
    assert not made[0].weight.requires_grad
    assert made[1].momentum is None
    assert made[-1].weight.data.dtype == np.float16
    x = np.random.default_rng(0).normal(size=(2, 3, 6, 8)).astype(np.float16)
    for layer in (net, made):
        layer[0].weight.data = layer[0].weight.data.astype(np.float32)
    assert np.array_equal(made(x.copy()), net(x.copy()))  # in training, with the same random numbers


def test_safetensors(tmp_path):
    pytest.importorskip("safetensors")
    net, _ = exported.network("resnet")
    checkpoint.save(tmp_path / "net.safetensors", network=net)
    assert repr(checkpoint.load_network(tmp_path / "net.safetensors")) == repr(net)


def test_networks_by_name(tmp_path):
    path = tmp_path / "nets.npz"
    checkpoint.save(path, student=Sequential(Conv2d(1, 2, 1)), teacher=Conv2d(3, 4, 1))
    assert checkpoint.load_network(path, "teacher").out_channels == 4
    with pytest.raises(ValueError, match=r"network: expected a description .* describes student, teacher"):
        checkpoint.load_network(path)
    with pytest.raises(ValueError, match="other: expected a description"):
        checkpoint.load_network(path, "other")


def test_synchronized_layers_get_the_default_group(tmp_path):
    net = layers.convert_sync(Sequential(Conv2d(3, 2, 1), InPlaceABN(2)))
    checkpoint.save(tmp_path / "net.npz", network=net)
    made = checkpoint.load_network(tmp_path / "net.npz")
    assert type(made[1]) is layers.InPlaceABNSync
    assert made[1].group is None


class Mine(Layer):
    def __init__(self):
        self.conv = Conv2d(3, 3, 1)

    def forward(self, ctx, x):
        return self.conv(x)


def test_layers_of_the_user_are_saved_without_a_description(tmp_path):
    net, path = Sequential(Mine()), tmp_path / "net.npz"
    with pytest.raises(TypeError, match=r"0 \(Mine\) is not a layer of this package"):
        description_of(net)
    checkpoint.save(path, network=net)
    with pytest.raises(ValueError, match="it describes no network"):
        checkpoint.load_network(path)
    checkpoint.load(path, network=Sequential(Mine()))


def test_attributes_that_cannot_be_described():
    net = Conv2d(3, 3, 1)
    net.note = {"a": 1}
    with pytest.raises(TypeError, match="note: dict cannot be described"):
        description_of(net)


@pytest.mark.parametrize(
    "content",
    [
        "[",
        "3",
        '{"layer":"object","attributes":{}}',
        '{"layer":"Conv2d"}',
        '{"layer":"Conv2d","attributes":{"__class__":"x"}}',
        '{"layer":"Conv2d","attributes":{"channel_axis":7}}',
        '{"layer":"Conv2d","attributes":{"weight":{"parameter":[[1],"object0"],"requires_grad":true}}}',
        '{"layer":"Sequential","attributes":{"0":{"same":5}}}',
        '{"eval":"1"}',
    ],
)
def test_damaged_descriptions(content):
    with pytest.raises(ValueError, match="the description of the network is damaged"):
        network_from(np.frombuffer(content.encode(), np.uint8))


def test_states_that_do_not_fit(tmp_path):
    net = Conv2d(3, 3, 1)
    checkpoint.save(tmp_path / "net.npz", network=net)
    arrays = checkpoint.read(tmp_path / "net.npz")
    found = json.loads(arrays["architecture.network"].tobytes())
    assert found["layer"] == "Conv2d"
    del arrays["network.weight"]
    np.savez(tmp_path / "net.npz", **arrays)
    with pytest.raises(RuntimeError, match=r"Missing key.*weight"):
        checkpoint.load_network(tmp_path / "net.npz")


def test_architecture_is_a_reserved_name(tmp_path):
    with pytest.raises(ValueError, match="the name is reserved"):
        checkpoint.save(tmp_path / "net.npz", architecture=np.ones(2))


@pytest.mark.parametrize("content", [b"no archive", b"", b"PK\x03\x04 torn", "array", "torn"])
def test_files_that_cannot_be_read_are_named(content, tmp_path):
    path = tmp_path / "net.npz"
    if content == "array":
        with open(path, "wb") as file:
            np.save(file, np.ones(3))
    elif content == "torn":
        checkpoint.save(path, network=Conv2d(3, 3, 1))
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"net\.npz: cannot be read as a \.npz file"):
        checkpoint.load_network(path)


def test_damaged_safetensors_files_are_named(tmp_path):
    pytest.importorskip("safetensors")
    (tmp_path / "net.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{damaged")
    with pytest.raises(ValueError, match=r"net\.safetensors: cannot be read as a \.safetensors file"):
        checkpoint.read(tmp_path / "net.safetensors")
