"""Static quantization of folded networks by onnxruntime."""

import exported
import numpy as np
import pytest

from inplace_abn import export, layers, models, optim

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
quantization = pytest.importorskip("onnxruntime.quantization")


class Batches(quantization.CalibrationDataReader):
    def __init__(self, x):
        self.batches = iter(np.array_split(x, 4))

    def get_next(self):
        batch = next(self.batches, None)
        return None if batch is None else {"input": batch}


def quantized(net, shape, x, folder):
    """Fold, write and quantize a network; return the path of the result."""
    export.to_onnx(export.fold(net, shape), folder / "net.onnx", shape)
    quantization.quantize_static(folder / "net.onnx", folder / "int8.onnx", Batches(x), per_channel=True)
    return folder / "int8.onnx"


def outputs_of(path, x):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x})[0]


@pytest.mark.parametrize("name", ["postactivation", "unet", "mobilenet_v2", "densenet", "deeplabv3"])
def test_networks(name, tmp_path):
    net, shape = exported.network(name)
    x = exported.samples(shape, number=16)
    path = quantized(net, shape, x, tmp_path)
    got, want = outputs_of(path, x), exported.evaluated(net, x)
    assert np.corrcoef(got.ravel(), want.ravel())[0, 1] > 0.99
    weights = {array.name: array.data_type for array in onnx.load(path).graph.initializer}
    convolutions = [path for path, layer in net.named_layers() if isinstance(layer, layers.Conv2d)]
    for path in convolutions:
        assert weights[f"{path}.weight_quantized"] == onnx.TensorProto.INT8


@pytest.mark.slow
def test_accuracy_on_digits(tmp_path):
    """A trained classifier of digits loses at most 1 % of accuracy."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = (digits.images[:, None] / 16).astype(np.float32)
    train, test = slice(0, 1400), slice(1400, None)
    net = models.residual_network(1, 10, (8, 16), 1, block="postactivation", rng=0)
    loss, optimizer = layers.CrossEntropy(), optim.Adam(net.parameters(), lr=1e-2)
    rng = np.random.default_rng(0)
    for _ in range(4):
        for batch in np.array_split(rng.permutation(1400), 22):
            loss(net(x[batch]), digits.target[batch])
            net.backward(loss.backward())
            optimizer.step()
            optimizer.zero_grad()
    path = quantized(net, (1, 8, 8), x[train], tmp_path)
    scores = exported.evaluated(net, x[test]), outputs_of(path, x[test])
    before, after = (float((one.argmax(1) == digits.target[test]).mean()) for one in scores)
    assert before > 0.9
    assert after > before - 0.01, (before, after)
