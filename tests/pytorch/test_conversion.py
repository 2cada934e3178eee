"""`convert` on small models: which patterns are found, and the same results as the original's."""

import warnings

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", minversion="2.4")
nn, F = torch.nn, torch.nn.functional

from fused_nets import gradient_bound  # noqa: E402
from small_models import Block, chain, check, images  # noqa: E402
from zoo import prepare  # noqa: E402

from inplace_abn.torch import convert, report  # noqa: E402

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
