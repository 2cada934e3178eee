"""After `revert`: export, folding and quantization as of the original model."""

import copy
import io
import warnings

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", minversion="2.4")

import zoo  # noqa: E402

from inplace_abn.torch import convert, revert  # noqa: E402


@pytest.fixture(scope="module")
def reverted():
    """Return ResNet-18 in eval mode after conversion, one step of training and `revert`."""
    torch.manual_seed(0)
    model = convert(zoo.prepare(zoo.vision("resnet18"), torch.float32))
    zoo.step(model, pictures(4))
    return revert(model).eval()


def pictures(number=2):
    return torch.randn(number, 3, 64, 64, generator=torch.Generator().manual_seed(4))


def expected_of(model):
    with torch.no_grad():
        return model(pictures())


def test_torch_export(reverted):
    program = torch.export.export(reverted, (pictures(),))
    assert torch.allclose(program.module()(pictures()), expected_of(reverted), rtol=1e-4, atol=1e-5)


def test_onnx(reverted, tmp_path):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about its own parts
        torch.onnx.export(reverted, (pictures(),), path, dynamo=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: pictures().numpy()})
    assert torch.allclose(torch.from_numpy(got), expected_of(reverted), rtol=1e-3, atol=1e-4)


def test_folding(reverted):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from torch.fx.experimental.optimization import fuse

        folded = fuse(copy.deepcopy(reverted))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    assert torch.allclose(expected_of(folded), expected_of(reverted), rtol=1e-3, atol=1e-4)


def test_script(reverted):
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(reverted), file)
        file.seek(0)
        loaded = torch.jit.load(file)
    assert torch.allclose(expected_of(loaded), expected_of(reverted), rtol=1e-4, atol=1e-5)


def test_modules_for_quantization(reverted):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        fused = torch.ao.quantization.fuse_modules(copy.deepcopy(reverted), [["conv1", "bn1", "relu"]])
    assert type(fused.conv1).__name__ == "ConvReLU2d"
    assert torch.allclose(expected_of(fused), expected_of(reverted), rtol=1e-3, atol=1e-4)


def test_weights_load_into_the_original(reverted):
    model = zoo.vision("resnet18")
    model.load_state_dict(reverted.state_dict())
    assert torch.equal(expected_of(model.eval()), expected_of(reverted))
