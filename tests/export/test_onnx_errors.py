"""The export to ONNX: layers without a rule, converters, and arguments that are refused."""

import exported
import numpy as np
import pytest

from inplace_abn import export, layers
from inplace_abn.layers import (
    Conv2d,
    Graph,
    InPlaceABN,
    Layer,
    Linear,
    Sequential,
)

onnx = pytest.importorskip("onnx")
from onnx_files import compare  # noqa: E402


class Negative(Layer):
    def forward(self, ctx, x):
        return -x


class Shifted(Conv2d):
    """A subclass with another forward: not the convolution that its base class is."""

    def forward(self, ctx, x):
        return super().forward(ctx, x) + 1


class Composed(Layer):
    def __init__(self):
        self.conv, self.norm = Conv2d(3, 3, 1, rng=0), InPlaceABN(3)

    def forward(self, ctx, x):
        return layers.mul(self.norm(self.conv(x)), x)


def test_layers_that_call_layers(path):
    compare(exported.trained(Sequential(Composed(), Composed())), (3, 4, 4), path)


class Named(Sequential):
    """A subclass with the forward of its base class."""


def test_unknown_layers_are_named_before_anything_is_written(path):
    net = Sequential({"body": Sequential(Negative(), Conv2d(3, 3, 1), Negative()), "last": Shifted(3, 2, 1)})
    with pytest.raises(TypeError) as error:
        export.to_onnx(net, path, (3, 4, 4))
    assert "body.0 (Negative), body.2 (Negative), last (Shifted)" in str(error.value)
    assert not list(path.parent.iterdir())
    with pytest.raises(TypeError, match=r"ONNX: network \(Negative\)"):
        export.to_onnx(Negative(), path, (3,))


def test_losses_are_not_exported(path):
    class Training(Graph):
        def __init__(self):
            self.conv, self.loss = Linear(3, 3), layers.MSELoss()

        def compute(self, x, y):
            return self.loss(self.conv(x), y)

    with pytest.raises(TypeError, match=r"loss \(MSELoss\)"):
        export.to_onnx(Training(), path, [(3,), (3,)])


def test_converters(path):
    def negative(graph, path, layer, x):
        return graph.node("Neg", path, x)

    def shifted(graph, path, layer, x):
        weights = [graph.weight(f"{path}.{name}", array) for name, array in layer.state_dict().items()]
        return graph.node("Add", path, graph.node("Conv", path, x, *weights), graph.number(1.0))

    net = Named(Negative(), Shifted(3, 2, 1), InPlaceABN(2))
    compare(net, (3, 4, 4), path, converters={Negative: negative, Shifted: shifted})


def test_an_error_leaves_the_old_file(path, monkeypatch):
    def refuse(*arguments, **options):
        raise ValueError("not valid")

    path.write_text("old")
    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    with pytest.raises(ValueError, match="not valid"):
        export.to_onnx(Linear(3, 3), path, (3,))
    monkeypatch.undo()
    monkeypatch.setattr("pathlib.Path.write_bytes", refuse)
    with pytest.raises(ValueError, match="not valid"):
        export.to_onnx(Linear(3, 3), path, (3,))
    assert [one.name for one in path.parent.iterdir()] == ["net.onnx"]
    assert path.read_text() == "old"


def test_bad_arguments(path):
    net = Linear(3, 3)
    for dtype in ("int8", "bfloat16", None, 3):
        with pytest.raises(ValueError, match="dtype must be one of 'float32', 'float16', 'float64'"):
            export.to_onnx(net, path, (3,), dtype)
    with pytest.raises(FileNotFoundError):
        export.to_onnx(net, path / "folder" / "net.onnx", (3,))
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (2, "must be a tuple of axes"),
        ((0,), "at least 1, got 0"),
        ((4,), "less than 4"),
        (("H",), "an integer"),
    ],
)
def test_free_axes_that_are_refused(axes, message, path):
    with pytest.raises((TypeError, ValueError), match=f"free_axes.*{message}"):
        export.to_onnx(Conv2d(3, 3, 1), path, (3, 4, 4), free_axes=axes)


def test_converters_that_are_refused(path):
    with pytest.raises(TypeError, match="converters must be a dict of types to functions"):
        export.to_onnx(Negative(), path, (3,), converters=[Negative])
    with pytest.raises(TypeError, match=r"that of network \(Negative\) must return the name"):
        export.to_onnx(Negative(), path, (3,), converters={Negative: lambda graph, path, layer, x: None})


def test_weights_beyond_the_range_of_float16(path):
    net = Linear(3, 3)
    net.weight.data[0] = 1e6
    with pytest.raises(ValueError, match="weight: values beyond the range of float16"):
        export.to_onnx(net, path, (3,), np.float16)
    net.weight.data[0] = np.inf
    export.to_onnx(net, path, (3,), np.float16)


def test_files_larger_than_the_format_allows(path, monkeypatch):
    monkeypatch.setattr("inplace_abn.export.onnx_file.LIMIT", 20)
    with pytest.raises(ValueError, match=r"the weights take .* GiB, and an ONNX file holds less than 2 GiB"):
        export.to_onnx(Linear(3, 3), path, (3,))
