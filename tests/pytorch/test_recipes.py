"""What is saved for the backward while a model with `recipes.install` runs, and the checks of it."""

import gc

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", reason="PyTorch is not installed")
nn, F = torch.nn, torch.nn.functional

from fused_nets import GRADIENT, assert_equal_steps, images, pair, relative  # noqa: E402

from inplace_abn.torch import _hooks, _saved, batch_norm, recipes  # noqa: E402


class Model(nn.Module):
    """A module around a function, with the hooks installed."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)
        recipes.install(self)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def bn(channels=4, name="bn"):
    return batch_norm.fuse(nn.BatchNorm2d(channels, dtype=torch.float64), name)


def conv(inputs=4, outputs=4, kernel=1):
    return nn.Conv2d(inputs, outputs, kernel, dtype=torch.float64)


def batch(*shape):
    shape = shape or (2, 4, 6, 6)
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


COUNTED_BY_HOOKS = pytest.mark.skipif(
    not hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks"),
    reason="before PyTorch 2.8 no recipes are used under hooks of others, by which these tests count",
)


class kept_bytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes of the storages that reach hooks outside of the model, each storage once."""

    def __init__(self):
        self.storages = {}
        super().__init__(self.pack, lambda tensor: tensor)

    def __enter__(self):
        super().__enter__()
        return self

    def pack(self, tensor):
        self.storages[tensor.untyped_storage().data_ptr()] = tensor  # alive: no address is used twice
        return tensor

    def total(self, smallest):
        sizes = [tensor.untyped_storage().nbytes() for tensor in self.storages.values()]
        return sum(size for size in sizes if size >= smallest)


@COUNTED_BY_HOOKS
@pytest.mark.parametrize("activation", ["relu", "hardswish", "leaky_relu", "silu"])
def test_one_tensor_is_kept_per_normalization(activation):
    net, fused = pair(activation)
    x = images()
    of_activation = 4 * 8 * 8 * 8 * 8
    original = 4 if activation == "relu" else 6  # relu saves its result, the others their input
    for model, expected in ((net, original), (fused, 2)):
        with kept_bytes() as kept:
            model(x)
        assert kept.total(of_activation) == expected * of_activation


@pytest.mark.parametrize("activation", batch_norm.ACTIVATIONS)
def test_the_gradients_are_those_of_the_original_network(activation):
    if activation == "prelu":
        pytest.skip("needs a slope")
    assert_equal_steps(*pair(activation), images())


@COUNTED_BY_HOOKS
def test_a_product_is_computed_again():
    def gated(model, x):
        z = model.bn(x, activation="relu")
        gate = torch.sigmoid(model.squeeze(z.mean((2, 3), keepdim=True)))
        return model.conv(model.multiply(z, gate))

    gradients = []
    for multiply in (torch.mul, recipes.multiply):
        torch.manual_seed(0)
        model = Model(gated, bn=bn(), squeeze=conv(), conv=conv(4, 4, 3))
        model.multiply = multiply
        x = batch().requires_grad_()
        with kept_bytes() as kept:
            y = model(x * 1)
        y.pow(2).sum().backward()
        gradients.append([x.grad, *(p.grad for p in model.parameters())])
        saved = kept.total(x.nbytes) // x.nbytes
        assert saved == (1 if multiply is recipes.multiply else 2)
    assert max(map(relative, *gradients)) < GRADIENT


@pytest.mark.parametrize("arguments", [(2,), (3, 2, 1), (2, 2, 0, 1, True), ((3, 2), (2, 1), (1, 0))])
def test_a_pooling_keeps_its_input_and_no_indices(arguments):
    found = []
    for pool in (F.max_pool2d, recipes.max_pool2d):
        model = Model(lambda model, x, pool=pool: pool(model.bn(x, activation="relu"), *arguments), bn=bn())
        x = batch(2, 4, 7, 6).requires_grad_()
        with kept_bytes() as kept:
            z = model(x * 1)
        assert all(tensor.dtype is not torch.int64 for tensor in kept.storages.values()) is (
            pool is recipes.max_pool2d
        )
        z.pow(2).sum().backward()
        found.append((z.detach(), x.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert relative(found[1][1], found[0][1]) < GRADIENT


def test_two_consumers_compute_a_recipe_once():
    calls = []
    source = batch()
    recipe = _saved.Recipe(lambda s: calls.append(1) or s.relu(), source)
    first = recipe.get()
    assert recipe.get() is first
    assert len(calls) == 1
    del first
    recipe.get()
    assert len(calls) == 2


def test_a_result_that_was_modified_before_it_is_saved_has_no_recipe():
    gradients = []
    for activation in (None, "relu"):
        torch.manual_seed(0)
        model = Model(lambda m, x, a=activation: m.conv(act(m.bn, x, a).mul_(2)), bn=bn(), conv=conv())
        x = batch().requires_grad_()
        model(x * 1).pow(2).sum().backward()
        gradients.append([x.grad, *(p.grad for p in model.parameters())])
    assert max(map(relative, *gradients)) < GRADIENT


def act(module, x, activation):
    return module(x).relu().clone() if activation is None else module(x, activation=activation)


def test_a_view_of_a_result_is_saved_as_a_tensor():
    gradients = []
    for activation in (None, "relu"):
        torch.manual_seed(0)
        model = Model(lambda m, x, a=activation: m.conv(act(m.bn, x, a)[:, :, 1:]), bn=bn(), conv=conv())
        x = batch().requires_grad_()
        model(x * 1).pow(2).sum().backward()
        gradients.append([x.grad, *(p.grad for p in model.parameters())])
    assert max(map(relative, *gradients)) < GRADIENT


@pytest.mark.parametrize("activation", ["leaky_relu", "relu"])
def test_an_overwritten_tensor_that_another_operation_saved_is_an_error_that_names_the_module(activation):
    model = Model(lambda m, x: m.bn(torch.sigmoid(x), activation=activation), bn=bn(name="layer1.bn2"))
    loss = model(batch().requires_grad_()).sum()
    with pytest.raises(
        RuntimeError, match=r"shape \(2, 4, 6, 6\).*'layer1.bn2' overwrote it: call it with copy_first"
    ):
        loss.backward()


@pytest.mark.parametrize("activation", ["leaky_relu", "relu"])
def test_copy_first_leaves_a_saved_tensor_as_it_is(activation):
    gradients = []
    for fused in (False, True):
        model = Model(
            lambda m, x, fused=fused: (
                m.bn(torch.sigmoid(x), activation=activation, copy_first=True)
                if fused
                else getattr(F, activation)(m.bn(torch.sigmoid(x)))
            ),
            bn=bn(),
        )
        x = batch().requires_grad_()
        model(x).pow(2).sum().backward()
        gradients.append(x.grad)
    assert relative(*gradients) < GRADIENT


@pytest.mark.parametrize("activation", ["leaky_relu", "silu"])
def test_a_result_that_is_modified_after_it_was_saved_is_an_error(activation):
    def modified(model, x):
        z = model.bn(x, activation=activation)
        y = model.conv(z)
        z.add_(1)
        return y

    model = Model(modified, bn=bn(), conv=conv())
    loss = model(batch().requires_grad_() * 1).sum()
    with pytest.raises(RuntimeError, match="modified in place"):
        loss.backward()


def test_a_recipe_gives_what_was_saved_even_if_the_result_is_modified_later():
    gradients = []
    for activation in (None, "relu"):
        torch.manual_seed(0)

        def modified(model, x, activation=activation):
            z = act(model.bn, x, activation)
            y = model.conv(z if activation else z.clone())
            z.add_(1)
            return y

        model = Model(modified, bn=bn(), conv=conv())
        x = batch().requires_grad_()
        model(x * 1).pow(2).sum().backward()
        gradients.append([x.grad, *(p.grad for p in model.parameters())])
    assert max(map(relative, *gradients)) < GRADIENT


def test_hooks_are_popped_after_an_exception():
    def fails(model, x):
        raise ZeroDivisionError

    model = Model(fails)
    with pytest.raises(ZeroDivisionError):
        model(batch())
    assert not _hooks.active_hooks().is_ours
    assert not _hooks._pushed()


def test_hooks_are_popped_if_another_hook_fails_before_they_are_pushed():
    model = nn.Identity()
    model.register_forward_pre_hook(lambda module, args: 1 // 0)
    recipes.install(model)
    with pytest.raises(ZeroDivisionError):
        model(batch())
    assert not _hooks.active_hooks().is_ours
    assert not _hooks._pushed()


@COUNTED_BY_HOOKS
def test_a_model_inside_a_model():
    inner = Model(lambda m, x: m.bn(x, activation="relu"), bn=bn())
    outer = Model(lambda m, x: m.conv(m.inner(x)), inner=inner, conv=conv())
    with kept_bytes() as kept:
        outer(batch().requires_grad_() * 1)
    assert kept.total(batch().nbytes) == batch().nbytes


def test_install_twice_and_uninstall():
    model = nn.Identity()
    for _ in range(2):
        recipes.install(model)
    assert len(model._forward_hooks) == len(model._forward_pre_hooks) == 1
    recipes.uninstall(model)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert not model._forward_hooks_always_called


def test_nothing_is_left_after_forwards_with_and_without_backward():
    _, fused = pair()
    for i in range(6):
        z = fused(images())
        if i % 2:
            z.sum().backward()
    del z
    gc.collect()
    assert len(_saved._recipes) == 0
    _saved._writers.forget_freed()
    assert len(_saved._writers) == 0


def test_hooks_of_others_are_found_without_the_function_of_pytorch_2_8(monkeypatch):
    monkeypatch.setattr(_hooks, "_innermost", _hooks._innermost_by_probe)
    monkeypatch.setattr(_hooks, "_new", _hooks._ProbedHooks)
    assert not _hooks.active_hooks().has_others
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        assert _hooks.active_hooks().has_others
    seen = []
    model = Model(
        lambda m, x: seen.append((_hooks.active_hooks().is_ours, _hooks.active_hooks().has_others)) or x
    )
    model(batch())
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        model(batch())
    assert seen == [(True, False), (False, True)]
    assert_equal_steps(*pair(), images())


@pytest.mark.parametrize("activation", ["identity", "leaky_relu", "relu"])
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
def test_a_producer_runs_again(activation, residual):
    def forward(model, x):
        y = model.bn1(model.conv1(x), activation="relu")
        keywords = {"activation": activation, "residual": x if residual else None}
        if model.again:
            z = recipes.run_again(model.conv2, model.bn2, y, **keywords)
        else:
            z = model.bn2(model.conv2(y), **keywords)
        return model.conv3(z).pow(2) + x.mean()

    results = []
    for again in (False, True):
        torch.manual_seed(0)
        convs = {f"conv{i}": nn.Conv2d(4, 4, 1, bias=False, dtype=torch.float64) for i in (1, 2, 3)}
        model = Model(forward, bn1=bn(name="bn1"), bn2=bn(name="bn2"), **convs)
        model.again = again
        x = batch().requires_grad_()
        loss = model(x * 1).sum()
        loss.backward()
        results.append(
            [
                loss.detach(),
                x.grad,
                *(p.grad for p in model.parameters()),
                *(b.double() for b in model.buffers()),
            ]
        )
    assert max(map(relative, *results)) < GRADIENT


@COUNTED_BY_HOOKS
@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_what_runs_again_is_not_kept(activation):
    def forward(model, x):
        return model.last(recipes.run_again(model.conv, model.bn, x, activation=activation))

    model = Model(forward, bn=bn(), conv=conv(), last=conv())
    x = batch().requires_grad_()
    with kept_bytes() as kept:
        model(x)
    assert kept.total(x.nbytes) == x.nbytes


def test_weights_that_changed_before_a_producer_runs_again_are_an_error():
    model = Model(lambda m, x: m.last(recipes.run_again(m.conv, m.bn, x)), bn=bn(), conv=conv(), last=conv())
    loss = model(batch().requires_grad_() * 1).sum()
    with torch.no_grad():
        model.bn.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified in place"):
        loss.backward()
