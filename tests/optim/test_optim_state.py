"""States of optimizers, schedules and scalers: flat dictionaries of arrays, resuming, refusals."""

import ml_dtypes
import numpy as np
import pytest
from optimizers import IDS, SETTINGS, groups, parameters, take

from inplace_abn.layers import Linear, Parameter
from inplace_abn.optim import SGD, Adam, CosineSchedule, GradScaler

each = pytest.mark.parametrize(("kind", "settings"), SETTINGS, ids=IDS)


def same(one, two):
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@each
def test_a_resumed_run_is_bitwise_equal(kind, settings, dtype, tmp_path):
    dtype = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    whole = take(kind(groups(parameters(dtype), lr=0.02), lr=0.1, **settings), 7)
    first = take(kind(groups(parameters(dtype), lr=0.02), lr=0.1, **settings), 3)
    np.savez(tmp_path / "optimizer.npz", **first.state_dict())
    copies = [Parameter(parameter.data.copy()) for parameter in first.parameters]
    second = kind(groups(copies), lr=0.5)
    with np.load(tmp_path / "optimizer.npz", allow_pickle=False) as state:
        second.load_state_dict(state)
    take(second, 4, first=3)
    assert same(second.state_dict(), whole.state_dict())
    for one, two in zip(second.parameters, whole.parameters, strict=True):
        assert (one.data == two.data).all()
    assert [{**group, "params": 0} for group in second.param_groups] == [
        {**group, "params": 0} for group in whole.param_groups
    ]


def test_the_state_is_flat_and_named_as_in_torch():
    state = take(Adam(groups(parameters(), lr=0.02), lr=0.1), 3).state_dict()
    assert all(isinstance(array, np.ndarray) and array.dtype != object for array in state.values())
    assert list(state)[:6] == [
        "groups.0.lr", "groups.0.betas", "groups.0.eps", "groups.0.weight_decay", "groups.0.amsgrad",
        "groups.0.params",
    ]  # fmt: skip
    assert state["groups.1.params"].tolist() == [1, 2]
    assert [name for name in state if name.startswith("state.")] == [
        "state.0.step", "state.0.exp_avg", "state.0.exp_avg_sq",
        "state.1.step", "state.1.exp_avg", "state.1.exp_avg_sq",
    ]  # fmt: skip
    assert state["state.1.step"] == 1


def test_a_state_is_a_copy():
    optimizer = take(Adam(parameters()), 2)
    state = optimizer.state_dict()
    kept = {name: array.copy() for name, array in state.items()}
    take(optimizer, 1, first=2)
    assert same(state, kept)
    optimizer.load_state_dict(state)
    take(optimizer, 1, first=2)
    assert same(state, kept)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"groups.0.nesterov": None, "more": 1},
            r"missing=\['groups.0.nesterov'\] and unexpected=\['more'\]",
        ),
        ({"groups.2.lr": 1.0}, r"unexpected=\['groups.2.lr'\] names for SGD with 2 parameter groups"),
        ({"groups.0.lr": -1.0}, r"groups.0.lr must be at least 0, got -1\.0"),
        ({"groups.0.nesterov": True}, "nesterov requires a momentum above 0"),
        (
            {"groups.1.params": [1, 2, 3]},
            r"groups.1.params: expected the parameters \[1, 2\], got \[1, 2, 3\]",
        ),
        (
            {"state.1.momentum_buffer": np.zeros(3)},
            r"state.1.momentum_buffer \(bias\): expected shape \(4,\), got \(3,\)",
        ),
        ({"state.0.momentum_buffer": np.zeros((4, 3), complex)}, "complex128 does not fit into float64"),
        ({"state.7.momentum_buffer": np.zeros(3)}, "unexpected name 'state.7.momentum_buffer', with 3 param"),
        ({"state.0.exp_avg": np.zeros((4, 3))}, "state.0.exp_avg: SGD has no 'exp_avg'"),
        ({"state.0.master": np.zeros((4, 3))}, "SGD has no 'master' for a parameter of float64"),
    ],
)
def test_a_refused_state_changes_nothing(changes, words):
    net = Linear(3, 4, dtype=np.float64)
    sgd = take(SGD([{"params": [net.weight]}, {"params": [net.bias, Parameter(np.ones(2))]}], 0.1), 3)
    before = sgd.state_dict()
    state = before | {"groups.0.lr": np.array(5.0)} | changes
    state = {key: value for key, value in state.items() if value is not None}
    with pytest.raises(ValueError, match=words):
        sgd.load_state_dict(state)
    assert same(sgd.state_dict(), before)


def test_an_incomplete_state_of_adam_is_refused():
    adam = take(Adam(parameters()), 3)
    state = adam.state_dict()
    del state["state.0.exp_avg"]
    with pytest.raises(ValueError, match=r"state\.0: missing exp_avg"):
        adam.load_state_dict(state)
    state = adam.state_dict() | {"groups.0.amsgrad": np.array(True)}
    with pytest.raises(ValueError, match=r"state\.0: missing max_exp_avg_sq"):
        adam.load_state_dict(state)
    with pytest.raises(TypeError, match="state must be a mapping of names to arrays"):
        adam.load_state_dict([1])


# ---- the schedule ------------------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.parametrize("lr_min", [0.0, 0.01])
def test_the_schedule_equals_torch(lr_min):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    tensors = [torch.nn.Parameter(torch.zeros(1)) for _ in range(3)]
    theirs = torch.optim.SGD(groups(tensors, lr=0.1), lr=0.3)
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, 7, lr_min)
    ours = SGD(groups(parameters(), lr=0.1), 0.3)
    schedule = CosineSchedule(ours, 7, lr_min)
    for _ in range(7):
        for mine, yours in zip(ours.param_groups, theirs.param_groups, strict=True):
            assert abs(mine["lr"] - yours["lr"]) < 1e-15
            assert mine["initial_lr"] == yours["initial_lr"]
        theirs.step()
        annealing.step()
        schedule.step()
    schedule.step()
    assert ours.lr == lr_min


def test_warmup():
    sgd = SGD(parameters(), lr=1.0)
    schedule = CosineSchedule(sgd, 2, warmup=3)
    seen = [sgd.lr]
    for _ in range(6):
        schedule.step()
        seen.append(sgd.lr)
    np.testing.assert_allclose(seen, [0.25, 0.5, 0.75, 1, 0.5, 0, 0], atol=1e-16)
    assert [schedule.lr_at(step) for step in range(7)] == [[rate] for rate in seen]


def rates(schedule, steps):
    found = []
    for _ in range(steps):
        schedule.step()
        found.append([group["lr"] for group in schedule.optimizer.param_groups])
    return found


def begin(**settings):
    sgd = SGD(groups(parameters(), lr=0.1), 0.3)
    return sgd, CosineSchedule(sgd, 10, **settings)


@pytest.mark.parametrize("order", ["schedule built first", "optimizer loaded first"])
def test_a_resumed_schedule_does_not_start_from_the_decayed_rate(order, tmp_path):
    sgd, schedule = begin(lr_min=0.01, warmup=2)
    rates(schedule, 6)
    np.savez(tmp_path / "sgd.npz", **sgd.state_dict())
    np.savez(tmp_path / "schedule.npz", **schedule.state_dict())
    want = [group["lr"] for group in sgd.param_groups], rates(schedule, 8)

    resumed = SGD(groups(parameters()), 7.0)
    built = CosineSchedule(resumed, 3) if order == "schedule built first" else None
    with np.load(tmp_path / "sgd.npz") as state:
        resumed.load_state_dict(state)
    built = CosineSchedule(resumed, 3) if built is None else built
    with np.load(tmp_path / "schedule.npz") as state:
        built.load_state_dict(state)
    assert ([group["lr"] for group in resumed.param_groups], rates(built, 8)) == want


def test_a_new_schedule_on_a_loaded_optimizer_starts_from_the_first_rate():
    sgd, schedule = begin()
    rates(schedule, 5)
    resumed = SGD(groups(parameters()), 7.0)
    resumed.load_state_dict(sgd.state_dict())
    assert CosineSchedule(resumed, 10).base_lrs == [0.3, 0.1]
    resumed.lr = 0.05
    assert CosineSchedule(resumed, 10).base_lrs == [0.05, 0.05]


def test_a_group_that_is_added_after_the_schedule_is_refused():
    sgd, schedule = begin()
    sgd.add_param_group({"params": [Parameter(np.ones(1))]})
    with pytest.raises(ValueError, match="optimizer has 3 parameter groups, the schedule was built for 2"):
        schedule.step()


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"taken": None, "more": 1}, ValueError, r"missing=\['taken'\] and unexpected=\['more'\]"),
        ({"taken": np.array(-1)}, ValueError, "taken must be at least 0, got -1"),
        ({"base_lrs": np.array([1.0])}, ValueError, "base_lrs: expected 2 groups, got 1"),
        ({"base_lrs": np.array(1.0)}, TypeError, r"base_lrs must be a list of numbers, got 1\.0"),
    ],
)
def test_a_refused_state_changes_no_schedule(changes, kind, words):
    _, schedule = begin()
    rates(schedule, 3)
    before = schedule.state_dict()
    state = {key: value for key, value in (before | {"steps": 77} | changes).items() if value is not None}
    with pytest.raises(kind, match=words):
        schedule.load_state_dict(state)
    assert same(schedule.state_dict(), before)


@pytest.mark.parametrize(
    ("arguments", "keywords", "kind", "words"),
    [
        ((0,), {}, ValueError, "steps must be at least 1, got 0"),
        ((2.5,), {}, TypeError, r"steps must be an integer, got 2\.5"),
        ((3, -1), {}, ValueError, "lr_min must be at least 0"),
        ((3,), {"warmup": -1}, ValueError, "warmup must be at least 0, got -1"),
    ],
)
def test_settings_of_a_schedule_out_of_range_are_refused(arguments, keywords, kind, words):
    sgd = SGD(parameters(), 1.0)
    with pytest.raises(kind, match=words):
        CosineSchedule(sgd, *arguments, **keywords)
    assert sgd.lr == 1.0
    assert "initial_lr" not in sgd.param_groups[0]


# ---- the scaler --------------------------------------------------------------------------------------------


def scaled_step(scaler, optimizer, grad):
    (parameter,) = optimizer.parameters
    parameter.grad = np.array([grad * scaler.scale], parameter.data.dtype)
    return scaler.step(optimizer)


def test_the_scale_shrinks_after_an_overflow_and_grows_after_many_steps():
    sgd, scaler = SGD([Parameter(np.zeros(1))], 1.0), GradScaler(8.0, growth_interval=3)
    assert scaled_step(scaler, sgd, 1.0)
    assert sgd.parameters[0].data == -1
    assert not scaled_step(scaler, sgd, np.inf)
    assert not scaled_step(scaler, sgd, np.nan)
    assert sgd.parameters[0].data == -1
    assert (scaler.scale, scaler.good_steps) == (2.0, 0)
    assert all(scaled_step(scaler, sgd, 1.0) for _ in range(3))
    assert (scaler.scale, scaler.good_steps) == (4.0, 0)
    assert sgd.parameters[0].data == -4


def test_gradients_of_half_parameters_do_not_underflow():
    parameter = Parameter(np.zeros(1, np.float16))
    assert scaled_step(GradScaler(2.0**16), SGD([parameter], 1.0), 2.0**-30)
    assert parameter.grad.dtype == np.float32
    assert parameter.grad == 2.0**-30  # float16 has no number between 0 and 2 ** -24


def test_the_state_of_a_scaler():
    scaler, other = GradScaler(8.0, growth_interval=3), GradScaler()
    scaled_step(scaler, SGD([Parameter(np.zeros(1))], 1.0), 1.0)
    other.load_state_dict(scaler.state_dict())
    assert vars(other) == vars(scaler)
    with pytest.raises(ValueError, match="scale must be greater than 0, got 0"):
        other.load_state_dict({**scaler.state_dict(), "scale": np.array(0.0), "good_steps": np.array(2)})
    assert vars(other) == vars(scaler)


def test_settings_of_a_scaler_out_of_range_are_refused():
    with pytest.raises(ValueError, match="backoff_factor must be in"):
        GradScaler(backoff_factor=2)


@pytest.mark.torch
def test_the_scaler_equals_torch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    theirs = torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=2)
    tensor = torch.nn.Parameter(torch.zeros(1))
    step, parameter = torch.optim.SGD([tensor], 1.0), Parameter(np.zeros(1, np.float32))
    sgd, ours = SGD([parameter], 1.0), GradScaler(16.0, growth_interval=2)
    for grad in (1.0, np.inf, 1.0, 1.0, 2.0, np.nan, 1.0):
        tensor.grad = torch.tensor([grad]) * theirs.scale(torch.tensor(1.0))
        theirs.step(step)
        theirs.update()
        scaled_step(ours, sgd, grad)
        assert (ours.scale, float(parameter.data[0])) == (theirs.get_scale(), tensor.item())
