"""`convert` overwrites and keeps only memory that nothing else needs."""

import copy

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", minversion="2.4")
nn, F = torch.nn, torch.nn.functional

from small_models import Block, chain, check, images  # noqa: E402
from zoo import prepare  # noqa: E402

from inplace_abn.torch import convert  # noqa: E402


def test_input_used_elsewhere_is_copied():
    class Model(Block):
        def forward(self, x):
            x = self.conv1(x)
            return self.last(F.relu(self.bn1(x))) + x

    row = check(Model())["bn1"]
    assert (row.state, row.why) == ("copied", "its input is used elsewhere too")


def test_input_that_another_operation_keeps_is_copied():
    class Model(Block):
        def forward(self, x):
            return self.last(F.silu(self.bn1(torch.sigmoid(self.conv1(x)))))

    row = check(Model())["bn1"]
    assert row.state == "copied"
    assert "sigmoid" in row.why


def test_input_from_the_caller_is_copied():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 4, 1))
    assert check(model)["0"].why == "its input comes from the caller"
    x = images()
    before = x.clone()
    convert(prepare(model))(x)
    assert torch.equal(x, before)


def test_concatenation_is_overwritten():
    class Model(Block):
        def forward(self, x):
            both = torch.cat([self.conv1(x), self.conv2(x)], 2)
            return self.last(F.relu(self.bn1(both)))

    assert check(Model())["bn1"].state == "fused"


def test_result_changed_in_place_is_left():
    class Model(Block):
        def forward(self, x):
            y = self.bn1(self.conv1(x))
            z = y.mean((2, 3), keepdim=True)
            y += 1
            return self.last(y) + z

    row = check(Model())["bn1"]
    assert (row.state, row.why) == ("left", "its result is changed in place by iadd")


def test_result_changed_in_place_through_a_view_is_left():
    class Model(Block):
        def forward(self, x):
            y = F.silu(self.bn1(self.conv1(x)))
            y[:, :1].mul_(2.0)
            return self.last(y)

    assert check(Model())["bn1"].activation == "identity"


def test_residual_changed_in_place_is_not_kept():
    class Model(Block):
        def forward(self, x):
            x = x * 1
            y = self.bn1(self.conv1(x * 1)) + x
            x.add_(1)
            return self.last(y) + x

    assert check(Model())["bn1"].activation == "identity"


def test_sum_in_place_over_the_callers_memory():
    class Model(Block):
        def forward(self, x):
            x += self.bn1(self.conv1(x * 1))
            return self.last(x)

    model = prepare(Model())
    converted = convert(copy.deepcopy(model))
    inputs = images(), images()
    with torch.no_grad():
        expected, got = model(inputs[0]), converted(inputs[1])
    assert torch.allclose(got, expected, rtol=1e-12)
    assert torch.allclose(inputs[1], inputs[0], rtol=1e-12)


def test_sum_in_place_behind_a_module_that_returns_its_input():
    class Drop(nn.Module):
        def forward(self, x):
            return x

    class Model(Block):
        def __init__(self):
            super().__init__()
            self.drop = Drop()

        def forward(self, x):
            out = self.drop(self.bn1(self.conv1(x)))
            out += x
            return self.last(out)

    assert check(Model())["bn1"].state == "fused"


def test_bare_result_for_code_that_is_not_traced_is_left():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

        def forward(self, x):
            if x.sum() == 0:
                return x
            out = self.body(x)
            out += x
            return out

    row = check(Model())["body.1"]
    assert row.state == "left"
    assert "not traced" in row.why


def test_squeeze_excite():
    class SqueezeExcite(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))

    model = chain(nn.SiLU(), SqueezeExcite())
    check(model)
    assert "multiply" in next(iter(convert(model).forward.variants.values()))[True][0].source


def test_pooling_keeps_no_indices():
    model = chain(nn.ReLU(), nn.MaxPool2d(2))
    check(model)
    assert "max_pool2d" in next(iter(convert(model).forward.variants.values()))[True][0].source
