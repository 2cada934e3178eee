"""`ABN`, `InPlaceABN`, `InPlaceABNSync` and the functions with the names of the reference implementation."""

import copy
import doctest
import importlib
import io
import subprocess
import sys

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", reason="PyTorch is not installed")
nn = torch.nn

from fused_nets import GRADIENT, OUTPUT, gradient_bound, relative  # noqa: E402

import inplace_abn.torch as abn  # noqa: E402
from inplace_abn.torch import functions  # noqa: E402
from inplace_abn.torch._activations import activate  # noqa: E402
from inplace_abn.torch.batch_norm import ACTIVATIONS  # noqa: E402

CLASSES = [abn.ABN, abn.InPlaceABN, abn.InPlaceABNSync]
SHAPES = [(6, 3), (4, 3, 7), (4, 3, 5, 6), (2, 3, 4, 5, 3)]
BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def param_of(activation):
    return (-0.5, 0.75) if activation == "hardtanh" else 0.2


def randomize(module):
    generator = torch.Generator().manual_seed(0)
    for tensor in (module.weight, module.bias, module.running_mean):
        tensor.data.copy_(torch.randn(3, generator=generator))
    return module.double()


def step(module, call, shape, layout, residual):
    generator = torch.Generator().manual_seed(1)
    x, r, g = torch.randn(3, *shape, dtype=torch.float64, generator=generator)
    if layout == "channels_last":
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        x, r, g = (t.contiguous(memory_format=formats[len(shape)]) for t in (x, r, g))
    x.requires_grad_()
    r.requires_grad_()
    z = call(module, 2 * x, r if residual else None)
    result = z.detach().clone()
    z.backward(g)
    gradients = [x.grad, *(p.grad for p in module.parameters())] + ([r.grad] if residual else [])
    return result, gradients, [module.running_mean, module.running_var]


def layouts(shape):
    return ["channels_first", "channels_last"] if len(shape) > 3 else ["channels_first"]


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize(
    ("shape", "layout"), [(shape, layout) for shape in SHAPES for layout in layouts(shape)]
)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("cls", [abn.ABN, abn.InPlaceABN])
def test_a_step_has_the_results_of_pytorch(cls, activation, shape, layout, residual):
    param = param_of(activation)
    module = randomize(cls(3, activation=activation, activation_param=param))
    original = randomize(BATCH_NORMS[len(shape)](3))
    if activation == "prelu":
        original.slope = nn.Parameter(module.slope.detach().clone())

    def call(bn, x, r):
        y = bn(x) if r is None else bn(x) + r
        return activate(activation, y, param, getattr(bn, "slope", None))

    z, gradients, statistics = step(original, call, shape, layout, residual)
    found, found_gradients, found_statistics = step(module, lambda m, x, r: m(x, r), shape, layout, residual)
    assert relative(found, z) < OUTPUT
    assert max(map(relative, found_gradients, gradients)) < gradient_bound(activation)
    assert max(map(relative, found_statistics, statistics)) < OUTPUT
    assert module.num_batches_tracked == original.num_batches_tracked


@pytest.mark.parametrize("cls", CLASSES)
def test_the_state_and_the_classes_are_those_of_batch_norm(cls):
    module = cls(3)
    for base in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.modules.batchnorm._BatchNorm):
        assert isinstance(module, base)
    assert list(module.state_dict()) == list(nn.BatchNorm2d(3).state_dict())
    module.load_state_dict(randomize(nn.BatchNorm2d(3)).state_dict())
    reference = {key: value for key, value in module.state_dict().items() if key != "num_batches_tracked"}
    cls(3).load_state_dict(reference)  # the reference implementation counts no batches


def test_positional_arguments_are_those_of_the_reference_implementation():
    module = abn.InPlaceABN(3, 1e-3, 0.2, True, "elu", 0.5)
    assert (module.eps, module.momentum, module.affine) == (1e-3, 0.2, True)
    assert (module.activation, module.activation_param) == ("elu", 0.5)
    assert abn.InPlaceABNSync(3, 1e-3, 0.2, True, "elu", 0.5, None).group is None
    assert "activation='elu', activation_param=0.5, weight_mode='abs'" in repr(
        abn.ABN(3, activation="elu", activation_param=0.5, weight_mode="abs")
    )


def test_only_the_in_place_classes_overwrite_their_input():
    x = torch.randn(4, 3, 5, 5)
    y = x.clone()
    abn.ABN(3)(y)
    assert torch.equal(x, y)
    assert abn.InPlaceABN(3)(y) is y
    y = x.clone()
    abn.InPlaceABN(3, activation="relu")(y)
    assert not torch.equal(x, y)


@pytest.mark.parametrize("momentum", [None, 0.3])
@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_statistics_over_several_batches(momentum, track, affine):
    arguments = {"momentum": momentum, "track_running_stats": track, "affine": affine}
    original, module = nn.BatchNorm2d(3, **arguments), abn.InPlaceABN(3, activation="identity", **arguments)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        x = torch.randn(4, 3, 5, 5, generator=generator)
        assert relative(module(x.clone()), original(x)) < 1e-6
    original.eval()
    module.eval()
    assert relative(module(x.clone()), original(x)) < 1e-6
    for found, expected in zip(module.buffers(), original.buffers(), strict=True):
        assert relative(found, expected) < 1e-6


def test_statistics_that_are_not_contiguous_are_updated():
    original, module = nn.BatchNorm2d(3), abn.InPlaceABN(3, activation="identity")
    for each in (original, module):
        each.running_mean, each.running_var = torch.zeros(3, 2)[:, 0], torch.ones(3, 2)[:, 1]
        each(torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)))
    for found, expected in zip(module.buffers(), original.buffers(), strict=True):
        assert relative(found, expected) < 1e-6


@pytest.mark.parametrize("slopes", [1, 3])
def test_prelu_has_a_slope_that_learns(slopes):
    module = abn.InPlaceABN(3, activation="prelu", activation_param=0.25, num_slopes=slopes)
    assert torch.equal(module.slope, torch.full((slopes,), 0.25))
    module(torch.randn(4, 3, 5, 5)).pow(2).sum().backward()
    assert module.slope.grad.shape == (slopes,)
    assert module.slope.grad.abs().min() > 0


def test_weight_mode_abs_is_the_meaning_of_the_reference_implementation():
    module = abn.InPlaceABN(2, weight_mode="abs", activation="identity").double()
    module.weight.data[:] = torch.tensor([-2.0, 3.0])
    x = torch.randn(5, 2, dtype=torch.float64)
    z = module(x.clone())
    expected = nn.functional.batch_norm(
        x, None, None, torch.tensor([2.0, 3.0]).double() + 1e-5, module.bias, True
    )
    assert relative(z, expected) < OUTPUT
    z.pow(2).sum().backward()
    assert module.weight.grad[0] < 0 < module.weight.grad[1]


def test_standard_weights_turn_a_checkpoint_into_one_for_every_batch_norm():
    theirs = nn.Sequential(nn.Conv2d(2, 3, 1), abn.InPlaceABN(3, weight_mode="abs"), abn.InPlaceABN(3))
    for module in theirs[1:]:
        nn.init.normal_(module.weight)
    state = theirs.state_dict()
    before = copy.deepcopy(state)
    converted = abn.standard_weights(state)
    assert all(torch.equal(state[key], before[key]) for key in state)
    assert torch.equal(converted["1.weight"], state["1.weight"].abs() + 1e-5)
    assert torch.equal(converted["0.weight"], state["0.weight"])
    some = abn.standard_weights(state, names=["2"])
    assert torch.equal(some["1.weight"], state["1.weight"])
    ours = nn.Sequential(nn.Conv2d(2, 3, 1), abn.InPlaceABN(3))
    ours.load_state_dict({key: value for key, value in converted.items() if not key.startswith("2.")})
    x = torch.randn(2, 2, 4, 4)
    assert relative(ours.eval()(x), theirs[:2].eval()(x)) < 1e-6
    with pytest.raises(ValueError, match="names: the state has no module 'bn1'"):
        abn.standard_weights(state, names=["bn1"])


def test_a_single_normalization_has_names_without_a_prefix():
    state = abn.InPlaceABN(2).state_dict()
    assert torch.equal(abn.standard_weights(state)["weight"], torch.full((2,), 1 + 1e-5))


@pytest.mark.parametrize("sync", [False, True])
def test_the_function_of_the_reference_implementation(sync):
    function = functions.inplace_abn_sync if sync else functions.inplace_abn
    module = randomize(abn.InPlaceABN(3, weight_mode="abs"))
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    mean, var = module.running_mean.clone(), module.running_var.clone()
    z = function(x.clone(), module.weight, module.bias, mean, var)
    assert relative(z, module(x.clone())) < OUTPUT
    assert torch.equal(mean, module.running_mean)
    z = function(x.clone(), module.weight, module.bias, mean, var, False, 0.1, 1e-5, "elu", 1.0)
    module.eval()
    module.activation, module.activation_param = "elu", 1.0
    assert relative(z, module(x.clone())) < OUTPUT


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activation": "swish"}, "activation must be one of identity, .*, got 'swish'"),
        ({"weight_mode": "exp"}, "weight_mode must be 'signed' or 'abs', got 'exp'"),
        ({"activation": "prelu", "num_slopes": 2}, "num_slopes must be 1 or num_features=3, got 2"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        abn.InPlaceABN(3, **arguments)


def test_wrong_activations_of_the_functions():
    arguments = (torch.zeros(4, 3), None, None, None, None)
    with pytest.raises(ValueError, match=r"activation must be one of identity, .*, got 'swish'"):
        functions.inplace_abn(*arguments, activation="swish")
    with pytest.raises(ValueError, match="activation 'prelu' needs slope"):
        functions.inplace_abn(*arguments, activation="prelu")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3,), r"x must have 2 to 5 dimensions, got shape \(3,\)"),
        ((2, 4, 5, 5), r"num_features=3 takes x of shape \(N, 3, ...\), got \(2, 4, 5, 5\)"),
        ((1, 3, 1, 1), "Expected more than 1 value per channel when training"),
    ],
)
def test_wrong_inputs(shape, message):
    with pytest.raises(ValueError, match=message):
        abn.InPlaceABN(3)(torch.zeros(shape))


def test_a_wrong_dtype_is_an_error_before_the_write():
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    before = x.clone()
    with pytest.raises(RuntimeError, match="dtype"):
        abn.InPlaceABN(3)(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("cls", CLASSES)
def test_modules_are_copied_and_pickled(cls):
    module = randomize(cls(3, activation="relu"))
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    expected = module(x.clone())
    for duplicate in (copy.deepcopy(module), torch.load(file, weights_only=False)):
        assert type(duplicate) is cls
        assert torch.equal(duplicate(x.clone()), expected)


@pytest.mark.parametrize("activation", ["leaky_relu", "elu", "identity"])
def test_timm_takes_the_functions_from_here(activation):
    pytest.importorskip("zoo")  # imports torchvision, which timm needs
    layers = pytest.importorskip("timm.layers")
    theirs = layers.InplaceAbn(3, act_layer=activation).double()
    module = abn.InPlaceABN(3, activation=activation, weight_mode="abs").double()
    theirs.weight.data[:] = module.weight.data[:] = torch.tensor([-1.0, 2.0, 0.5])
    results = []
    for layer in (theirs, module):
        x = torch.randn(4, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        z = layer(x.requires_grad_() * 1)
        z.pow(2).sum().backward()
        results.append([z.detach(), x.grad, layer.weight.grad, layer.running_var])
    assert max(map(relative, *results)) < GRADIENT


@pytest.mark.parametrize("name", ["batch_norm", "functions", "modules", "recipes", "weights"])
def test_examples(name):
    assert doctest.testmod(importlib.import_module(f"inplace_abn.torch.{name}")).failed == 0


def test_the_package_does_not_import_pytorch():
    code = "import sys, inplace_abn, inplace_abn.layers, inplace_abn.memory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("fake", "message"),
    [("None", "no module named 'torch' was found"), ("Old", "version 2.3.1 is installed")],
)
def test_a_missing_or_old_pytorch_is_named(fake, message):
    code = f"""
import sys, types
class Old(types.ModuleType):
    __version__ = "2.3.1"
    class torch_version:
        class TorchVersion(str):
            def __lt__(self, other):
                return tuple(int(n) for n in self.split(".")[:2]) < other
sys.modules["torch"] = {"None" if fake == "None" else "Old('torch')"}
try:
    import inplace_abn.torch
except ImportError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "inplace_abn.torch needs PyTorch 2.4 or newer: pip install 'torch>=2.4'" in run.stdout
    assert message in run.stdout
