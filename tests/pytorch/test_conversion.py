"""`convert` on small models: which patterns are found, and the same results as the original's."""

import copy
import io
import warnings

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", minversion="2.4")
nn, F = torch.nn, torch.nn.functional

from fused_nets import GRADIENT, gradient_bound  # noqa: E402
from zoo import errors, prepare  # noqa: E402

from inplace_abn.torch import convert, report, revert  # noqa: E402
from inplace_abn.torch.batch_norm import is_fused  # noqa: E402

BOUNDS = {"outputs": 1e-11, "gradients": GRADIENT, "buffers": 1e-12, "eval": 1e-12}


def images(channels=4, size=6):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(3, channels, size, size, dtype=torch.float64, generator=generator)


def check(model, x=None, gradients=GRADIENT, **options):
    """Compare a model with its conversion; return the conversion's rows by path."""
    prepare(model)
    converted = convert(copy.deepcopy(model), **options)
    found = errors(model, converted, images() if x is None else x)
    bounds = BOUNDS | {"gradients": gradients}
    assert all(found[name] <= bound for name, bound in bounds.items()), found
    return {row.path: row for row in report(converted).rows}


class Block(nn.Module):
    """Two convolutions with batch norms; subclasses say how they are connected."""

    def __init__(self, channels=4):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.last = nn.Conv2d(channels, channels, 1)


def chain(*modules):
    """Return a convolution, a batch norm, copies of the modules and a convolution."""
    convs = nn.Conv2d(4, 4, 3, bias=False), nn.Conv2d(4, 4, 1)
    return nn.Sequential(convs[0], nn.BatchNorm2d(4), *map(copy.deepcopy, modules), convs[1])


ACTIVATIONS = [
    nn.ReLU(),
    nn.ReLU(inplace=True),
    nn.ReLU6(),
    nn.Hardswish(),
    nn.Hardsigmoid(),
    nn.Hardtanh(-0.5, 2.0),
    nn.LeakyReLU(0.2),
    nn.ELU(0.7),
    nn.CELU(2.0),  # PyTorch's gradient rounds 1 / alpha to float32
    nn.SELU(),
    nn.Softplus(),
    nn.Sigmoid(),
    nn.Tanh(),
    nn.SiLU(inplace=True),
    nn.GELU(),
    nn.GELU(approximate="tanh"),
    nn.Mish(),
    nn.PReLU(4, 0.3),
]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_modules_of_activations(activation):
    bound = gradient_bound(type(activation).__name__.lower())
    row = check(chain(activation), gradients=bound)["1"]
    assert (row.state, row.why) == ("fused", "")
    assert row.activation != "identity"


FUNCTIONS = {
    "relu": F.relu,
    "relu in place": lambda y: F.relu(y, inplace=True),
    "relu_": torch.relu_,
    "method relu": lambda y: y.relu(),
    "method relu_": lambda y: y.relu_(),
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "hardtanh": lambda y: F.hardtanh(y, -1.0, 0.5),
    "leaky_relu": lambda y: F.leaky_relu(y, 0.3),
    "leaky_relu in place": lambda y: F.leaky_relu(y, negative_slope=0.3, inplace=True),
    "elu": lambda y: F.elu(y, alpha=0.5),
    "silu": F.silu,
    "gelu": lambda y: F.gelu(y, approximate="tanh"),
    "mish": F.mish,
    "sigmoid": torch.sigmoid,
    "tanh": lambda y: y.tanh(),
    "softplus": F.softplus,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_activations(name):
    class Model(Block):
        def forward(self, x):
            return self.last(FUNCTIONS[name](self.bn1(self.conv1(x))))

    row = check(Model())["bn1"]
    assert row.state == "fused"
    assert row.activation != "identity"


OTHERS = {
    "slope 0": nn.LeakyReLU(0.0),
    "negative slope": nn.LeakyReLU(-0.5),
    "softplus with beta": nn.Softplus(beta=2.0),
    "random": nn.Dropout(0.0),
    "unknown": nn.LogSigmoid(),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_functions_stay_behind_the_batch_norm(name):
    row = check(chain(OTHERS[name]))["1"]
    assert (row.state, row.activation) == ("fused", "identity")


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_dimensions(dimensions):
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dimensions - 1]
    model = nn.Sequential(conv(4, 6, 1), norm(6), nn.ReLU(), conv(6, 4, 1))
    assert check(model, torch.randn(3, 4, *[5] * dimensions, dtype=torch.float64))["1"].state == "fused"


def test_linear_layers():
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 2))
    assert check(model, torch.randn(9, 5, dtype=torch.float64))["1"].state == "fused"


def test_residual_block_with_projection():
    class Model(Block):
        def __init__(self):
            super().__init__()
            self.downsample = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

        def forward(self, x):
            shortcut = self.downsample(x)
            out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
            out += shortcut
            return self.last(self.relu(out))

    rows = check(Model())
    assert {row.state for row in rows.values()} == {"fused", "with residual"}


def test_identities_in_between():
    class Model(Block):
        def __init__(self):
            super().__init__()
            self.identity, self.drop = nn.Identity(), nn.Identity()

        def forward(self, x):
            out = self.drop(self.bn1(self.identity(self.conv1(x))))
            return self.last(self.relu(self.identity(out + x)))

    row = check(Model())["bn1"]
    assert (row.state, row.activation) == ("with residual", "relu")


def test_pattern_across_the_border_of_children():
    class Normalize(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)), nn.Identity())

        def forward(self, x):
            return self.body(x)

    model = nn.Sequential(Normalize(), nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 1)))
    assert check(model)["0.body.0.1"].activation == "relu"


def test_batch_norm_first_in_its_child():
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3),
        nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)),
        nn.Conv2d(4, 4, 1),
    )
    row = check(model)["1.0"]
    assert (row.state, row.activation) == ("fused", "relu")


def test_children_keep_their_calls():
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 1),
    )
    model = convert(prepare(model))
    called = []
    model[0].register_forward_hook(lambda *arguments: called.append(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(images())
    assert called == [1]
    assert "forward" not in vars(model)


def test_shared_batch_norm():
    class Model(Block):
        def forward(self, x):
            first = self.relu(self.bn1(self.conv1(x)))
            second = self.bn1(self.conv2(first)) + self.last(first)
            return self.last(F.silu(second))

    assert check(Model())["bn1"].state == "fused"


def test_shared_batch_norm_keeps_the_order_of_its_calls():
    class Model(Block):
        def forward(self, x):
            first = self.bn1(self.conv1(x))
            second = self.bn1(self.conv2(x))
            return self.last(self.relu(second)) + self.last(F.silu(first + second))

    check(Model())


def test_input_used_elsewhere_is_copied():
    class Model(Block):
        def forward(self, x):
            x = self.conv1(x)
            return self.last(F.relu(self.bn1(x))) + x

    row = check(Model())["bn1"]
    assert (row.state, row.why) == ("copied", "its input is used elsewhere too")


def test_input_that_another_operation_keeps_is_copied():
    class Model(Block):
        def forward(self, x):
            return self.last(F.silu(self.bn1(torch.sigmoid(self.conv1(x)))))

    row = check(Model())["bn1"]
    assert row.state == "copied"
    assert "sigmoid" in row.why


def test_input_from_the_caller_is_copied():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 4, 1))
    assert check(model)["0"].why == "its input comes from the caller"
    x = images()
    before = x.clone()
    convert(prepare(model))(x)
    assert torch.equal(x, before)


def test_concatenation_is_overwritten():
    class Model(Block):
        def forward(self, x):
            both = torch.cat([self.conv1(x), self.conv2(x)], 2)
            return self.last(F.relu(self.bn1(both)))

    assert check(Model())["bn1"].state == "fused"


def test_result_changed_in_place_is_left():
    class Model(Block):
        def forward(self, x):
            y = self.bn1(self.conv1(x))
            z = y.mean((2, 3), keepdim=True)
            y += 1
            return self.last(y) + z

    row = check(Model())["bn1"]
    assert (row.state, row.why) == ("left", "its result is changed in place by iadd")


def test_result_changed_in_place_through_a_view_is_left():
    class Model(Block):
        def forward(self, x):
            y = F.silu(self.bn1(self.conv1(x)))
            y[:, :1].mul_(2.0)
            return self.last(y)

    assert check(Model())["bn1"].activation == "identity"


def test_residual_changed_in_place_is_not_kept():
    class Model(Block):
        def forward(self, x):
            x = x * 1
            y = self.bn1(self.conv1(x * 1)) + x
            x.add_(1)
            return self.last(y) + x

    assert check(Model())["bn1"].activation == "identity"


def test_sum_in_place_over_the_callers_memory():
    class Model(Block):
        def forward(self, x):
            x += self.bn1(self.conv1(x * 1))
            return self.last(x)

    model = prepare(Model())
    converted = convert(copy.deepcopy(model))
    inputs = images(), images()
    with torch.no_grad():
        expected, got = model(inputs[0]), converted(inputs[1])
    assert torch.allclose(got, expected, rtol=1e-12)
    assert torch.allclose(inputs[1], inputs[0], rtol=1e-12)


def test_sum_in_place_behind_a_module_that_returns_its_input():
    class Drop(nn.Module):
        def forward(self, x):
            return x

    class Model(Block):
        def __init__(self):
            super().__init__()
            self.drop = Drop()

        def forward(self, x):
            out = self.drop(self.bn1(self.conv1(x)))
            out += x
            return self.last(out)

    assert check(Model())["bn1"].state == "fused"


def test_bare_result_for_code_that_is_not_traced_is_left():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

        def forward(self, x):
            if x.sum() == 0:
                return x
            out = self.body(x)
            out += x
            return out

    row = check(Model())["body.1"]
    assert row.state == "left"
    assert "not traced" in row.why


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


def test_squeeze_excite():
    class SqueezeExcite(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))

    model = chain(nn.SiLU(), SqueezeExcite())
    check(model)
    assert "multiply" in next(iter(convert(model).forward.variants.values()))[True][0].source


def test_pooling_keeps_no_indices():
    model = chain(nn.ReLU(), nn.MaxPool2d(2))
    check(model)
    assert "max_pool2d" in next(iter(convert(model).forward.variants.values()))[True][0].source


def test_other_normalizations_are_left():
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3), nn.SyncBatchNorm(4), nn.ReLU(), nn.BatchNorm2d(4), nn.GroupNorm(2, 4)
    )
    rows = {row.path: row for row in report(convert(model)).rows}
    assert rows["1"].why == "SyncBatchNorm is not supported"
    assert rows["3"].state == "left"  # its result is the model's


def test_batch_norm_with_a_forward_of_its_own_is_left():
    class Twice(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.Sequential(nn.Conv2d(4, 4, 3), Twice(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
    assert check(model)["1"].why == "Twice has a forward of its own"


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),
        nn.SiLU(),
        nn.Conv2d(4, 2, 1),
    )


HOOKED = {"batch norm": "1", "activation": "2", "convolution": "0", "inlined": "3", "in the inlined": "3.1"}


@pytest.mark.parametrize("where", HOOKED)
def test_hooks_run_the_original_and_warn_once(where):
    model = prepare(network())
    converted = convert(copy.deepcopy(model))
    seen = {}
    for each in (model, converted):
        seen[each] = []
        hook = lambda module, inputs, output, kept=seen[each]: kept.append(output)  # noqa: E731
        each.get_submodule(HOOKED[where]).register_forward_hook(hook)
    expected = model(images())
    with pytest.warns(UserWarning, match="has hooks"):
        got = converted(images())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        converted(images())
    assert torch.allclose(got, expected, rtol=1e-12)
    assert torch.allclose(seen[converted][0], seen[model][0], rtol=1e-12)


def test_module_replaced_after_the_conversion():
    model = prepare(network())
    converted = convert(copy.deepcopy(model))
    for each in (model, converted):
        each[2] = nn.Tanh()
    with pytest.warns(UserWarning, match="was replaced"):
        got = converted(images())
    assert torch.allclose(got, model(images()), rtol=1e-12)


def test_synchronized_batch_norms_after_the_conversion():
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(convert(prepare(network()))).eval()
    with pytest.warns(UserWarning, match="was replaced"):
        got = converted(images())
    assert torch.allclose(got, prepare(network()).eval()(images()), rtol=1e-12)


def test_submodules_called_directly():
    model = prepare(network())
    converted = convert(copy.deepcopy(model))
    x = images()
    before = x.clone()
    assert torch.equal(converted[1](x), model[1](x))
    assert torch.equal(converted[3](x), model[3](x))
    assert torch.equal(x, before)


def test_modes_changed_after_the_conversion():
    model = prepare(network())
    converted = convert(copy.deepcopy(model).eval())
    for change in (lambda each: each.train(), lambda each: each[1].eval(), lambda each: each.eval()):
        for each in (model, converted):
            change(each)
        assert torch.allclose(converted(images()), model(images()), rtol=1e-12)
    assert not converted[1].training


@pytest.mark.parametrize("how", ["deepcopy", "torch.save"])
def test_copies_are_independent(how):
    converted = convert(prepare(network()))
    if how == "deepcopy":
        other = copy.deepcopy(converted)
    else:
        file = io.BytesIO()
        torch.save(converted, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    expected = converted(images())
    assert torch.equal(other(images()), expected)
    assert other.forward.module is other
    assert repr(report(other)) == repr(report(converted))
    with torch.no_grad():
        other[0].weight.zero_()
    assert torch.allclose(converted(images()), expected)
    assert not torch.allclose(other(images()), expected)
    assert not is_fused(revert(other)[1])
    assert is_fused(converted[1])


def test_state_keys_are_the_same():
    model = network()
    keys = list(model.state_dict())
    assert list(convert(model).state_dict()) == keys
    assert [name for name, _ in model.named_modules()] == [name for name, _ in network().named_modules()]


def test_conversion_twice_and_of_a_part():
    model = prepare(network())
    converted = convert(copy.deepcopy(model))
    rows = report(converted).rows
    assert report(convert(converted)).rows == rows
    outer = nn.Sequential(converted, nn.Conv2d(2, 2, 1).double())
    assert [row.path for row in report(outer).rows] == ["0.1", "0.3.1"]
    outer = convert(outer)
    assert [row.path for row in report(outer).rows] == ["0.1", "0.3.1"]
    assert torch.allclose(outer[0](images()), model(images()), rtol=1e-12)


def test_revert_restores_everything():
    model = prepare(network())
    converted = revert(convert(copy.deepcopy(model)))
    assert repr(converted) == repr(model)
    assert all(
        type(got) is type(want) for got, want in zip(converted.modules(), model.modules(), strict=True)
    )
    assert not any("forward" in vars(module) for module in converted.modules())
    assert not converted._forward_hooks
    assert not converted._forward_pre_hooks
    assert vars(converted).keys() == vars(model).keys()
    assert torch.equal(converted(images()), model(images()))
    assert revert(converted) is converted


def leaky(model):
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, (nn.ReLU, nn.ReLU6)):
                setattr(parent, name, nn.LeakyReLU(0.01))
    return model


def test_activation_replaces_modules():
    model = leaky(prepare(network()))
    converted = convert(prepare(network()), activation="leaky_relu")
    found = errors(model, converted, images())
    assert all(found[name] <= bound for name, bound in BOUNDS.items()), found
    assert [row.activation for row in report(converted).rows] == ["leaky_relu", "silu"]
    assert torch.allclose(revert(converted)(images()), model.eval()(images()), rtol=1e-12)


def test_activation_replaces_functions():
    class Model(Block):
        def forward(self, x):
            return F.relu(self.last(function(self.bn1(self.conv1(x)))))

    function = F.leaky_relu
    model = prepare(Model())
    function = F.relu
    converted = convert(copy.deepcopy(model), activation="leaky_relu")
    function = F.leaky_relu
    found = errors(model, converted, images())
    assert all(found[name] <= bound for name, bound in BOUNDS.items()), found
    function = F.relu
    got = revert(converted)(images())
    function = F.leaky_relu
    assert torch.allclose(got, model(images()), rtol=1e-12)


def test_replaced_functions_refuse_other_arguments():
    class Model(Block):
        def forward(self, x, twice=False):
            y = F.relu(self.bn1(self.conv1(x)))
            return self.last(y + y if twice else y)

    converted = convert(prepare(Model()), activation="leaky_relu")
    converted(images())
    with pytest.raises(RuntimeError, match="activations were replaced"):
        converted(images(), twice=True)


def test_refusals():
    with pytest.raises(TypeError, match="model must be"):
        convert("resnet50")
    with pytest.raises(TypeError, match="is a batch norm"):
        convert(nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match="activation must be None or one of leaky_relu"):
        convert(network(), activation="relu")
    with pytest.raises(ValueError, match="was not converted"):
        report(network())
    with pytest.raises(TypeError, match="model must be"):
        report(None)
    with pytest.raises(TypeError, match="model must be"):
        revert(None)


def test_report_as_text_and_table():
    class Odd(nn.Module):
        """A forward whose name would break a table."""

        def forward(self, x):
            return x

    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4), Odd())
    found = report(convert(model))
    assert repr(found).startswith("2 batch norms: 1 fused, 1 left\n\npath  kind ")
    table = found._repr_html_()
    assert table.count("<tr>") == 3
    assert "<td>BatchNorm2d</td><td>fused</td><td>relu</td>" in table
