"""SGD and the cosine schedule: by hand and against PyTorch; state; refusals."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from inplace_abn.layers import Linear, Sequential
from inplace_abn.optim import SGD, CosineSchedule

SETTINGS = [
    {},
    {"weight_decay": 0.1},
    {"momentum": 0.9},
    {"momentum": 0.9, "weight_decay": 0.01},
    {"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.01},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
]


def parameters(dtype="float64"):
    rng = np.random.default_rng(0)
    return [
        SimpleNamespace(data=rng.standard_normal(shape).astype(dtype), grad=None, name=name)
        for name, shape in (("weight", (4, 3)), ("bias", (4,)), ("unused", (2,)))
    ]


def gradients(step):
    rng = np.random.default_rng(100 + step)
    # The second parameter has no gradient in the first steps.
    return rng.standard_normal((4, 3)), rng.standard_normal(4) if step > 1 else None, None


def train(steps, dtype="float64", **settings):
    trained = parameters(dtype)
    sgd = SGD(trained, 0.1, **settings)
    for step in range(steps):
        for parameter, grad in zip(trained, gradients(step), strict=True):
            parameter.grad = None if grad is None else grad.astype(dtype)
        sgd.step()
    return [parameter.data for parameter in trained], sgd


@pytest.mark.torch
@pytest.mark.parametrize(("dtype", "most"), [("float64", 1e-14), ("float32", 1e-5)])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_steps_are_those_of_torch(settings, dtype, most):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    tensors = [torch.nn.Parameter(torch.tensor(p.data.astype(np.float64))) for p in parameters(dtype)]
    theirs = torch.optim.SGD(tensors, lr=0.1, **settings)
    for step in range(6):
        for tensor, grad in zip(tensors, gradients(step), strict=True):
            tensor.grad = None if grad is None else torch.tensor(grad.astype(dtype).astype(np.float64))
        theirs.step()
    for ours, tensor in zip(train(6, dtype, **settings)[0], tensors, strict=True):
        np.testing.assert_allclose(ours, tensor.detach().numpy(), rtol=most, atol=most)
        assert ours.dtype == dtype


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_data_is_updated_in_place_and_gradients_stay(settings):
    parameter = SimpleNamespace(data=np.ones(3), grad=np.ones(3))
    data, grad = parameter.data, parameter.grad
    sgd = SGD([parameter], 0.5, **settings)
    for _ in range(3):
        sgd.step()
    assert parameter.data is data
    assert parameter.grad is grad
    assert (grad == 1).all()
    assert (data < 1).all()


def test_the_momentum_is_its_own_array():
    parameter = SimpleNamespace(data=np.ones(2), grad=np.ones(2))
    sgd = SGD([parameter], 0.5, momentum=0.5)
    sgd.step()
    parameter.grad[:] = 100  # an array that the next backward adds to
    assert (sgd.state_dict()["velocities"][0] == 1).all()


def test_the_step_size_may_change_on_the_way():
    parameter = SimpleNamespace(data=np.zeros(1), grad=np.ones(1))
    sgd = SGD([parameter], 1)
    sgd.step()
    sgd.lr = 10
    sgd.step()
    assert parameter.data == -11


def test_zero_grad():
    trained = parameters()
    trained[0].grad = np.ones((4, 3))
    SGD(trained, 0.1).zero_grad()
    assert all(parameter.grad is None for parameter in trained)


def test_training_goes_on_from_a_state():
    settings = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
    want, _ = train(5, **settings)
    data, first = train(3, **settings)
    trained = parameters()
    for parameter, values in zip(trained, data, strict=True):
        parameter.data = values
    sgd = SGD(trained, 0.7)
    sgd.load_state_dict(first.state_dict())
    for step in (3, 4):
        for parameter, grad in zip(trained, gradients(step), strict=True):
            parameter.grad = grad
        sgd.step()
    for parameter, values in zip(trained, want, strict=True):
        assert (parameter.data == values).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nesterov": None, "more": 1}, r"missing=\['nesterov'\] and unexpected=\['more'\]"),
        ({"velocities": [None]}, "state is of 1 parameters, here are 3"),
        (
            {"velocities": [None, np.zeros(3), None]},
            r"velocities\[1\] is of shape \(3,\), parameter \(bias\) of \(4,\)",
        ),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(changes, words):
    sgd = SGD(parameters(), 0.1)
    state = sgd.state_dict() | {"lr": 5.0} | changes
    state = {key: value for key, value in state.items() if value is not None}
    with pytest.raises(ValueError, match=words):
        sgd.load_state_dict(state)
    assert sgd.lr == 0.1


@pytest.mark.parametrize(
    ("arguments", "keywords", "kind", "words"),
    [
        (([], 0.1), {}, ValueError, "at least one parameter"),
        (([1.0], 0.1), {}, TypeError, r"parameters\[0\] must have data and grad, as those .*, got float"),
        (
            (Sequential(Linear(2, 2)), 0.1),
            {},
            TypeError,
            r"parameters must be what layer.parameters\(\) returns, .* got Sequential",
        ),
        ((Linear(2, 2), 0.1), {}, TypeError, r"layer.parameters\(\) returns, .* got Linear"),
        ((Linear(2, 2).parameters, 0.1), {}, TypeError, r"layer.parameters\(\) returns, .* got method"),
        ((Linear(2, 2).weight, 0.1), {}, TypeError, r"another iterable of Parameter, got Parameter"),
        ((None, -1), {}, ValueError, "lr must be at least 0, got -1"),
        ((None, math.nan), {}, ValueError, "lr must be finite"),
        ((None, "0.1"), {}, TypeError, "lr must be a number, got '0.1'"),
        ((None, "fast"), {}, TypeError, "lr must be a number, got 'fast'"),
        ((None, 0.1), {"momentum": -0.1}, ValueError, "momentum must be at least 0"),
        ((None, 0.1), {"weight_decay": math.inf}, ValueError, "weight_decay must be finite"),
        ((None, 0.1), {"nesterov": True}, ValueError, "nesterov needs a momentum above 0 and no dampening"),
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


def test_a_parameter_that_comes_twice_is_refused():
    one, two, _ = parameters()
    with pytest.raises(ValueError, match=r"parameters\[2\] \(weight\) is there twice"):
        SGD([one, two, one], 0.1)


def test_a_gradient_that_does_not_fit_is_refused_before_the_first_write():
    trained = parameters()
    before = trained[0].data.copy()
    trained[0].grad, trained[1].grad = np.ones((4, 3)), np.ones((1,))
    with pytest.raises(
        ValueError, match=r"parameters\[1\] \(bias\): grad of shape \(1,\) for data of shape \(4,\)"
    ):
        SGD(trained, 0.1).step()
    assert (trained[0].data == before).all()


# ---- the schedule ------------------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.parametrize("lr_min", [0.0, 0.01])
def test_the_schedule_is_that_of_torch(lr_min):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, 7, lr_min)
    ours = SGD(parameters(), 0.3)
    schedule = CosineSchedule(ours, 7, lr_min)
    for _ in range(7):
        assert abs(ours.lr - theirs.param_groups[0]["lr"]) < 1e-15
        theirs.step()
        annealing.step()
        schedule.step()
    schedule.step()
    assert ours.lr == lr_min


def test_the_schedule_may_begin_slowly():
    sgd = SimpleNamespace(lr=1.0)
    schedule = CosineSchedule(sgd, 2, warmup=3)
    seen = [sgd.lr]
    for _ in range(6):
        schedule.step()
        seen.append(sgd.lr)
    np.testing.assert_allclose(seen, [0.25, 0.5, 0.75, 1, 0.5, 0, 0], atol=1e-16)


@pytest.mark.parametrize(
    ("arguments", "keywords", "kind", "words"),
    [
        ((0,), {}, ValueError, "steps must be at least 1, got 0"),
        ((2.5,), {}, TypeError, r"steps must be an integer, got 2\.5"),
        ((3, -1), {}, ValueError, "lr_min must be at least 0"),
        ((3,), {"warmup": -1}, ValueError, "warmup must be at least 0, got -1"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(arguments, keywords, kind, words):
    sgd = SimpleNamespace(lr=1.0)
    with pytest.raises(kind, match=words):
        CosineSchedule(sgd, *arguments, **keywords)
    assert sgd.lr == 1.0
