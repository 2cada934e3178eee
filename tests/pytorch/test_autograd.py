"""What an in-place module may overwrite: its input in the forward, the gradient in the backward."""

import sys

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", reason="PyTorch is not installed")
nn, F = torch.nn, torch.nn.functional

from fused_nets import GRADIENT, OUTPUT, relative  # noqa: E402

from inplace_abn.torch import InPlaceABN, _kernels, ownership  # noqa: E402

ACTIVATIONS = ["leaky_relu", "relu"]  # z over x; bn(x) over x
LAYOUTS = {"channels_first": torch.contiguous_format, "channels_last": torch.channels_last}


def batch(*shape):
    shape = shape or (4, 8, 16, 16)  # large enough for gradients to be overwritten
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def module(activation, in_place=True, channels=8):
    if in_place:
        return InPlaceABN(channels, activation=activation).double()
    original = nn.BatchNorm2d(channels).double()
    return nn.Sequential(original, nn.LeakyReLU(0.01) if activation == "leaky_relu" else nn.ReLU())


@pytest.fixture(params=ACTIVATIONS)
def activation(request):
    return request.param


# ---- the input ---------------------------------------------------------------------------------------------


def test_a_leaf_that_requires_a_gradient_is_not_overwritten(activation):
    x = batch().requires_grad_()
    before = x.detach().clone()
    module(activation)(x).pow(2).sum().backward()
    assert torch.equal(x, before)
    expected = batch().requires_grad_()
    module(activation, in_place=False)(expected).pow(2).sum().backward()
    assert relative(x.grad, expected.grad) < GRADIENT


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.chunk(2, 1)[0],  # of several outputs: autograd forbids to write over it
        lambda x: x[:, :4],
        lambda x: x[::2, :4],
        lambda x: x[:, :4].transpose(2, 3),
        lambda x: x[:, :4, :, :1].expand(-1, -1, -1, 5),
        lambda x: x.unbind(0)[0].reshape(2, 4, 16, 16),
    ],
)
def test_a_view_is_not_overwritten(activation, view):
    gradients = []
    for in_place in (False, True):
        x = batch().requires_grad_()
        base = x * 1
        before = base.detach().clone()
        z = module(activation, in_place, 4)(view(base))
        (z.pow(2).sum() + base.sum()).backward()
        assert torch.equal(base, before)
        gradients.append(x.grad)
    assert relative(*gradients) < GRADIENT


def test_an_input_that_another_operation_needs_is_an_error_in_the_backward(activation):
    x = torch.sigmoid(batch().requires_grad_())
    loss = module(activation)(x).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("hooks", ["identity", "save_on_cpu"])
def test_hooks_of_others_prevent_the_write(activation, hooks):
    """Saved-tensor hooks switch off the version check that finds the error above."""
    gradients = []
    for in_place in (False, True):
        x = batch().requires_grad_()
        active = (
            torch.autograd.graph.save_on_cpu()
            if hooks == "save_on_cpu"
            else torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)
        )
        with active:
            loss = module(activation, in_place)(torch.sigmoid(x)).pow(2).sum()
        loss.backward()
        gradients.append(x.grad)
    assert relative(*gradients) < GRADIENT


def test_a_result_that_is_modified_is_an_error_in_the_backward():
    z = module("leaky_relu")(batch().requires_grad_() * 1)
    loss = z.pow(2).sum()
    z.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss + z.sum()).backward()


def test_a_sum_that_is_modified_is_an_error_in_the_backward():
    x = batch().requires_grad_() * 1
    z = module("relu")(x)
    with torch.no_grad():
        x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_a_residual_that_is_modified_is_an_error_in_the_backward(activation):
    residual = batch()
    z = module(activation)(batch().requires_grad_() * 1, residual)
    residual.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_an_operation_in_place_follows(activation):
    gradients = []
    for in_place in (False, True):
        x = batch().requires_grad_()
        z = module(activation, in_place)(x * 1) * 1
        z += 1
        z.pow(2).sum().backward()
        gradients.append(x.grad)
    assert relative(*gradients) < GRADIENT


def test_without_gradients_nothing_is_recorded_and_the_input_is_overwritten(activation):
    layer, x = module(activation).eval(), batch()
    before = x.clone()
    with torch.no_grad():
        z = layer(x)
    assert not z.requires_grad
    assert not torch.equal(x, before)
    z.add_(1)


def test_a_part_of_a_recorded_graph_is_not_overwritten_without_gradients(activation):
    x = batch().requires_grad_() * 1
    before = x.detach().clone()
    with torch.no_grad():
        module(activation)(x)
    assert torch.equal(x, before)


def test_inference_tensors(activation):
    layer = module(activation).eval()
    with torch.inference_mode():
        inside, x = layer(batch()), batch()
    assert relative(inside, module(activation, in_place=False).eval()(batch())) < OUTPUT
    with torch.no_grad():
        layer(x)
    assert torch.equal(x, batch())


def test_the_same_module_twice(activation):
    gradients = []
    for in_place in (False, True):
        torch.manual_seed(0)
        conv, layer = nn.Conv2d(8, 8, 1, dtype=torch.float64), module(activation, in_place)
        x = batch().requires_grad_()
        layer(conv(layer(conv(x)))).pow(2).sum().backward()
        gradients.append([x.grad, *(p.grad for p in layer.parameters())])
    assert max(map(relative, *gradients)) < GRADIENT


def test_frozen_parameters(activation):
    layer = module(activation)
    layer.requires_grad_(False)
    x = batch().requires_grad_()
    layer(x * 1).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None


def test_gradients_of_the_parameters_alone(activation):
    found, expected = module(activation), module(activation, in_place=False)
    for layer in (found, expected):
        layer(batch()).pow(2).sum().backward()
    assert max(map(relative, *([p.grad for p in m.parameters()] for m in (found, expected)))) < GRADIENT


@pytest.mark.parametrize("value", [0.0, 1e-30, -1.0])
def test_weights_from_which_the_input_cannot_be_recovered(activation, value):
    results = []
    for in_place in (False, True):
        layer = module(activation, in_place)
        weight, bias = list(layer.parameters())
        weight.data[::2], bias.data[:] = value, torch.linspace(-1, 1, 8)
        x, residual = batch().requires_grad_(), batch().flip(0).requires_grad_()
        z = layer(x * 1, residual) if in_place else layer[1](layer[0](x) + residual)
        z.pow(2).sum().backward()
        results.append([z.detach(), x.grad, residual.grad, weight.grad, bias.grad])
    assert max(map(relative, *results)) < GRADIENT


# ---- the graph ---------------------------------------------------------------------------------------------


def test_double_backward_is_refused(activation):
    x = batch().requires_grad_()
    (gradient,) = torch.autograd.grad(module(activation)(x * 1).pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        gradient.sum().backward()


def test_create_graph_without_a_second_differentiation(activation):
    gradients = []
    for in_place in (False, True):
        x = batch().requires_grad_()
        loss = module(activation, in_place)(x * 1).pow(2).sum()
        gradients.append(torch.autograd.grad(loss, x, create_graph=True)[0].detach())
    assert relative(*gradients) < GRADIENT


def test_a_second_backward_without_retain_graph_is_an_error(activation):
    loss = module(activation)(batch().requires_grad_() * 1).sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_retain_graph(activation):
    gradients = []
    for in_place in (False, True):
        torch.manual_seed(0)
        conv, x, residual = nn.Conv2d(8, 4, 3, dtype=torch.float64), batch().requires_grad_(), batch().flip(0)
        layer = module(activation, in_place)
        z = layer(x * 1, residual) if in_place else layer[1](layer[0](x) + residual)
        loss = conv(z).pow(2).sum()
        for _ in range(2):
            loss.backward(retain_graph=True)
        loss.backward()
        gradients.append([x.grad, *(p.grad for p in layer.parameters())])
    assert max(map(relative, *gradients)) < GRADIENT


def test_a_gradient_without_other_references_is_overwritten(activation, monkeypatch):
    overwritten, backward = [], _kernels.backward
    monkeypatch.setattr(_kernels, "backward", lambda *a: overwritten.append(a[4]) or backward(*a))
    for hook in (False, True):
        z = module(activation)(batch().requires_grad_() * 1)
        if hook:
            kept = []
            z.register_hook(kept.append)
        nn.Conv2d(8, 4, 3, dtype=torch.float64)(z).pow(2).sum().backward()
    assert overwritten == [True, False]


def test_anomaly_mode(activation):
    with pytest.warns(UserWarning, match="Anomaly Detection"), torch.autograd.detect_anomaly():
        module(activation)(batch().requires_grad_() * 1).sum().backward()


# ---- the gradient ------------------------------------------------------------------------------------------


def hold(how, z, kept):
    """Keep the gradient of z in the list `kept`, or something that shares its memory."""
    if how == "retain_grad":
        z.retain_grad()
    elif how == "prehook":
        z.grad_fn.register_prehook(lambda gradients: kept.extend(gradients))
    elif how == "replaced":
        held = torch.ones_like(z)
        kept.append(held)
        z.register_hook(lambda g: held)
    else:
        share = {
            "tensor": lambda g: g,
            "detached": lambda g: g.detach(),
            "view": lambda g: g[:1],
            "array": lambda g: torch.from_numpy(g.numpy()),
            "dlpack": lambda g: torch.from_dlpack(g),
            "storage": lambda g: torch.empty(0, dtype=g.dtype).set_(g.untyped_storage()),
        }[how]
        z.register_hook(lambda g: kept.append(share(g)))


HOLDERS = ["retain_grad", "prehook", "replaced", "tensor", "detached", "view", "array", "dlpack", "storage"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("how", HOLDERS)
def test_a_gradient_with_another_reference_is_not_overwritten(activation, how, layout):
    results = []
    for in_place in (False, True):
        torch.manual_seed(0)
        conv, kept = nn.Conv2d(8, 4, 3, dtype=torch.float64), []
        x = batch().to(memory_format=LAYOUTS[layout]).requires_grad_()
        z = module(activation, in_place)(x * 1)
        hold(how, z, kept)
        conv(z).pow(2).sum().backward()
        held = z.grad if how == "retain_grad" else kept[0]
        results.append([held.sum(), held.norm(), x.grad])
    assert max(map(relative, *results)) < GRADIENT


def consumers(how, z, x):
    """Return a loss of z whose backward hands over gradients in different ways."""
    if how == "two branches":
        return (z + x * 3).pow(2).sum()
    if how == "two consumers":
        return F.avg_pool2d(z, 2).pow(2).sum() + z.pow(2).sum()
    if how == "concatenation":
        return torch.cat([z, x * 2], 1).pow(2).sum()
    if how == "sum":
        return z.sum()
    if how == "mean":
        return z.mean((2, 3)).pow(2).sum()
    if how == "view":
        return z.view(2, 2, *z.shape[1:]).mul(2).pow(2).sum()
    if how == "transposed":
        return z.transpose(1, 2).contiguous().pow(2).sum()
    assert how == "dropout of 0"
    return F.dropout(z, 0.0, False).pow(2).sum()


CONSUMERS = [
    *("two branches", "two consumers", "concatenation", "sum", "mean", "view", "transposed", "dropout of 0")
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("how", CONSUMERS)
def test_gradients_of_every_origin(activation, how, layout):
    results = []
    for in_place in (False, True):
        x = batch().to(memory_format=LAYOUTS[layout]).requires_grad_()
        consumers(how, module(activation, in_place)(x * 1), x).backward()
        results.append(x.grad)
    assert relative(*results) < GRADIENT


def test_the_gradients_that_the_caller_passes_and_asks_for(activation):
    results = []
    for in_place in (False, True):
        x, g = batch().requires_grad_(), batch().flip(0)
        z = module(activation, in_place)(x * 1)
        given = g.clone()
        z.backward(given, retain_graph=False)
        assert torch.equal(given, g)
        y = x * 2
        z = module(activation, in_place)(y * 1)
        dz, dx = torch.autograd.grad(F.avg_pool2d(z, 2).pow(2).sum(), [z, x])
        results.append([x.grad, dz, dx])
    assert max(map(relative, *results)) < GRADIENT


def test_references_are_counted():
    """Every way to hold a gradient raises one of the counts; `sys.getrefcount` sees Python's."""
    dz = torch.ones(ownership.SMALL)
    alone = ownership._references(dz)
    other, storage, view = dz, dz.untyped_storage(), dz[:1]
    held = ownership._references(dz)
    assert held[2] > alone[2]
    assert held[1] > alone[1]
    assert sys.getrefcount(other) >= 2
    del other, storage, view
    assert ownership._references(dz) == alone
