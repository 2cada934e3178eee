"""`convert` on models whose forward cannot be traced, or not as a whole: branches, modes, randomness."""

import copy
import warnings

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", minversion="2.4")
nn, F = torch.nn, torch.nn.functional

from small_models import Block, check, images  # noqa: E402
from zoo import prepare  # noqa: E402

from inplace_abn.torch import convert, report  # noqa: E402


def test_module_that_cannot_be_traced_converts_its_children():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(4)
            self.body = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())

        def forward(self, x):
            return self.body(self.bn(x)) if x.shape[0] > 1 else x

    rows = check(Model())
    assert rows["body.1"].state == "fused"
    assert rows["bn"].why.startswith("Model cannot be traced")


def breaks_tracing(x):
    """Return x after a decision on its values."""
    return x if x.sum() > 0 else x * 1.0


def test_function_that_breaks_tracing_is_recorded_as_a_call():
    class Model(Block):
        def forward(self, x):
            return self.last(breaks_tracing(self.relu(self.bn1(self.conv1(x)))))

    assert check(Model())["bn1"].state == "fused"


class Doubled(torch.autograd.Function):
    """The identity, whose gradient is twice what it should be: a graph of its operations loses that."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, dz):
        return 2 * dz


def doubled(x):
    return Doubled.apply(x)


def test_autograd_functions_keep_their_backward():
    class Direct(Block):
        def forward(self, x):
            return self.last(Doubled.apply(self.relu(self.bn1(self.conv1(x)))))

    class InFunction(Block):
        def forward(self, x):
            return self.last(doubled(self.relu(self.bn1(self.conv1(x)))))

    assert "calls a torch.autograd.Function" in check(Direct())["bn1"].why
    assert check(InFunction())["bn1"].state == "fused"


def test_a_caught_error_does_not_hide_an_autograd_function():
    class Model(Block):
        def forward(self, x):
            y = self.relu(self.bn1(self.conv1(x)))
            try:
                y = Doubled.apply(y)
            except Exception:
                y = y.clone()
            return self.last(y)

    assert "calls a torch.autograd.Function" in check(Model())["bn1"].why


class Saving(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):
        ctx.save_for_backward(*values)
        return values[0].clone()


def swish(x):
    return x * torch.sigmoid(x)


def script(function):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(function)


@pytest.mark.parametrize(
    "call",
    [lambda x: Saving.apply([x]), script(swish), torch.func.grad(lambda x: x.sin().sum()), torch.as_tensor],
    ids=["list of tensors", "torch.jit.script", "torch.func.grad", "as_tensor"],
)
def test_compiled_code_does_not_take_traced_values_for_tensors(call):
    class Model(Block):
        def forward(self, x):
            return self.last(call(self.relu(self.bn1(self.conv1(x)))))

    assert {row.state for row in report(convert(Model())).rows} == {"left"}


def test_isinstance_takes_traced_values_for_tensors():
    class Model(Block):
        def forward(self, x):
            values = x if isinstance(x, (list, tuple)) else [x]
            assert all(isinstance(value, torch.Tensor) for value in values)
            return self.last(self.relu(self.bn1(self.conv1(values[0]))))

    assert check(Model())["bn1"].state == "fused"


def test_a_forward_whose_arguments_are_all_optional():
    class Model(Block):
        def forward(self, x=None, labels=None):
            return self.last(self.relu(self.bn1(self.conv1(x))))

    assert check(Model())["bn1"].state == "fused"


def test_a_scripted_child_stays_a_call():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), script(nn.Sigmoid()))
    assert report(convert(model)).rows[0].state == "fused"


def test_graphs_that_differ_by_mode():
    class Model(Block):
        def forward(self, x):
            y = self.relu(self.bn1(self.conv1(x)))
            if self.training:
                return self.last(y), y
            return self.last(y)

    check(Model())


def test_mixed_modes_run_the_original():
    class Child(Block):
        def forward(self, x):
            y = self.bn1(self.conv1(x))
            return y * 2 if self.training else y

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.child, self.act, self.last = Child(), nn.ReLU(), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.last(self.act(self.child(x)))

    model = prepare(Model())
    converted = convert(copy.deepcopy(model))
    for each in (model, converted):
        each.child.eval()
    assert torch.allclose(converted(images()), model(images()), rtol=1e-12)


def test_optional_arguments():
    class Child(Block):
        def forward(self, x, shortcut=None):
            y = self.bn1(self.conv1(x))
            return F.relu(y if shortcut is None else y + shortcut)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.child, self.last = Child(), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.last(self.child(self.child(x), shortcut=x))

    check(Model())


def test_lists_of_tensors():
    class Child(Block):
        def forward(self, inputs):
            if isinstance(inputs, torch.Tensor):
                inputs = [inputs]
            return F.relu(self.bn1(self.conv1(sum(inputs))))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.child, self.last = Child(), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            y = self.child(x)
            return self.last(self.child([x, y, self.child([x, y])]))

    check(Model())


def test_contexts_are_not_lost():
    class Model(Block):
        def forward(self, x):
            with torch.no_grad():
                y = self.conv1(x)
            return self.last(F.relu(self.bn1(y)))

    assert "gradient mode" in check(Model())["bn1"].why


def test_random_decisions_are_not_fixed():
    class Model(Block):
        def forward(self, x):
            if torch.rand(()) < 0.5:
                x = x + 1
            return self.last(F.relu(self.bn1(self.conv1(x))))

    assert "random" in check(Model())["bn1"].why


def test_attributes_are_still_set():
    class Model(Block):
        def forward(self, x):
            self.features = F.relu(self.bn1(self.conv1(x)))
            return self.last(self.features)

    assert "attribute features" in check(Model())["bn1"].why
