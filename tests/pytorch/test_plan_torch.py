"""Plans of PyTorch models against the tensors that autograd saves, and against the peak on a GPU."""

import copy

import pytest

torch = pytest.importorskip("torch", minversion="2.4")
import zoo  # noqa: E402

import inplace_abn  # noqa: E402
import inplace_abn.torch as abn  # noqa: E402
from inplace_abn._plan.torch_step import STRATEGIES, TorchPlanner  # noqa: E402

pytestmark = pytest.mark.torch
SHAPE = (4, 3, 64, 64)


def small():
    """Return a network with a batch norm in front of each kind of consumer."""
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.SiLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.LeakyReLU(0.01, inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip


def kept_by(model):
    with zoo.kept_bytes(model) as kept:
        model.train()(torch.randn(SHAPE))
    return kept.total


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_kept_tensors_are_those_that_autograd_saves(strategy):
    model = small()
    step = TorchPlanner(model, strategy).step(SHAPE)
    assert step.kept == pytest.approx(kept_by(STRATEGIES[strategy](copy.deepcopy(model))), rel=0.05)
    assert step.kept == sum(row.nbytes for row in step.rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "densenet121", "mobilenet_v2", "efficientnet_b0"])
def test_kept_tensors_of_models_of_torchvision(name):
    model = zoo.vision(name)
    step = TorchPlanner(model, "inplace").step(SHAPE)
    assert step.kept == pytest.approx(kept_by(abn.convert(copy.deepcopy(model))), rel=0.05)


def test_a_plan_of_a_module():
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = inplace_abn.plan(model, SHAPE, budget="32MiB", optimizer="adam", strategies=(None, "inplace"))
    assert [one.strategy for one in found.strategies] == ["as it is", "inplace"]
    first, converted = found["as it is"], found["inplace"]
    assert converted.step.kept < 0.6 * first.step.kept
    assert converted.largest_batch > first.largest_batch
    assert first.step.parameters == sum(p.numel() * 4 for p in model.parameters()) == first.step.gradients
    assert first.step.state >= 2 * first.step.parameters
    assert found.advice[0].change == "inplace_abn.torch.convert(model)"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(type(parameter) is torch.nn.Parameter for parameter in model.parameters())


def test_a_model_without_memory_is_planned():
    with torch.device("meta"):
        meta = small()
    plans = [
        inplace_abn.plan(model, SHAPE, strategies=("inplace",), advice=False) for model in (meta, small())
    ]
    assert plans[0]["inplace"].step.peak == plans[1]["inplace"].step.peak


def test_layers_are_named():
    found = inplace_abn.plan(small(), SHAPE, strategies=(None,), advice=False)
    layers = found["as it is"].step.by_layer
    assert layers["0 (Conv2d)"] == 4 * 16 * 64 * 64 * 4


def test_a_module_that_needs_values_is_named_with_its_path():
    class Chosen(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), Chosen())
    with pytest.raises(TypeError, match=r"1 \(Chosen\): a plan has shapes alone"):
        inplace_abn.plan(model, SHAPE)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("strategy", [None, "inplace"])
def test_the_peak_is_that_of_a_gpu(strategy):
    model, shape = zoo.vision("resnet50"), (32, 3, 224, 224)
    step = TorchPlanner(model, strategy).step(shape)
    model = STRATEGIES[strategy](model).train().cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=False)
    x, labels = torch.randn(shape, device="cuda"), torch.zeros(shape[0], dtype=torch.int64, device="cuda")
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        torch.nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert step.peak == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.05)
