"""Networks of torchvision with random weights: the same outputs after `load_weights`."""

import numpy as np
import pytest

from inplace_abn import models
from inplace_abn.checkpoint import load_weights
from inplace_abn.layers import no_grad

pytestmark = pytest.mark.torch
pytest.importorskip("torch")

import torch  # noqa: E402
from without_operators import import_torchvision  # noqa: E402

torchvision = import_torchvision()

STYLE = {"activation": "relu", "strategy": "standard"}
#: Name in torchvision -> the same network here, its side length of images.
NETWORKS = {
    "resnet34": (lambda: models.resnet34(**STYLE), 64),
    "resnet50": (lambda: models.resnet50(**STYLE), 64),
    "resnext50_32x4d": (lambda: models.resnet(3, 1000, groups=32, group_width=4, **STYLE), 64),
    "densenet121": (lambda: models.densenet(**STYLE), 64),
    "mobilenet_v2": (lambda: models.mobilenet_v2(3, 1000, **{**STYLE, "activation": "relu6"}), 64),
    "deeplabv3_resnet50": (lambda: models.deeplabv3(dropout=0.0, **STYLE), 64),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_equal_those_of_torchvision(name):
    make, side = NETWORKS[name]
    torch.manual_seed(0)
    options = {"weights_backbone": None} if name.startswith("deeplab") else {}
    theirs = torchvision.models.get_model(name, weights=None, **options).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.1)
    net = make().eval()
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}
    load_weights(net, state, source="torchvision")
    x = torch.randn(2, 3, side, side)
    with torch.no_grad(), no_grad():
        want, got = theirs(x), net(x.numpy().copy())
    want = (want["out"] if isinstance(want, dict) else want).numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
