"""SGD, Adam and AdamW: against PyTorch, parameter groups, half precision, refusals."""

import doctest
import importlib
import math
import pkgutil
from typing import ClassVar

import ml_dtypes
import numpy as np
import pytest
from optimizers import IDS, SETTINGS, gradients, groups, parameters, take

from inplace_abn import optim
from inplace_abn.layers import Conv2d, InPlaceABN, Linear, Parameter, Sequential
from inplace_abn.optim import SGD, Adam, AdamW, Optimizer, decay_groups

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
each = pytest.mark.parametrize(("kind", "settings"), SETTINGS, ids=IDS)


@pytest.mark.torch
@pytest.mark.parametrize(("dtype", "most"), [("float64", 1e-14), ("float32", 1e-5)])
@each
def test_steps_equal_torch(kind, settings, dtype, most):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    tensors = [torch.nn.Parameter(torch.tensor(p.data.astype(np.float64))) for p in parameters(dtype)]
    second = {"lr": 0.03, "weight_decay": 0.02}
    theirs = getattr(torch.optim, kind.__name__)(groups(tensors, **second), lr=0.1, **settings)
    for step in range(6):
        for tensor, grad in zip(tensors, gradients(step), strict=True):
            tensor.grad = None if grad is None else torch.tensor(grad.astype(dtype).astype(np.float64))
        theirs.step()
    ours = take(kind(groups(parameters(dtype), **second), lr=0.1, **settings), 6)
    for parameter, tensor in zip(ours.parameters, tensors, strict=True):
        np.testing.assert_allclose(parameter.data, tensor.detach().numpy(), rtol=most, atol=most)
        assert parameter.data.dtype == dtype
    names = {name for state in theirs.state.values() for name in state if state[name] is not None}
    assert {name.split(".")[-1] for name in ours.state_dict() if name.startswith("state.")} == names


@pytest.mark.torch
@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
def test_defaults_equal_torch(kind):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    theirs = getattr(torch.optim, kind.__name__)([torch.nn.Parameter(torch.zeros(1))]).defaults
    ours = kind(parameters()).defaults
    assert ours == {name: theirs[name] for name in ours}


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(optim.__path__)])
def test_docstring_examples(name):
    assert doctest.testmod(importlib.import_module(f"inplace_abn.optim.{name}")).failed == 0


def test_adam_with_equal_gradients_moves_by_lr():
    """For equal gradients of any size, each step is lr."""
    parameter = Parameter(np.zeros(2))
    adam = Adam([parameter], lr=0.1, eps=0)
    for step in range(1, 4):
        parameter.grad = np.array([1e-3, -7.0])
        adam.step()
        np.testing.assert_allclose(parameter.data, [-0.1 * step, 0.1 * step], rtol=1e-14)


def test_adamw_does_not_add_the_decay_to_the_gradient():
    decayed, plain = Parameter(np.ones(1)), Parameter(np.ones(1))
    decayed.grad = plain.grad = np.ones(1)
    AdamW([{"params": [decayed], "weight_decay": 0.5}, {"params": plain}], lr=0.1, weight_decay=0).step()
    assert decayed.data == pytest.approx(plain.data - 0.1 * 0.5)


@each
def test_data_is_updated_in_place_and_gradients_are_not_changed(kind, settings):
    parameter = Parameter(np.ones((3, 2)).T)
    data = parameter.data
    parameter.grad = grad = np.ones((2, 3))
    optimizer = kind([parameter], 0.5, **settings)
    for _ in range(3):
        optimizer.step()
    assert parameter.data is data
    assert parameter.grad is grad
    assert (grad == 1).all()
    assert (data < 1).all()


@each
def test_parameters_without_axes(kind, settings):
    scalar, vector = Parameter(np.array(1.0)), Parameter(np.array([1.0]))
    optimizer = kind([scalar, vector], 0.5, **settings)
    for step in range(3):
        scalar.grad, vector.grad = np.array(step - 0.5), np.array([step - 0.5])
        optimizer.step()
    assert scalar.data.shape == ()
    assert scalar.data == vector.data[0]
    assert scalar.data != 1


@each
def test_no_state_shares_memory_with_a_gradient(kind, settings):
    parameter = Parameter(np.ones(2))
    parameter.grad = np.ones(2)
    optimizer = kind([parameter], 0.5, **settings)
    optimizer.step()
    before = optimizer.state_dict()
    parameter.grad[:] = 100  # an array that the next backward adds to
    for name, array in optimizer.state_dict().items():
        assert (array == before[name]).all()


def test_frozen_parameters_are_not_updated():
    frozen, free = Parameter(np.ones(2)), Parameter(np.ones(2))
    frozen.grad = free.grad = np.ones(2)
    frozen.requires_grad = False
    sgd = SGD([frozen, free], 0.5, weight_decay=1.0)
    sgd.step()
    assert frozen.data.tolist() == [1, 1]
    assert free.data.tolist() == [0, 0]


def test_zero_grad():
    trained = parameters()
    trained[0].grad = np.ones((4, 3))
    SGD(trained, 0.1).zero_grad()
    assert all(parameter.grad is None for parameter in trained)


# ---- groups ------------------------------------------------------------------------------------------------


def test_groups_override_settings():
    one, two = Parameter(np.zeros(1)), Parameter(np.zeros(1))
    sgd = SGD([{"params": [one]}, {"params": iter([two]), "lr": 0.5}], lr=1.0)
    one.grad = two.grad = np.ones(1)
    sgd.step()
    assert (one.data, two.data) == (-1, -0.5)
    assert [group["lr"] for group in sgd.param_groups] == [1.0, 0.5]
    assert sgd.param_groups[1]["params"] == [two]
    sgd.param_groups[1]["lr"] = 0
    sgd.step()
    assert (one.data, two.data) == (-2, -0.5)


def test_a_group_may_be_added_later():
    one, two = Parameter(np.zeros(1)), Parameter(np.zeros(1))
    sgd = SGD([one], 1.0, momentum=0.5)
    one.grad = two.grad = np.ones(1)
    sgd.step()
    sgd.add_param_group({"params": [two], "momentum": 0.0})
    sgd.step()
    sgd.step()
    assert (one.data, two.data) == (-1 - 1.5 - 1.75, -2)
    with pytest.raises(ValueError, match=r"parameters\[2\] occurs twice"):
        sgd.add_param_group({"params": [one]})


def test_lr_is_the_rate_of_all_groups():
    sgd = SGD(groups(parameters(), lr=0.2), lr=0.1)
    with pytest.raises(ValueError, match=r"different learning rates, \[0\.1, 0\.2\]; read param_groups"):
        _ = sgd.lr
    sgd.lr = 1
    assert sgd.lr == 1.0
    with pytest.raises(ValueError, match="lr must be at least 0, got -1"):
        sgd.lr = -1


def test_decay_groups_exclude_parameters_with_one_axis():
    net = Sequential(Conv2d(1, 2, 3), InPlaceABN(2, activation="prelu"), Linear(2, 3))
    decayed, others = decay_groups(net, 0.1)
    assert [p.name for p in decayed["params"]] == ["0.weight", "2.weight"]
    assert [p.name for p in others["params"]] == ["0.bias", "1.weight", "1.bias", "1.slope", "2.bias"]
    sgd = SGD([decayed, others], lr=1.0)
    assert [group["weight_decay"] for group in sgd.param_groups] == [0.1, 0.0]
    assert len(decay_groups(InPlaceABN(2), 0.1)) == 1
    with pytest.raises(TypeError, match="network must be a Layer, got list"):
        decay_groups(net.parameters(), 0.1)


# ---- half precision ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BFLOAT16], ids=str)
@each
def test_half_parameters_are_rounded_from_a_float32_copy(kind, settings, dtype):
    half = parameters(dtype)
    data = [parameter.data for parameter in half]
    single = [Parameter(parameter.data.astype(np.float32)) for parameter in half]
    ours, theirs = kind(half, 1e-4, **settings), kind(single, 1e-4, **settings)
    for step in range(20):
        for one, two, grad in zip(half, single, gradients(step), strict=True):
            one.grad = None if grad is None else grad.astype(dtype)
            two.grad = None if grad is None else one.grad.astype(np.float32)
        ours.step()
        theirs.step()
    for one, two, array in zip(half, single, data, strict=True):
        assert one.data is array
        assert (one.data == two.data.astype(dtype)).all()
    state = ours.state_dict()
    assert state["state.0.master"].dtype == np.float32
    assert (state["state.0.master"] == single[0].data).all()
    assert "state.2.master" not in state


def test_small_steps_accumulate_in_half_precision():
    parameter = Parameter(np.ones(1, BFLOAT16))
    sgd = SGD([parameter], 1e-3)
    for _ in range(100):
        parameter.grad = np.ones(1, BFLOAT16)
        sgd.step()  # one by one, each step would be rounded away
    assert parameter.data == BFLOAT16.type(0.9)


def test_the_master_copy_follows_assignments_to_a_half_parameter():
    parameter = Parameter(np.ones(2, np.float16))
    sgd = SGD([parameter], 1e-4)
    parameter.grad = np.ones(2, np.float16)
    sgd.step()
    parameter.data[0] = 5
    sgd.step()
    master = sgd.state_dict()["state.0.master"]
    np.testing.assert_allclose(master, [5 - 1e-4, 1 - 2e-4], rtol=1e-6)
    assert parameter.data[0] == 5


# ---- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "keywords", "kind", "words"),
    [
        (([], 0.1), {}, ValueError, "at least one parameter"),
        (([{"params": []}], 0.1), {}, ValueError, "at least one parameter"),
        (
            ([1.0], 0.1),
            {},
            TypeError,
            r"parameters\[0\] must have data and grad, .* got float",
        ),
        ((Sequential(Linear(2, 2)), 0.1), {}, TypeError, r"layer.parameters\(\) returns, .* got Sequential"),
        ((Linear(2, 2).parameters, 0.1), {}, TypeError, r"layer.parameters\(\) returns, .* got method"),
        ((Linear(2, 2).weight, 0.1), {}, TypeError, r"another iterable of Parameter, .* got Parameter"),
        (([{"params": Linear(2, 2)}], 0.1), {}, TypeError, '"params" of a group must be .*, got Linear'),
        (({"params": []}, 0.1), {}, TypeError, r"list of groups; for one group pass \[\{"),
        (([{"lr": 1.0}], 0.1), {}, ValueError, r'must have the key "params", got \[\'lr\'\]'),
        (
            ([{"params": [], "rate": 1}], 0.1),
            {},
            ValueError,
            "SGD has no setting 'rate'; the settings are lr, mom",
        ),
        (([{"params": [], "lr": -1}], 0.1), {}, ValueError, "lr must be at least 0, got -1"),
        (([{"params": []}, 1.0], 0.1), {}, TypeError, "all groups or all parameters, got groups and 1.0"),
        ((None, -1), {}, ValueError, "lr must be at least 0, got -1"),
        ((None, math.nan), {}, ValueError, "lr must be finite"),
        ((None, "0.1"), {}, TypeError, "lr must be a number, got '0.1'"),
        ((None, 0.1), {"momentum": -0.1}, ValueError, "momentum must be at least 0"),
        ((None, 0.1), {"weight_decay": math.inf}, ValueError, "weight_decay must be finite"),
        (
            (None, 0.1),
            {"nesterov": True},
            ValueError,
            "nesterov requires a momentum above 0 and a dampening of 0",
        ),
        (
            (None, 0.1),
            {"nesterov": True, "momentum": 0.9, "dampening": 0.1},
            ValueError,
            r"got momentum=0\.9 and dampening=0\.1",
        ),
    ],
)
def test_settings_out_of_range_are_refused(arguments, keywords, kind, words):
    given = parameters() if arguments[0] is None else arguments[0]
    with pytest.raises(kind, match=words):
        SGD(given, arguments[1], **keywords)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"betas": 0.9}, r"betas must be two numbers, got 0\.9"),
        ({"betas": (0.9, 1.0)}, r"betas must be two numbers in \[0, 1\), got \(0\.9, 1\.0\)"),
        ({"eps": -1e-8}, "eps must be at least 0"),
    ],
)
def test_settings_of_adam_out_of_range_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Adam(parameters(), **settings)


def test_a_parameter_that_occurs_twice_is_refused():
    one, two, _ = parameters()
    net = Linear(2, 3)
    with pytest.raises(ValueError, match=r"parameters\[2\] occurs twice"):
        SGD([one, two, one], 0.1)
    with pytest.raises(ValueError, match=r"parameters\[2\] \(bias\) occurs twice"):
        SGD([{"params": net.parameters()}, {"params": [net.bias]}], 0.1)


@pytest.mark.parametrize(
    ("data", "grad", "kind", "words"),
    [
        (np.ones(4), np.ones(1), ValueError, r"parameters\[1\]: expected a grad of shape \(4,\), got \(1,\)"),
        (np.ones(4), np.ones(4, complex), TypeError, r"parameters\[1\]: grad of complex128 does not fit"),
        (np.ones(4, int), np.ones(4), TypeError, "data must be an array of float32, .* got int64"),
        (np.broadcast_to(1.0, 4), np.ones(4), ValueError, r"parameters\[1\]: data is read-only"),
    ],
)
def test_invalid_data_or_grad_is_refused_before_the_first_write(data, grad, kind, words):
    first, second = Parameter(np.ones((4, 3))), Parameter(data)
    first.grad, second.grad = np.ones((4, 3)), grad
    sgd = SGD([first, second], 0.1, momentum=0.9)
    with pytest.raises(kind, match=words):
        sgd.step()
    assert (first.data == 1).all()
    assert not [name for name in sgd.state_dict() if name.startswith("state.")]


def test_repr_shows_the_groups():
    text = repr(Adam(groups(parameters(), lr=0.2), 0.1))
    assert text.splitlines()[2].strip().startswith("2 parameters: lr=0.2, betas=(0.9, 0.999)")


def test_a_subclass_of_optimizer():
    class SignSGD(Optimizer):
        checks: ClassVar = {"lr": SGD.checks["lr"]}

        def update(self, data, grad, state, group):
            data -= group["lr"] * np.sign(grad)

    parameter = Parameter(np.ones(2, np.float16))
    optimizer = SignSGD([parameter], lr=0.5)
    parameter.grad = np.array([2, -3], np.float16)
    optimizer.step()
    assert parameter.data.tolist() == [0.5, 1.5]
