"""Transformations, tracers and modes: results of PyTorch, or an error, and never a wrong result."""

import copy
import warnings

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", reason="PyTorch is not installed")
nn, F = torch.nn, torch.nn.functional

from fused_nets import GRADIENT, OUTPUT, assert_equal_steps, images, pair, relative  # noqa: E402
from torch.func import functional_call, grad, jvp, vmap  # noqa: E402
from zoo import kept_bytes  # noqa: E402

from inplace_abn.torch import InPlaceABN  # noqa: E402

#: PyTorch's own formulas of forward mode use it.
JIT_IS_DEPRECATED = pytest.mark.filterwarnings("ignore:.*`torch.jit.script` is deprecated:DeprecationWarning")


@pytest.fixture(params=["relu", "leaky_relu"])
def nets(request):
    """Return a network with batch norms of PyTorch and its fused copy."""
    return pair(request.param)


# ---- torch.func --------------------------------------------------------------------------------------------


def test_func_grad(nets):
    nets = [net.eval() for net in nets]  # in training, batch norms count their batches in place
    found, expected = (
        grad(lambda p, net=net: functional_call(net, p, (images(),)).pow(2).sum())(
            dict(net.named_parameters())
        )
        for net in nets[::-1]
    )
    assert max(relative(found[name], expected[name]) for name in expected) < GRADIENT


def test_functional_call(nets):
    net, fused = nets
    parameters = {name: 2 * p.detach() for name, p in net.named_parameters()}
    found, expected = (functional_call(n, parameters, (images(),)) for n in (fused, net))
    assert relative(found, expected) < OUTPUT


def test_vmap(nets):
    net, fused = (n.eval() for n in nets)
    x = torch.stack([images(), images() + 1])
    assert relative(vmap(fused)(x), vmap(net)(x)) < OUTPUT


@JIT_IS_DEPRECATED
def test_func_jvp(nets):
    net, fused = (n.eval() for n in nets)
    found, expected = (jvp(n, (images(),), (images() + 1,)) for n in (fused, net))
    assert max(map(relative, found, expected)) < OUTPUT


@JIT_IS_DEPRECATED
def test_forward_mode(nets):
    forward_ad = torch.autograd.forward_ad
    tangents = []
    for net in nets:
        with forward_ad.dual_level():
            z = net(forward_ad.make_dual(images(), images() + 1))
            tangents.append(forward_ad.unpack_dual(z).tangent)
    assert relative(*tangents) < OUTPUT


def test_func_vjp_of_a_module():
    layer = InPlaceABN(3, activation="relu").double().eval()
    original = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()).double().eval()
    x = images()
    found, expected = (torch.func.vjp(m, x)[1](x + 1)[0] for m in (layer, original))
    assert relative(found, expected) < GRADIENT


# ---- torch.compile, export and tracing ---------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile(nets, backend):
    torch.compiler.reset()
    net, fused = nets
    compiled = torch.compile(fused, backend=backend, fullgraph=True)
    assert_equal_steps(net, fused, images(), compiled)
    net.eval()
    fused.eval()
    with torch.no_grad():
        assert relative(compiled(images()), net(images())) < OUTPUT


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_compiled_networks_keep_one_tensor_per_normalization(activation):
    """Also with a channel of weight 0, whose data has a size that no compiler knows."""
    torch.compiler.reset()
    net, fused = pair(activation)
    for each in (net, fused):
        with torch.no_grad():
            each.bn1.weight[2] = 0
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    assert_equal_steps(net, fused, images(), compiled)
    totals = []
    for call in (fused, compiled):
        with kept_bytes(fused) as kept:
            call(images().requires_grad_())
        totals.append(kept.total)
    states = 2 * (1024 + 40 * 8)  # and pickled side data, a few hundred bytes
    assert totals[1] <= totals[0] + states + 1024


@pytest.mark.slow
def test_hooks_that_copy_what_a_compiled_network_saves(nets):
    def step_with_hooks():
        with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda saved: saved):
            z = compiled(images())
        z.sum().backward()

    torch.compiler.reset()
    fused = nets[1]
    compiled = torch.compile(fused, backend="aot_eager")
    step_with_hooks()
    with torch.no_grad():
        fused.bn1.weight[2] = 0
    with pytest.raises(RuntimeError, match="data of channels"):
        step_with_hooks()


@pytest.mark.slow
def test_compiled_transformations():
    torch.compiler.reset()
    layer, original = InPlaceABN(3, track_running_stats=False), nn.BatchNorm2d(3, track_running_stats=False)
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    expected = grad(lambda x: F.leaky_relu(original(x)).pow(3).sum())(x)
    found = torch.compile(grad(lambda x: layer(x).pow(3).sum()), backend="aot_eager")(x)
    assert relative(found, expected) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["identity", "prelu", "hardtanh"])
def test_compiled_layers(activation):
    """Residuals of other shapes, no parameters, channels last, shapes that change."""
    torch.compiler.reset()
    param = (-0.5, 0.5) if activation == "hardtanh" else 0.2
    layer = InPlaceABN(3, activation=activation, activation_param=param, affine=activation != "identity")
    layer.double()
    other = copy.deepcopy(layer)

    @torch.compile(backend="aot_eager", dynamic=True, fullgraph=True)
    def compiled(x, residual):
        return other(x * 1, residual)

    generator = torch.Generator().manual_seed(0)
    for size in (4, 5):
        x = torch.randn(2, 3, size, size, dtype=torch.float64, generator=generator)
        x = x.to(memory_format=torch.channels_last)
        for residual in (None, x.flip(0), x[:, :, :1, :1]):
            results = []
            for each, call in ((layer, lambda x, residual: layer(x * 1, residual)), (other, compiled)):
                y = x.clone().requires_grad_()
                z = call(y, residual)
                z.pow(2).sum().backward()
                assert z.stride() == x.stride()
                results.append([z.detach(), y.grad, *each.state_dict().values()])
            assert max(map(relative, *results)) < GRADIENT


def test_compiled_after_eager_steps_and_back(nets):
    torch.compiler.reset()
    net, fused = nets
    assert_equal_steps(net, fused, images())
    assert_equal_steps(net, fused, images(), torch.compile(fused, backend="aot_eager"))
    assert_equal_steps(net, fused, images())


def test_export(nets):
    net, fused = (n.eval() for n in nets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's own
        program = torch.export.export(fused, (images(),))
    assert relative(program.module()(images()), net(images())) < OUTPUT


def test_jit_trace(nets):
    net, fused = (n.eval() for n in nets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated by PyTorch
        traced = torch.jit.trace(fused, images())
    assert relative(traced(images() + 1), net(images() + 1)) < OUTPUT


def test_make_fx(nets):
    from torch.fx.experimental.proxy_tensor import make_fx

    net, fused = (n.eval() for n in nets)
    graph = make_fx(fused)(images())
    assert relative(graph(images() + 1), net(images() + 1)) < OUTPUT


# ---- devices, modes, subclasses ----------------------------------------------------------------------------


def test_meta_tensors(nets):
    fused = nets[1].to("meta")
    z = fused(torch.empty(4, 3, 8, 8, dtype=torch.float64, device="meta"))
    assert z.shape == (4, 4, 6, 6)
    z.sum().backward()


def test_fake_tensors(nets):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert nets[1](mode.from_tensor(images())).shape == (4, 4, 6, 6)


def test_a_mode_that_watches_operations_sees_those_of_pytorch(nets):
    from torch.utils.flop_counter import FlopCounterMode

    net, fused = nets
    with FlopCounterMode(display=False) as expected:
        net(images())
    with FlopCounterMode(display=False) as found:
        fused(images())
    assert found.get_total_flops() == expected.get_total_flops() > 0


def test_a_subclass_of_tensor_remains_one():
    class Marked(torch.Tensor):
        pass

    layer = InPlaceABN(3).double()
    x = images().as_subclass(Marked)
    before = x.clone()
    z = layer(x)
    assert type(z) is Marked
    assert torch.equal(x, before)
    original = nn.BatchNorm2d(3).double()
    assert relative(z.as_subclass(torch.Tensor), F.leaky_relu(original(images()), 0.01)) < OUTPUT


def test_a_device_without_kernels():
    """Everything that is no plain CPU tensor takes the same way; a meta tensor shows the operations used."""
    layer = InPlaceABN(3, activation="relu", device="meta")
    x = torch.empty(4, 3, 8, 8, device="meta", requires_grad=True)
    assert "ReluBackward" in type(layer(x).grad_fn).__name__


# ---- shapes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (4, 3, 0, 8)])
def test_an_empty_batch(shape):
    results = []
    for layer in (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()), InPlaceABN(3, activation="relu")):
        x = torch.zeros(shape, requires_grad=True)
        z = layer(x)
        z.sum().backward()
        results.append((z.shape, x.grad.shape, next(iter(layer.buffers()))))
    assert results[0][:2] == results[1][:2]
    assert torch.equal(results[0][2], results[1][2])


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (1, 3)])
def test_one_value_per_channel(shape):
    layer = InPlaceABN(3)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        layer(torch.zeros(shape))
    layer.eval()
    x = torch.randn(shape)
    original = copy.deepcopy(layer)
    expected = F.leaky_relu(
        F.batch_norm(x, original.running_mean, original.running_var, original.weight, original.bias), 0.01
    )
    assert relative(layer(x), expected) < 1e-6


@pytest.mark.parametrize(
    "shape", [(2, 3, 1, 1), (4, 3, 1, 5), (1, 3, 5, 5), (2, 3, 5, 1), (2, 1, 5, 5), (3, 2)]
)
@pytest.mark.parametrize("memory_format", ["contiguous_format", "channels_last"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_shapes_whose_strides_are_ambiguous(shape, memory_format, activation):
    results = []
    for in_place in (False, True):
        generator = torch.Generator().manual_seed(0)
        x, g = torch.randn(2, *shape, dtype=torch.float64, generator=generator)
        if len(shape) == 4:
            x = x.to(memory_format=getattr(torch, memory_format))
        x.requires_grad_()
        layer = InPlaceABN(shape[1], activation=activation).double()
        if in_place:
            z = layer(x * 1)
        else:
            y = F.batch_norm(x, None, None, layer.weight, layer.bias, True)
            z = F.relu(y) if activation == "relu" else F.leaky_relu(y, 0.01)
        z.backward(g.clone(memory_format=torch.contiguous_format))
        results.append([z.detach(), x.grad, layer.weight.grad, layer.bias.grad])
    assert max(map(relative, *results)) < GRADIENT
