"""Batch norms after `fuse`: the values and gradients of PyTorch's own operations, in float64."""

import copy
import io

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", reason="PyTorch is not installed")
nn = torch.nn

from fused_nets import OUTPUT, gradient_bound, relative  # noqa: E402

from inplace_abn.torch import batch_norm  # noqa: E402
from inplace_abn.torch._activations import activate, default_param  # noqa: E402


def inputs(layout, residual, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, r = torch.randn(2, 4, 5, 6, 6, dtype=torch.float64, generator=generator)
    if layout == "channels_last":
        x, r = x.to(memory_format=torch.channels_last), r.to(memory_format=torch.channels_last)
    return x.requires_grad_(), r.requires_grad_() if residual else None


def module(training=True, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    bn = nn.BatchNorm2d(5).to(dtype).train(training)
    for tensor in (bn.weight.data, bn.bias.data, bn.running_mean):
        tensor.copy_(torch.randn(5, generator=generator))
    bn.running_var.copy_(torch.rand(5, generator=generator) + 0.5)
    return bn


def step(call, bn, layout, residual, slope):
    """Return z, the gradients and the running statistics of ``call(bn, 2 * x, residual, slope)``."""
    x, r = inputs(layout, residual)
    slope = torch.full((5,), 0.3, dtype=torch.float64).requires_grad_() if slope else None
    z = call(bn, 2 * x, r, slope)
    result = z.detach().clone()
    torch.manual_seed(2)
    conv = nn.Conv2d(5, 4, 3, dtype=torch.float64)
    conv(z).pow(2).sum().backward()
    leaves = [leaf for leaf in (x, r, slope, bn.weight, bn.bias, conv.weight) if leaf is not None]
    return result, [leaf.grad for leaf in leaves], [bn.running_mean, bn.running_var]


@pytest.mark.parametrize("copy_first", [False, True])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("activation", batch_norm.ACTIVATIONS)
def test_the_values_and_gradients_are_those_of_pytorch(activation, layout, residual, training, copy_first):
    def original(bn, x, r, slope):
        y = bn(x) if r is None else bn(x) + r
        return activate(activation, y, default_param(activation), slope)

    def fused(bn, x, r, slope):
        fused = batch_norm.fuse(bn)
        return fused(x, activation=activation, residual=r, slope=slope, copy_first=copy_first)

    slope = activation == "prelu"
    z, gradients, statistics = step(original, module(training), layout, residual, slope)
    found, found_gradients, found_statistics = step(fused, module(training), layout, residual, slope)
    assert relative(found, z) < OUTPUT
    assert max(map(relative, found_gradients, gradients)) < gradient_bound(activation)
    assert max(map(relative, found_statistics, statistics)) < OUTPUT


@pytest.mark.parametrize("activation", ["leaky_relu", "relu"])
def test_the_input_is_overwritten_unless_told_not_to(activation):
    bn = batch_norm.fuse(module())
    x, _ = inputs("channels_first", False)
    for copy_first in (False, True):
        y = x * 1
        bn(y, activation=activation, copy_first=copy_first)
        assert torch.equal(x, y) is copy_first


def test_the_call_without_keywords_is_that_of_the_class():
    bn, (x, _) = module(), inputs("channels_first", False)
    expected = bn(x)
    bn.reset_running_stats()
    fused = batch_norm.fuse(copy.deepcopy(bn))
    y = x * 1
    assert torch.equal(fused(y), expected)
    assert torch.equal(y, x)


def test_fuse_changes_the_class_of_the_object_and_unfuse_restores_it():
    bn = module()
    keys = list(bn.state_dict())
    assert batch_norm.fuse(bn, "stem.bn") is bn
    assert batch_norm.is_fused(bn)
    assert isinstance(bn, nn.BatchNorm2d)
    assert list(bn.state_dict()) == keys
    assert batch_norm.unfuse(bn) is bn
    assert type(bn) is nn.BatchNorm2d


@pytest.mark.parametrize("duplicate", ["deepcopy", "pickle"])
def test_a_fused_module_is_copied_and_pickled(duplicate):
    bn = batch_norm.fuse(module(), "stem.bn")
    if duplicate == "deepcopy":
        found = copy.deepcopy(bn)
    else:
        file = io.BytesIO()
        torch.save(bn, file)
        file.seek(0)
        found = torch.load(file, weights_only=False)
    x, _ = inputs("channels_first", False)
    expected = bn(x * 1, activation="relu")
    assert torch.equal(found(x * 1, activation="relu"), expected)
    assert found.weight.data_ptr() != bn.weight.data_ptr()


@pytest.mark.parametrize("wrong", [nn.SyncBatchNorm(3), nn.InstanceNorm2d(3), nn.Linear(2, 3)])
def test_fuse_refuses_other_modules(wrong):
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.BatchNorm1d, 2d or 3d, got"):
        batch_norm.fuse(wrong)
