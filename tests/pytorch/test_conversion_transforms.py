"""Converted models under transformations of PyTorch, tracers, other dtypes, and with tiny weights."""

import copy
import pickle

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", minversion="2.4")
nn = torch.nn

from torch.autograd import forward_ad  # noqa: E402
from zoo import error, errors, kept_ratio, loss, prepare, step  # noqa: E402

from inplace_abn.torch import convert  # noqa: E402

JIT_IS_DEPRECATED = pytest.mark.filterwarnings("ignore:.*`torch.jit.*` is deprecated:DeprecationWarning")


class Net(nn.Module):
    """A stem with pooling, a residual block with a gate, and a head."""

    def __init__(self, activation=nn.ReLU):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), activation(), nn.MaxPool2d(2)
        )
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.gate, self.activation, self.head = nn.Linear(8, 8), activation(), nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        y = self.activation(self.bn1(self.conv1(x)))
        y = y * torch.sigmoid(self.gate(y.mean((2, 3))))[:, :, None, None]
        return self.head(self.activation(self.bn2(self.conv2(y)) + x).mean((2, 3)))


@pytest.fixture(params=["relu", "silu"])
def models(request):
    """Return a model and a converted copy, in float64."""
    torch.manual_seed(0)
    model = prepare(Net({"relu": nn.ReLU, "silu": nn.SiLU}[request.param]))
    return model, convert(copy.deepcopy(model))


def images(number=4):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(number, 3, 16, 16, dtype=torch.float64, generator=generator)


def both(models, function):
    """Return the tensors that a function of each model returns, in pairs."""
    return zip(*(function(model) for model in models), strict=True)


def test_func_grad_of_a_functional_call(models):
    def gradients(model):
        parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

        def total(parameters, buffers):
            return loss(torch.func.functional_call(model, (parameters, buffers), (images(),)))

        return torch.func.grad(total)(parameters, buffers).values()

    assert max(error(got, expected) for expected, got in both(models, gradients)) < 1e-8


def test_per_sample_gradients(models):
    def gradients(model):
        model.eval()
        parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

        def single(p, x):
            return torch.func.functional_call(model, p, (x[None],)).sum()

        return torch.func.vmap(torch.func.grad(single), (None, 0))(parameters, images()).values()

    assert max(error(got, expected) for expected, got in both(models, gradients)) < 1e-8


@JIT_IS_DEPRECATED
def test_forward_mode(models):
    def tangents(model):
        with forward_ad.dual_level():
            return [forward_ad.unpack_dual(model(forward_ad.make_dual(images(), images().flip(0)))).tangent]

    assert max(error(got, expected) for expected, got in both(models, tangents)) < 1e-11


def test_double_backward_is_refused(models):
    x = images().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(models[1](x)), x, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        gradient.sum().backward()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies(models, copied):
    assert max(errors(models[0], copied(models[1]), images()).values()) < 1e-8


@pytest.mark.parametrize("training", [True, False])
@JIT_IS_DEPRECATED
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_jit_trace(models, training):
    def traced(model):
        model.train(training)
        with torch.no_grad():
            return [torch.jit.trace(model, images(), check_trace=False)(images())]

    assert max(error(got, expected) for expected, got in both(models, traced)) < 1e-11


def test_meta_tensors(models):
    assert models[1].to("meta")(images().to("meta")).shape == (4, 5)


@pytest.mark.parametrize("how", ["model", "autocast"])
def test_bfloat16_is_as_exact_as_the_original(models, how):
    exact = step(models[0], images())[0][0]

    def run(model):
        if how == "model":
            return [model.bfloat16()(images().bfloat16())]
        with torch.autocast("cpu", torch.bfloat16):
            return [model.float()(images().float())]

    ((original, converted),) = both(models, run)
    assert converted.dtype is original.dtype
    assert error(converted, exact) <= 2 * error(original, exact)


def test_weights_of_zero(models):
    """The last batch norm of each branch begins with weight 0 where networks are initialised so."""
    for model in models:
        nn.init.zeros_(model.bn2.weight)
    assert max(errors(*models, images()).values()) < 1e-8
    assert kept_ratio(*models, images()) < 0.7
