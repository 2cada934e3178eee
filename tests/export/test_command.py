"""``python -m inplace_abn export``."""

import re

import exported
import numpy as np
import pytest

from inplace_abn import checkpoint, models
from inplace_abn.__main__ import main
from inplace_abn.layers import Layer, Linear, Sequential

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def outputs_of(path, x):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x})[0]


def operations(path):
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Save a network as net.npz in the current folder; return it and the shape of a sample."""
    monkeypatch.chdir(tmp_path)
    net, shape = exported.network("resnet")
    checkpoint.save("net.npz", network=net, epoch=3)
    return net, shape


def test_a_saved_network(saved, capsys):
    net, _ = saved
    assert main(["export", "net.npz", "-o", "net.onnx"]) == 0
    assert "Wrote net.onnx" in capsys.readouterr().out
    x = exported.samples((3, 224, 224), number=1)
    np.testing.assert_allclose(outputs_of("net.onnx", x), exported.evaluated(net, x), atol=1e-5)
    assert "BatchNormalization" not in operations("net.onnx")


def test_options(saved, capsys):
    net, _ = saved
    arguments = ["--input", "3x24x32", "--any-size", "--dtype", "float16", "--no-fold", "--part", "network"]
    arguments += ["--check"]
    assert main(["export", "net.npz", "-o", "net.onnx", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "takes float16 arrays of shape (N, 3, any, any)." in printed
    difference = float(re.search(r"the largest difference is (\S+) of the largest output", printed)[1])
    assert 0 < difference < 5e-3
    x = exported.samples((3, 40, 48), np.float16)
    exported.assert_near(outputs_of("net.onnx", x).astype(float), exported.evaluated(net, x), 5e-3)
    assert "BatchNormalization" in operations("net.onnx")


def test_files_without_a_description(saved):
    """Of a state_dict, or of a part of a checkpoint, into a network of `models`."""
    net = exported.trained(models.residual_network(1, 3, (4, 8), channel_axis=-1))
    np.savez("state.npz", **net.state_dict())
    options = ["--network", "residual_network", "--set", "in_channels=1", "num_classes=3", "widths=(4, 8)"]
    options += ["channel_axis=-1", "strategy=checkpoint", "--input", "12x16x1"]
    assert main(["export", "state.npz", "-o", "net.onnx", *options]) == 0
    x = exported.samples((12, 16, 1))
    exported.assert_near(outputs_of("net.onnx", x), exported.evaluated(net, x), 1e-5)


def test_networks_of_float64(tmp_path, capsys):
    """They are written in float32. onnxruntime cannot run convolutions of float64."""
    net, _ = exported.network("resnet", dtype=np.float64)
    path, arguments = tmp_path / "net.onnx", ["--input", "3x24x32", "--check"]
    checkpoint.save(tmp_path / "net.npz", network=net)
    assert main(["export", str(tmp_path / "net.npz"), "-o", str(path), *arguments]) == 0
    assert "takes float32" in capsys.readouterr().out
    x = exported.samples((3, 24, 32))
    exported.assert_near(outputs_of(path, x), exported.evaluated(net, x.astype(np.float64)), 1e-5)
    assert main(["export", str(tmp_path / "net.npz"), "-o", str(path), *arguments, "--dtype", "float64"]) == 1
    assert "onnxruntime cannot run" in capsys.readouterr().err


def test_networks_of_linear_layers(tmp_path):
    net = Sequential(Linear(4, 3))
    checkpoint.save(tmp_path / "net.npz", network=net)
    assert main(["export", str(tmp_path / "net.npz"), "-o", str(tmp_path / "net.onnx")]) == 0
    x = exported.samples((4,))
    exported.assert_near(outputs_of(tmp_path / "net.onnx", x), exported.evaluated(net, x), 1e-6)


class Own(Layer):
    def forward(self, ctx, x):
        return x * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.npz"], "none.npz"),
        (["other.npz"], "it describes no network"),
        (["state.npz"], "it describes no network"),
        (["net.npz", "--part", "teacher"], "teacher: expected a description of the network in the file"),
        (["net.npz", "--set", "num_classes=10"], "--set: expected --network"),
        (["net.npz", "--network", "resnet51"], "--network must be one of"),
        (["net.npz", "--network", "Style"], "--network must be one of"),
        (["net.npz", "--network", "resnet"], "missing 2 required positional arguments"),
        (["net.npz", "--network", "resnet34"], "Missing key(s) in state_dict"),
        (["net.npz", "--input", "1x32x32"], "stem.conv (Conv2d): weight of shape"),
        (["text.npz"], "text.npz"),
        (["text.txt"], "path must end in .npz or .safetensors"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors(saved, arguments, message, capsys, tmp_path):
    np.savez("state.npz", **saved[0].state_dict())
    checkpoint.save("other.npz", network=Sequential(Own(), Linear(3, 3)))
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "net.onnx").write_text("old")
    assert main(["export", *arguments, "-o", "net.onnx"]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("export: ")
    assert message in printed.err
    assert (tmp_path / "net.onnx").read_text() == "old"
    assert not list(tmp_path.glob(".*"))


def test_the_saved_file_is_not_overwritten(saved, capsys, tmp_path):
    before = (tmp_path / "net.npz").read_bytes()
    assert main(["export", "net.npz", "-o", "net.npz"]) == 1
    assert "-o: expected a name that ends in .onnx" in capsys.readouterr().err
    assert (tmp_path / "net.npz").read_bytes() == before


@pytest.mark.parametrize(
    "arguments", [["--input", "3x0x4"], ["--input", "big"], ["--set", "10"], ["--dtype", "int8"]]
)
def test_options_that_are_refused(saved, arguments, capsys):
    with pytest.raises(SystemExit):
        main(["export", "net.npz", "-o", "net.onnx", *arguments])
    assert "usage:" in capsys.readouterr().err
