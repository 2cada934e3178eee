"""`convert(activation=)`, errors of `convert`, `report` and `revert`, and the report's text."""

import copy

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", minversion="2.4")
nn, F = torch.nn, torch.nn.functional

from small_models import BOUNDS, Block, images, network  # noqa: E402
from zoo import errors, prepare  # noqa: E402

from inplace_abn.torch import convert, report, revert  # noqa: E402


def leaky(model):
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, (nn.ReLU, nn.ReLU6)):
                setattr(parent, name, nn.LeakyReLU(0.01))
    return model


def test_activation_replaces_modules():
    model = leaky(prepare(network()))
    converted = convert(prepare(network()), activation="leaky_relu")
    found = errors(model, converted, images())
    assert all(found[name] <= bound for name, bound in BOUNDS.items()), found
    assert [row.activation for row in report(converted).rows] == ["leaky_relu", "silu"]
    assert torch.allclose(revert(converted)(images()), model.eval()(images()), rtol=1e-12)


def test_activation_replaces_functions():
    class Model(Block):
        def forward(self, x):
            return F.relu(self.last(function(self.bn1(self.conv1(x)))))

    function = F.leaky_relu
    model = prepare(Model())
    function = F.relu
    converted = convert(copy.deepcopy(model), activation="leaky_relu")
    function = F.leaky_relu
    found = errors(model, converted, images())
    assert all(found[name] <= bound for name, bound in BOUNDS.items()), found
    function = F.relu
    got = revert(converted)(images())
    function = F.leaky_relu
    assert torch.allclose(got, model(images()), rtol=1e-12)


def test_replaced_functions_refuse_other_arguments():
    class Model(Block):
        def forward(self, x, twice=False):
            y = F.relu(self.bn1(self.conv1(x)))
            return self.last(y + y if twice else y)

    converted = convert(prepare(Model()), activation="leaky_relu")
    converted(images())
    with pytest.raises(RuntimeError, match="activations were replaced"):
        converted(images(), twice=True)


def test_refusals():
    with pytest.raises(TypeError, match="model must be"):
        convert("resnet50")
    with pytest.raises(TypeError, match="is a batch norm"):
        convert(nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match="activation must be None or one of leaky_relu"):
        convert(network(), activation="relu")
    with pytest.raises(ValueError, match="was not converted"):
        report(network())
    with pytest.raises(TypeError, match="model must be"):
        report(None)
    with pytest.raises(TypeError, match="model must be"):
        revert(None)


def test_report_as_text_and_table():
    class Odd(nn.Module):
        """A forward whose name would break a table."""

        def forward(self, x):
            return x

    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4), Odd())
    found = report(convert(model))
    assert repr(found).startswith("2 batch norms: 1 fused, 1 left\n\npath  kind ")
    table = found._repr_html_()
    assert table.count("<tr>") == 3
    assert "<td>BatchNorm2d</td><td>fused</td><td>relu</td>" in table
