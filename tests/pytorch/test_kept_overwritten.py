"""The gradient of x is written over what a normalization with a residual has kept, at its last use only."""

import copy

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", minversion="2.4")
nn = torch.nn

from inplace_abn.torch import _kernels, convert, ownership  # noqa: E402
from inplace_abn.torch._tensors import gradients_like  # noqa: E402

ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "hardtanh": nn.Hardtanh}


class Block(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.activation = activation()

    def forward(self, x):
        return self.activation(self.bn(self.conv(x)) + x)


class TwoHeads(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 1), Block(activation), Block(activation))
        self.first, self.second = nn.Conv2d(8, 2, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        z = self.body(x)
        return self.first(z), self.second(z)


@pytest.fixture(params=ACTIVATIONS)
def models(request):
    """A model and its conversion."""
    torch.manual_seed(0)
    model = TwoHeads(ACTIVATIONS[request.param]).double()
    return model, convert(copy.deepcopy(model))


@pytest.fixture
def overwritten(monkeypatch):
    """Whether each backward with a residual has overwritten what was kept."""
    found = []

    def recorded(kept, dz, residual, *flags):
        dx, dresidual = gradients_like(kept, dz, residual, *flags)
        if residual is not None:
            found.append(dx is kept)
        return dx, dresidual

    monkeypatch.setattr(_kernels, "gradients_like", recorded)
    return found


needs_torch = pytest.mark.skipif(
    not hasattr(torch._C._autograd, "_get_current_graph_task_keep_graph"),
    reason="this PyTorch does not tell whether a graph is retained",
)


def images():
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def loss(outputs):
    return sum(output.pow(2).sum() for output in outputs)


def assert_close(got, expected):
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-9 * other.abs().max().item())


@needs_torch
def test_a_step(models, overwritten):
    for model in models:
        loss(model(images())).backward()
    assert overwritten == [True, True]
    assert_close(*([p.grad for p in model.parameters()] for model in reversed(models)))


def test_a_retained_graph_can_be_used_again(models, overwritten):
    found = []
    for model in models:
        total = loss(model(images()))
        found.append([])
        for retain in (True, True, False):
            found[-1].append(torch.autograd.grad(total, list(model.parameters()), retain_graph=retain))
    assert overwritten[:4] == [False] * 4
    for got, expected in zip(found[1], found[0], strict=True):
        assert_close(got, expected)


def test_an_operation_that_has_not_run_can_run_later(models, overwritten):
    found = []
    for model in models:
        first, second = model(images())
        inner = torch.autograd.grad(first.sum(), list(model.body.parameters()))
        outer = torch.autograd.grad(second.pow(2).sum(), list(model.second.parameters()))
        found.append([*inner, *outer])
    assert overwritten[0] is False  # the second head still needs it
    assert_close(*reversed(found))


def test_small_tensors_are_not_counted(models, overwritten, monkeypatch):
    monkeypatch.setattr(ownership, "SMALL", images().numel() * 8)
    loss(models[1](images())).backward()
    assert overwritten == [False, False]
