"""Modules of `inplace_abn.torch` on a GPU, or on a simulated one, against PyTorch's own operations."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
nn = torch.nn

from fused_nets import Net, fuse, gradient_bound, relative  # noqa: E402
from simulated import needs_compiler  # noqa: E402

from inplace_abn._cuda import guard  # noqa: E402
from inplace_abn.distributed.exchange import Exchange  # noqa: E402
from inplace_abn.torch import InPlaceABN, _dispatch, batch_norm, convert, recipes  # noqa: E402
from inplace_abn.torch._activations import activate, default_param  # noqa: E402
from inplace_abn.torch._hooks import active_hooks  # noqa: E402

pytestmark = [pytest.mark.torch, needs_compiler, pytest.mark.usefixtures("gpu")]


def networks(activation, device, dtype=torch.float64):
    """Return a network of PyTorch and a fused one with the same weights."""
    torch.manual_seed(0)
    net = Net(activation, dtype).to(device)
    for bn in (net.bn1, net.bn2):
        nn.init.uniform_(bn.weight, 0.5, 1.5)
        nn.init.normal_(bn.bias)
    return net, fuse(net)


def train(net, device, dtype=torch.float64):
    """Return the loss, the gradients and the running statistics of one step."""
    torch.manual_seed(1)
    x = torch.randn(2, 3, 6, 6, dtype=dtype).to(device)
    loss = net(x).pow(2).sum()
    loss.backward()
    return (
        loss.detach(),
        [p.grad for p in net.parameters()],
        [b for b in net.buffers() if b.is_floating_point()],
    )


def assert_close(found, wanted, bound):
    assert relative(found[0], wanted[0]) < bound
    for of, as_in in zip(found[1] + found[2], wanted[1] + wanted[2], strict=True):
        assert relative(of, as_in) < bound


@pytest.mark.parametrize("activation", ["identity", "leaky_relu", "relu", "hardswish", "hardtanh", "silu"])
def test_a_residual_network_has_the_same_gradients(gpu, activation):
    original, fused = networks(activation, gpu)
    # PyTorch's hardswish on a GPU multiplies by 1 / 6 as a float32, also for float64
    bound = 1e-7 if activation == "hardswish" and gpu.type == "cuda" else 1e-9
    assert_close(train(fused, gpu), train(original, gpu), bound)


@pytest.mark.slow  # a compilation each
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", batch_norm.ACTIVATIONS)
def test_every_activation(gpu, activation, training):
    torch.manual_seed(2)
    bn = nn.BatchNorm2d(4, dtype=torch.float64).to(gpu).train(training)
    x, residual = torch.randn(2, 3, 4, 5, 5, dtype=torch.float64).to(gpu)
    results = []
    for fused in (False, True):
        bn = copy.deepcopy(bn)
        slope = torch.full((4,), 0.3, dtype=torch.float64, device=gpu) if activation == "prelu" else None
        leaves = [t.clone().requires_grad_() for t in (x, residual) + (() if slope is None else (slope,))]
        if fused:
            z = batch_norm.fuse(bn)(
                leaves[0] * 2, activation=activation, residual=leaves[1] * 1,
                slope=None if slope is None else leaves[2],
            )  # fmt: skip
        else:
            z = activate(activation, bn(leaves[0] * 2) + leaves[1], default_param(activation), *leaves[2:])
        z.pow(2).sum().backward()
        results.append((z.detach(), [leaf.grad for leaf in leaves] + [bn.weight.grad, bn.bias.grad], []))
    assert_close(results[1], results[0], gradient_bound(activation))


def step(layer, x, *args):
    """Return z and the gradients of x and the parameters."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    z = layer(x * 1, *args)
    assert type(z.grad_fn).__name__ in ("InPlaceBackward", "KeepPreActivationBackward")
    result = z.detach().clone()
    z.backward(torch.cos(result))
    return result, [x.grad] + [p.grad for p in layer.parameters()]


def original_step(layer, x):
    """Return the same for ``leaky_relu(batch norm of x)``, in float64."""
    bn = nn.BatchNorm2d(layer.num_features).to(x.device).double()
    bn.load_state_dict(layer.state_dict(), strict=False)
    x = x.double().requires_grad_()
    z = nn.functional.leaky_relu(bn(x), 0.01)
    z.backward(torch.cos(z.detach()))
    return z.detach(), [x.grad, bn.weight.grad, bn.bias.grad]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["first", "last", "misaligned"])
def test_layouts_and_types(gpu, dtype, layout):
    torch.manual_seed(3)
    layer = InPlaceABN(8).to(gpu)
    x = torch.randn(3, 8, 6, 5).to(gpu, dtype)
    if layout == "last":
        x = x.to(memory_format=torch.channels_last)
    z, gradients = step(layer, x)
    if layout == "misaligned":
        memory = torch.empty(x.numel() + 1, device=gpu, dtype=dtype)[1:].detach()
        memory.copy_(x.reshape(-1))
        other = torch.empty(0, device=gpu, dtype=dtype).set_(memory.untyped_storage(), 1, x.shape)
        assert other.data_ptr() % 16
        with torch.no_grad():
            assert torch.equal(copy.deepcopy(layer)(other), z)
        assert torch.equal(other, z)  # overwritten
    wanted, wanted_gradients = original_step(layer, x)
    bound = 2e-6 if dtype is torch.float32 else 2e-2
    assert_close((z, gradients, []), (wanted, wanted_gradients, []), bound)


def test_without_a_graph_every_activation_is_written_over_x(gpu):
    x = torch.randn(2, 4, 5, 5, device=gpu)
    layer = InPlaceABN(4, activation="silu").to(gpu)
    wanted = nn.functional.silu(nn.BatchNorm2d(4).to(gpu)(x))
    with torch.no_grad():
        z = layer(x)
    assert z is x
    torch.testing.assert_close(z, wanted)


def test_one_slope_for_all_channels(gpu):
    layer = InPlaceABN(4, activation="prelu", activation_param=0.2, num_slopes=1).to(gpu)
    x = torch.randn(2, 4, 5, 5, device=gpu)
    z, (*_, dslope) = step(layer, x)
    y = torch.where(z < 0, z / 0.2, z)
    assert dslope.shape == (1,)
    torch.testing.assert_close(dslope, (torch.cos(z) * y.clamp(max=0)).sum().view(1), rtol=1e-4, atol=1e-5)


def test_zero_weights_are_exact_and_loading_counts_them_again(gpu):
    layer = InPlaceABN(8).to(gpu)
    x = torch.randn(3, 8, 6, 5, device=gpu)
    step(layer, x)
    weight = layer.state_dict()["weight"].clone()
    weight[2:5] = 0
    bias = torch.linspace(-1, 1, 8)  # not 0, where PyTorch takes the other one-sided derivative
    layer.load_state_dict(layer.state_dict() | {"weight": weight, "bias": bias})
    layer.zero_grad()
    z, gradients = step(layer, x)
    wanted, wanted_gradients = original_step(layer, x)
    assert_close((z, gradients, []), (wanted, wanted_gradients, []), 2e-6)
    assert gradients[1][2:5].abs().min() > 0


def test_guards_end_with_their_modules(gpu):
    before = len(guard._guards)
    layer = InPlaceABN(8).to(gpu)
    step(layer, torch.randn(3, 8, 6, 5, device=gpu))
    assert len(guard._guards) == before + 1
    del layer
    assert len(guard._guards) == before


def test_autocast_of_a_converted_model(gpu):
    torch.manual_seed(4)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
    ).to(gpu)  # fmt: skip
    x = torch.randn(4, 3, 9, 9, device=gpu)
    results = []
    for model in (copy.deepcopy(net), convert(copy.deepcopy(net))):
        with torch.autocast(gpu.type, torch.bfloat16):
            z = model(x)
        z.float().pow(2).sum().backward()
        assert z.dtype is torch.bfloat16
        results.append((z.detach(), [p.grad for p in model.parameters()], []))
    assert_close(results[1], results[0], 0.05)


class TwoProcesses:
    """A group of this process and of another one with the batch x, for batch norm alone."""

    size, rank = 2, 0

    def __init__(self, x, dz, mean, var):
        n = x.numel() // x.size(1)
        own, own_var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        xhat = (x - mean.view(-1, 1, 1)) / (var.view(-1, 1, 1) + 1e-5).sqrt()
        count = torch.tensor([float(n)])
        sums = dz.sum((0, 2, 3)), (dz * xhat).sum((0, 2, 3)), torch.zeros(1)
        self.rows = [torch.cat([own, own_var, count]).numpy(), torch.cat(sums).numpy()]

    def all_gather(self, values):
        other = values.copy()
        if len(values) == 1 + len(self.rows[0]):
            other[1:] = self.rows.pop(0)
        return np.stack([values, other])


@pytest.mark.parametrize("images", [3, 0])
def test_two_processes_normalize_as_one(gpu, images):
    torch.manual_seed(5)
    x, dz = torch.randn(2, 5, 4, 5, 5, dtype=torch.float64)
    whole = x.clone().requires_grad_()
    bn = nn.BatchNorm2d(4, affine=False, dtype=torch.float64)
    wanted = bn(whole)
    wanted.backward(dz)
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    group = TwoProcesses(x[images:], dz[images:], mean, var)
    layer = InPlaceABN(4, activation="identity", dtype=torch.float64).to(gpu)
    norm = layer._normalization()._replace(exchange=Exchange(group))
    own = x[:images].to(gpu).requires_grad_()
    z = _dispatch.batch_norm(own * 1, layer.weight, layer.bias, None, None, norm, overwrite=True)
    result = z.detach().clone()
    z.backward(dz[:images].to(gpu))
    assert not group.rows
    torch.testing.assert_close(result, wanted[:images].detach().to(gpu))
    torch.testing.assert_close(own.grad, whole.grad[:images].to(gpu))
    torch.testing.assert_close(layer.bias.grad, dz[:images].sum((0, 2, 3)).to(gpu))
    torch.testing.assert_close(layer.weight.grad, (dz * wanted.detach())[:images].sum((0, 2, 3)).to(gpu))
    torch.testing.assert_close(layer.running_mean, bn.running_mean.to(gpu))
    torch.testing.assert_close(layer.running_var, bn.running_var.to(gpu))


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("activation", ["leaky_relu", "relu", "hardtanh"])
def test_training_counts_its_batches(gpu, momentum, activation):
    param = (-1.0, 1.0) if activation == "hardtanh" else 0.01
    layer = InPlaceABN(3, momentum=momentum, activation=activation, activation_param=param).to(gpu)
    x = torch.randn(4, 3, 5, 5).to(gpu)
    for _ in range(3):
        layer(x.clone())
    with torch.no_grad():
        layer(x.clone())
    layer.eval()(x.clone())
    assert layer.num_batches_tracked.item() == 4


def test_the_count_of_batches_may_have_another_dtype(gpu):
    layer = InPlaceABN(3).to(gpu)
    layer.num_batches_tracked = layer.num_batches_tracked.to(torch.int32)
    layer(torch.randn(4, 3, 5, 5).to(gpu))
    assert layer.num_batches_tracked.item() == 1


def silu_layer():
    return InPlaceABN(4, activation="silu")


@pytest.mark.parametrize(
    ("make", "wanted"),
    [(lambda: nn.LeakyReLU(0.01), False), (nn.ReLU, True), (nn.SiLU, True), (silu_layer, True)],
)
def test_a_model_has_hooks_only_if_it_saves_recipes(gpu, make, wanted):
    packed = []

    class Saves(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            packed.append(active_hooks().is_ours)
            return x.clone()

        @staticmethod
        def backward(ctx, dz):
            return dz

    class Block(nn.Module):
        def forward(self, x):
            return Saves.apply(x)

    model = convert(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), make(), Block())).to(gpu)
    model(torch.randn(2, 3, 4, 4).to(gpu)).sum().backward()
    assert packed == [wanted]
    recipes.install(model)
    model(torch.randn(2, 3, 4, 4).to(gpu))
    assert packed == [wanted, True]
