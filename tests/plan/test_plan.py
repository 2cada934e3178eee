"""`inplace_abn.plan`: budgets, limits, advice, files and refusals."""

import json

import numpy as np
import pytest

import inplace_abn
from inplace_abn import layers, models
from inplace_abn._plan import limits
from inplace_abn._plan.step import planner_of

SHAPE = (4, 3, 32, 32)


def small(**style):
    return models.residual_network(3, 10, widths=(8, 16), rng=0, **style)


@pytest.fixture(scope="module")
def planned():
    return inplace_abn.plan(small(), SHAPE, budget="8MiB", strategies=("standard", "checkpoint", "inplace"))


def test_each_strategy_but_standard_keeps_one_array(planned):
    kept = {one.strategy: one.step.kept for one in planned.strategies}
    assert list(kept) == ["standard", "checkpoint", "inplace"]
    assert max(kept["checkpoint"], kept["inplace"]) < 0.6 * kept["standard"]


@pytest.mark.parametrize("strategy", ["standard", "inplace"])
def test_the_largest_batch_and_size_fit_and_the_next_do_not(planned, strategy):
    planner, found = planner_of(small(), strategy, SHAPE), planned[strategy]
    n, (height, width) = found.largest_batch, found.largest_size
    assert planner.step((n, *SHAPE[1:])).peak <= planned.budget < planner.step((n + 1, *SHAPE[1:])).peak
    assert height == width
    assert planner.step((*SHAPE[:2], height, width)).peak <= planned.budget
    assert planned.budget < planner.step((*SHAPE[:2], height + 32, width + 32)).peak


def test_the_network_is_not_changed():
    net = small(strategy="standard").eval()
    before = {name: array.copy() for name, array in net.state_dict().items()}
    inplace_abn.plan(net, SHAPE, strategies=("inplace",), advice=False)
    assert not net.training
    assert all(np.array_equal(array, before[name]) for name, array in net.state_dict().items())
    assert net.last_call is None
    assert {layer.strategy for _, layer in net.named_layers() if isinstance(layer, layers.ABN)} == {
        "standard"
    }


def test_advice_lists_changes_with_what_they_save(planned):
    first, *others = planned.advice
    assert 'strategy="inplace"' in first.change
    assert first.time <= 1e-3
    assert [one.rate for one in planned.advice] == sorted((one.rate for one in planned.advice), reverse=True)
    assert any("stage1 again" in one.change and one.time > 0 for one in others)
    standard = planned["standard"].step
    assert all(one.saves == standard.peak - one.peak > 0 for one in planned.advice)
    assert first.peak == planned["inplace"].step.peak


def test_advice_is_what_the_change_saves():
    net = models.resnet(3, 10, (1, 1), width=8, rng=0)
    found = inplace_abn.plan(net, (4, 3, 64, 64), strategies=("inplace",))
    change = next(one for one in found.advice if one.change.startswith("run stem again"))
    changed = models.resnet(3, 10, (1, 1), width=8, rng=0, recompute_stem=True)
    assert planner_of(changed, None, (4, 3, 64, 64)).step((4, 3, 64, 64)).peak == change.peak
    assert any("projections" in one.change for one in found.advice)


def test_what_does_not_fit_says_by_how_much_and_what_helps():
    shape = (2, 3, 64, 64)
    peaks = {
        name: planner_of(small(), name, shape).step((1, *shape[1:])).peak for name in ("standard", "inplace")
    }
    budget = (peaks["standard"] + peaks["inplace"]) // 2
    found = inplace_abn.plan(small(), shape, budget=f"{budget}B", strategies=("standard", "inplace"))
    reason = found["standard"].reason
    assert found["standard"].largest_batch is None
    assert "more than the budget" in reason
    assert '"inplace" fits 1 sample;' in reason
    assert "images of 32 x 32 fit" in reason
    assert "saves" in reason
    assert reason in str(found)


def test_a_strategy_that_the_activation_refuses_is_explained():
    found = inplace_abn.plan(small(activation="relu", strategy="standard"), SHAPE, advice=False)
    assert found["inplace"].step is None
    assert "no inverse" in found["inplace"].reason
    assert found["pre_activation"].step.kept < found["standard"].step.kept


def test_none_is_the_network_as_it_is():
    net = small(strategy="checkpoint")
    found = inplace_abn.plan(net, SHAPE, strategies=(None, "checkpoint"), advice=False)
    assert found["as it is"].step.kept == found["checkpoint"].step.kept


def test_names_and_functions_are_networks():
    by_name = inplace_abn.plan("residual_network", SHAPE, strategies=("inplace",), classes=10, advice=False)
    made = inplace_abn.plan(
        lambda strategy: models.residual_network(3, 10, strategy=strategy), SHAPE, strategies=("inplace",),
        advice=False,
    )  # fmt: skip
    assert by_name["inplace"].step.peak == made["inplace"].step.peak


@pytest.mark.parametrize(
    ("optimizer", "factor"), [("sgd", 1), ("adam", 2), (None, 0), (inplace_abn.optim.SGD, 0)]
)
def test_the_state_of_the_optimizer(optimizer, factor):
    net = small()
    step = (
        inplace_abn.plan(net, SHAPE, optimizer=optimizer, strategies=(None,), advice=False).strategies[0].step
    )
    assert step.state == pytest.approx(factor * step.parameters, rel=0.02)
    assert step.parameters == sum(parameter.data.nbytes for parameter in net.parameters())


def test_files(planned, tmp_path):
    described = json.loads(planned.to_json(tmp_path / "plan.json"))
    assert described == json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    assert described["strategies"][0]["kept_by_role"]["x"] > 0
    assert described["strategies"][0]["peak"] == planned["standard"].step.peak
    page = planned.to_html(tmp_path / "plan.html")
    assert (tmp_path / "plan.html").read_text(encoding="utf-8") == page
    assert page.count("<polyline") == len(planned.strategies)
    assert "budget 8.0 MiB" in page
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    ax = planned.plot()
    written = [text.get_text() for text in ax.texts]
    for strategy in planned.strategies:
        assert any(text.startswith(f"{strategy.strategy}: ") for text in written)
    assert "budget" in written
    share = planned["inplace"].step.peak / planned["standard"].step.peak
    assert ax.get_title(loc="left").startswith(
        f"In place, the peak is {share:.0%} of that of standard layers"
    )
    matplotlib.pyplot.close(ax.figure)


# ---- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [16, "16", "16 XB", "GiB", "-1GiB", 1.5])
def test_a_budget_without_a_unit_is_refused(budget):
    with pytest.raises(ValueError, match="budget: expected a number with a unit, such as '16GiB'"):
        inplace_abn.plan(small(), SHAPE, budget=budget)


@pytest.mark.parametrize("budget", ["0GiB", "0.0 MB", "0.2B"])
def test_a_budget_of_nothing_is_refused(budget):
    with pytest.raises(ValueError, match=f"budget must be at least 1 byte, got '{budget}'"):
        inplace_abn.plan(small(), SHAPE, budget=budget)


def test_units():
    assert limits.budget_of("1.5 KiB") == 1536
    assert limits.budget_of("2gb") == 2 * 10**9


class Sorted(layers.Layer):
    """A layer that needs the values of its input."""

    def forward(self, ctx, x):
        return np.sort(x, axis=-1)

    def gradients(self, ctx, dz, *, overwrite=False):
        return dz


def test_a_layer_that_cannot_be_followed_is_named_with_its_path():
    net = layers.Sequential({"body": layers.Sequential(layers.Conv2d(3, 4, 1), Sorted())})
    with pytest.raises(TypeError, match=r"body\.1 \(Sorted\): a plan has no rule for NumPy's sort"):
        inplace_abn.plan(net, SHAPE)


class Scaled(layers.Layer):
    """A layer of NumPy's functions."""

    def forward(self, ctx, x):
        ctx.save_for_backward(input=x)
        return np.tanh(x) * 2

    def gradients(self, ctx, dz, *, overwrite=False):
        return 2 * dz * (1 - np.tanh(ctx.saved["input"]) ** 2)


def test_a_layer_of_numpy_functions_is_followed():
    net = layers.Sequential(Scaled(), layers.Conv2d(3, 4, 1))
    step = inplace_abn.plan(net, SHAPE, loss=None, strategies=(None,), advice=False).strategies[0].step
    assert step.by_layer == {"0 (Scaled)": 4 * 3 * 32 * 32 * 4, "1 (Conv2d)": 4 * 3 * 32 * 32 * 4}


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="input_shape: expected the shape of a batch"):
        inplace_abn.plan(small(), "3x32x32")
    with pytest.raises(ValueError, match="network"):
        inplace_abn.plan("resnet51", SHAPE)
    with pytest.raises(TypeError, match="network: expected a Layer"):
        inplace_abn.plan(3, SHAPE)
    with pytest.raises(ValueError, match="optimizer"):
        inplace_abn.plan(small(), SHAPE, optimizer="lion")
    with pytest.raises(ValueError, match="strategies"):
        inplace_abn.plan(small(), SHAPE, strategies=("in place",))
    with pytest.raises(ValueError, match="classes: residual_network has no default"):
        inplace_abn.plan("residual_network", SHAPE)
    with pytest.raises(ValueError, match="C = 3"):
        inplace_abn.plan(small(), (4, 1, 32, 32))
    with pytest.raises(KeyError, match="planned are standard"):
        inplace_abn.plan(small(), SHAPE, strategies=("standard",), advice=False)["inplace"]
