"""What scripts and PyTorch's wrappers do with converted models: the original's results, or an error."""

import copy

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", minversion="2.4")
nn, F = torch.nn, torch.nn.functional

from fused_nets import relative  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402
from zoo import error, errors, loss, prepare, step  # noqa: E402

from inplace_abn.torch import convert, report  # noqa: E402


class Net(nn.Module):
    """A stem, a residual block and a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        self.conv, self.bn, self.relu = (
            nn.Conv2d(8, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
        )
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.relu(self.bn(self.conv(x)) + x))


@pytest.fixture
def models():
    """Return a model and a converted copy, in float64."""
    torch.manual_seed(0)
    model = prepare(Net())
    return model, convert(copy.deepcopy(model))


def images(number=3, size=12):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(number, 3, size, size, dtype=torch.float64, generator=generator)


def assert_equal_gradients(model, converted, call):
    """Assert that a backward through ``call(converted, x)`` has the gradients of the model."""
    expected = step(model, images())
    converted.zero_grad()
    result = call(converted, images().requires_grad_())
    loss(result).backward()
    assert error(result.detach(), expected[0][0]) < 1e-11
    for name, parameter in converted.named_parameters():
        difference = (parameter.grad - expected[1][name]).norm()
        assert difference < 1e-8 * (1 + expected[1][name].norm())


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(models, reentrant):
    assert_equal_gradients(*models, lambda model, x: checkpoint(model, x, use_reentrant=reentrant))


def test_save_on_cpu(models):
    def offloaded(model, x):
        with torch.autograd.graph.save_on_cpu():
            return model(x)

    assert_equal_gradients(*models, offloaded)


@pytest.mark.slow
def test_compile(models):
    torch.compiler.reset()
    assert_equal_gradients(
        *models, lambda model, x: torch.compile(model, backend="aot_eager", fullgraph=True)(x)
    )


def test_averaged_model(models):
    averages = []
    for model in models:
        average = torch.optim.swa_utils.AveragedModel(model)
        for scale in (2.0, 3.0):
            for parameter in model.parameters():
                parameter.data.mul_(scale)
            average.update_parameters(model)
        with torch.no_grad():
            averages.append(average.eval()(images()))
    assert relative(averages[1], averages[0]) < 1e-11


def test_shallow_copies_are_refused(models):
    _, converted = models
    replica = converted._replicate_for_data_parallel()  # as torch.nn.DataParallel does
    for each in (copy.copy(converted), replica):
        with pytest.raises(RuntimeError, match="shallow copy of a converted model"):
            each(images())


@pytest.mark.parametrize("number", [0, 1])
def test_batches_without_statistics(models, number):
    """An empty batch, and one value per channel, which both models refuse with the same message."""
    found = []
    for model in models:
        model.head = nn.Identity()
        model.train()
        x = images(number, 12 if number == 0 else 4).requires_grad_()
        try:
            z = model(x)
            z.sum().backward()
            found.append((z.shape, x.grad))
        except ValueError as refusal:
            found.append(str(refusal))
    assert str(found[1]) == str(found[0])


def test_functional_batch_norm_and_clamp():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.last = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
            self.register_buffer("mean", torch.zeros(4))
            self.register_buffer("var", torch.ones(4))

        def forward(self, x):
            x = torch.clamp(self.bn(self.conv(x)), 0, 6)
            return F.batch_norm(self.last(x), self.mean, self.var, training=self.training).clamp_min(0)

    torch.manual_seed(0)
    model = prepare(Functional())
    converted = convert(copy.deepcopy(model))
    found = errors(model, converted, images())
    assert max(found.values()) < 1e-8
    assert [(row.state, row.activation) for row in report(converted).rows] == [("fused", "identity")]
