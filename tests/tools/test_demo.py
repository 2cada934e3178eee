"""The demo: data, training, table, picture, command."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inplace_abn import demo
from inplace_abn.__main__ import main
from inplace_abn.demo import figure, peaks, report, tasks, training
from inplace_abn.memory import plot

for needed in demo.NEEDED:
    pytest.importorskip(needed, reason="the demo needs the extra 'demo'")

TASKS = list(tasks.TASKS)


def small(task, **options):
    """Return a setting that trains in a second."""
    setting = tasks.TASKS[task].setting(**{"quick": True, "epochs": 1, "batch_size": 16, **options})
    return replace(setting, widths=(4, 4))


# ---- data --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", demo.DTYPES)
@pytest.mark.parametrize("task", TASKS)
def test_batches(task, dtype):
    setting = small(task, dtype=dtype)
    data = setting.data()
    batches = list(data.batches(0))
    assert len(batches) == data.steps == 1437 // 16
    for images, targets in [batches[0], batches[-1], data.test]:
        assert images.shape == (len(images), 1, 32, 32)
        assert images.dtype == tasks.dtype_of(dtype)
        assert -1 <= images.min() < -0.8
        assert 0.8 < images.max() <= 1
        assert targets.shape == setting.task.target_shape(len(images), setting.size)
    assert batches[0][0].shape[0] == 16


@pytest.mark.parametrize("task", TASKS)
def test_batches_depend_on_seed_and_epoch(task):
    def first(seed, epoch):
        return next(iter(small(task, seed=seed).data().batches(epoch)))[0]

    assert np.array_equal(first(0, 0), first(0, 0))
    assert not np.array_equal(first(0, 0), first(0, 1))
    assert not np.array_equal(first(0, 0), first(1, 0))


def test_training_and_test_digits_are_disjoint():
    (train, _), (test, labels) = tasks.load()
    assert (len(train), len(test)) == (1437, 360)
    assert not {image.tobytes() for image in train} & {image.tobytes() for image in test}
    assert np.bincount(labels).min() >= 34  # balanced classes


def test_composed_images():
    (digits, labels), _ = tasks.load()
    images, targets = tasks.compose(tasks.enlarge(digits, 2), labels, 50, np.random.default_rng(0))
    assert set(np.unique(targets)) == {tasks.FAINT, *range(11)}
    assert images[targets > 0].mean() > 0.6 > 0.2 > images[targets == 0].mean()
    shares = [np.mean(targets == label) for label in (0, tasks.FAINT)]
    assert shares[0] > 0.5
    assert shares[1] < 0.2


def test_mean_intersection_over_union():
    targets = np.array([[[0, 0, 1], [1, tasks.FAINT, 1]]])
    scores = np.zeros((1, 3, 2, 3))
    scores[0, 1] = 1  # predicts class 1 everywhere: true for 3 of 5 pixels
    assert tasks.mean_iou(scores, targets) == pytest.approx((3 / 5 + 0) / 2)
    scores = np.moveaxis(np.eye(3)[np.where(targets < 0, 2, targets)], -1, 1)
    assert tasks.mean_iou(scores, targets) == 1


# ---- training ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_strategies_agree_in_float64(task):
    """The losses of 20 steps from the same weights on the same batches agree to rtol 1e-9."""
    setting = small(task, dtype="float64")
    batches = setting.data().batches(0)
    trainers = [training.Trainer(setting.network(strategy), 20) for strategy in demo.STRATEGIES]
    for (images, targets), _ in zip(batches, range(20), strict=False):
        first, *others = (trainer.step(images, targets) for trainer in trainers)
        assert others == pytest.approx([first] * len(others), rel=1e-9)
    assert first < 2.3


@pytest.fixture(scope="module")
def compared():
    """Return the setting and the runs of a short training with two strategies."""
    setting = small("classification", batch_size=128)
    return setting, training.compare(setting, ["standard", "inplace_2"], progress=False)


def test_runs(compared):
    setting, runs = compared
    for run in runs:
        assert len(run.losses) == 1437 // 128
        assert len(run.seconds) == len(run.losses) - training.RECORDED_STEP - 1
        assert len(run.scores) == setting.epochs
        assert run.ledger.live == 0
    standard, inplace = runs
    assert inplace.losses[0] == pytest.approx(standard.losses[0], rel=1e-5)
    assert inplace.ledger.kept <= 0.56 * standard.ledger.kept
    assert inplace.peaks["tracemalloc"] < 0.8 * standard.peaks["tracemalloc"]


def test_the_networks_of_the_demo_keep_about_half():
    """With the widths of the demo; smaller networks keep more."""
    for task in TASKS:
        setting = tasks.TASKS[task].setting(batch_size=2)
        kept = {}
        for strategy in demo.STRATEGIES:
            kept[strategy] = training.kept(setting, strategy)
        assert all(kept[s] <= 0.55 * kept["standard"] for s in demo.STRATEGIES if s != "standard"), kept


@pytest.mark.parametrize("task", TASKS)
def test_half_types_in_place_keep_about_a_quarter_of_standard_float32(task):
    """More than 25%, because scores and the arrays of the loss are float32 and int64."""
    setting = tasks.TASKS[task].setting(batch_size=2)
    standard = training.kept(setting, "standard")
    for dtype in ("bfloat16", "float16"):
        half = replace(setting, dtype=dtype)
        assert 0.25 * standard <= training.kept(half, "inplace_2") <= 0.27 * standard
        assert 0.5 * standard <= training.kept(half, "standard") <= 0.51 * standard


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_types_train_with_float32_weights(dtype):
    """The losses of 12 steps are near those of "standard" in float32."""
    found = {}
    for name, strategy in [("float32", "standard"), (dtype, "standard"), (dtype, "inplace_2")]:
        setting = small("classification", dtype=name)
        trainer = training.Trainer(setting.network(strategy), 12, name)
        batches = zip(setting.data().batches(0), range(12), strict=False)
        found[name, strategy] = [trainer.step(images, targets) for (images, targets), _ in batches]
        assert {parameter.data.dtype for parameter in trainer.net.parameters()} == {np.dtype(np.float32)}
        assert np.mean(found[name, strategy][-4:]) < found[name, strategy][0] - 0.15
    want = found.pop(("float32", "standard"))
    for losses in found.values():
        assert losses[0] == pytest.approx(want[0], rel=0.02)
        assert losses == pytest.approx(want, rel=0.15)


def test_the_table_of_a_half_type(compared):
    setting, runs = compared
    text = report.table(report.results(replace(setting, dtype="bfloat16"), runs))
    assert text.splitlines()[-1].startswith("standard in float32 keeps ")
    assert "; bfloat16 keeps of that: standard 100.0%, inplace_2 " in text


def test_too_few_steps():
    with pytest.raises(
        ValueError, match="training must have more than 3 steps, got 1: pass a smaller batch_size"
    ):
        training.compare(small("classification", batch_size=1000), ["standard"], progress=False)


def test_an_error_in_the_measuring_process_is_raised():
    setting = small("classification")
    with pytest.raises(
        RuntimeError, match=r"measuring the memory of 'nothing' failed:\n(.|\n)*strategy must be"
    ):
        peaks.in_separate_process(setting, "nothing")


# ---- results -----------------------------------------------------------------------------------------------


def test_table(compared):
    numbers = report.results(*compared)
    lines = report.table(numbers).splitlines()
    assert lines[0].startswith("digits: residual_network, 1 epoch, batches of 128, float32, ")
    assert lines[2].split("  ")[0] == "strategy"
    assert lines[4].startswith("standard ")
    assert lines[4].count("100.0%") >= 3
    assert lines[5].startswith("inplace_2 ")
    assert len({len(line) for line in lines[2:]}) == 1
    text = report.markdown(numbers).splitlines()
    assert len(text) == 4
    assert {line.count("|") for line in text} == {7}


def test_table_without_a_process_peak(compared):
    numbers = report.results(*compared)
    for row in numbers["strategies"].values():
        row["process"] = None
    assert "unknown" in report.table(numbers)


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_panels_of_the_picture(epochs, compared):
    """Bars after one or two epochs, then lines over whole epochs; the final values are written out."""
    from matplotlib.figure import Figure

    setting, runs = compared
    runs = [replace(run, scores=[0.25, 0.5, 0.75][:epochs]) for run in runs]
    looks = plot.styles([run.strategy for run in runs])
    losses, scores = Figure(figsize=(12, 5)).subplots(1, 2)
    figure.draw_losses(losses, runs, looks)
    figure.draw_scores(scores, setting, runs, looks)
    assert len(scores.patches) == (len(runs) if epochs <= 2 else 0)
    texts = [text.get_text() for text in scores.texts]
    final = f"{[0.25, 0.5, 0.75][epochs - 1]:.1%}"
    assert all(final in text for text in texts)
    assert len(texts) == len(losses.texts) == len(runs)
    assert scores.get_title("left") == f"Test accuracy of {final}"
    labels = [label.get_text() for label in losses.get_yticklabels() + scores.get_xticklabels()]
    assert not any("\\times" in label or "^" in label for label in labels)
    if epochs == 3:
        assert [tick for tick in scores.get_xticks() if 1 <= tick <= 3] == [1, 2, 3]


def test_ticks_of_losses_are_plain_numbers():
    from matplotlib.figure import Figure

    run = training.Run("standard", None, losses=list(np.geomspace(2.4, 0.03, 100)))
    ax = Figure().subplots()
    figure.draw_losses(ax, [run], plot.styles(["standard"]))
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["0.05", "0.1", "0.2", "0.5", "1", "2"]


def test_progress_without_a_terminal_is_a_line_for_each_epoch(capsys):
    setting = small("classification", batch_size=256, epochs=2)
    training.compare(setting, ["inplace_2"])
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0].split(",")[0] for line in lines] == [
        "memory of 1 strategy measured", "epoch 1/2", "epoch 2/2",
    ]  # fmt: skip
    assert "test accuracy" in lines[1]


def test_picture_and_numbers(compared, tmp_path):
    figure.draw(*compared, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    report.write(report.results(*compared), tmp_path / "numbers.json")
    numbers = json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8"))
    assert report.table(numbers) == report.table(report.results(*compared))


# ---- the command -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_command(task, tmp_path, capsys, monkeypatch):
    setting = small(task, batch_size=256)
    monkeypatch.setattr(tasks.Task, "setting", lambda self, **options: setting)
    picture = tmp_path / "new" / "picture.png"
    arguments = ["demo", "--task", task, "--strategy", "inplace", "--output", str(picture)]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "inplace_2" in out
    assert "scores differ by chance" not in out  # with one strategy
    assert str(picture) in out
    assert picture.exists()
    assert picture.with_suffix(".json").exists()


def test_output_may_be_a_folder(tmp_path):
    assert report.picture_path(tmp_path, "a.png") == tmp_path / "a.png"
    assert report.picture_path(None, "a.png") == Path("a.png")


@pytest.mark.parametrize(
    ("output", "message"),
    [("file/a.png", "is a file, not a folder"), ("a.xyz", "output must end in one of"), ("a", "must end in")],
)
def test_an_unusable_output_is_refused_before_the_training(output, message, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["demo", "--output", str(tmp_path / output)]) == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_too_large_a_batch_is_refused(tmp_path, capsys):
    assert main(["demo", "--batch-size", "1437", "--epochs", "1", "--output", str(tmp_path / "a.png")]) == 1
    assert capsys.readouterr().err.startswith("demo: training must have more than 3 steps, got 1")
    assert not [*tmp_path.iterdir()]


def test_options():
    options = demo.parse([])
    assert (options.task, options.dtype, options.strategy) == ("classification", "float32", demo.STRATEGIES)
    options = demo.parse(
        ["--epochs", "3", "--batch-size", "5", "--strategy", "standard", "--dtype", "float64"]
    )
    assert options.strategy == ["standard"]
    setting = tasks.TASKS["segmentation"].setting(
        quick=True, epochs=options.epochs, batch_size=options.batch_size, dtype=options.dtype
    )
    assert (setting.epochs, setting.batch_size, setting.dtype) == (3, 5, "float64")
    assert setting.network("standard")[-1].weight.data.dtype == np.float64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--strategy", "fast"], "invalid choice: 'fast'"),
        (["demo", "--epochs", "0"], "must be at least 1, got 0"),
        (["demo", "--batch-size", "many"], "must be a whole number, got 'many'"),
        (["demo", "--task", "speech"], "invalid choice: 'speech'"),
        ([], "COMMAND"),
    ],
)
def test_wrong_options(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_without_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert main(["demo"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("The demo needs sklearn: pip install 'inplace-abn-numpy[demo]', or in a checkout")


def test_help():
    done = subprocess.run(
        [sys.executable, "-m", "inplace_abn", "demo", "--help"], capture_output=True, text=True, check=True
    )
    for option in ("--quick", "--epochs", "--batch-size", "--strategy", "--dtype", "--output", "--task"):
        assert option in done.stdout


@pytest.mark.slow
def test_the_quick_demo_learns(tmp_path):
    command = [sys.executable, "-m", "inplace_abn", "demo", "--quick", "--output", str(tmp_path / "a.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    for row in numbers["strategies"].values():
        assert row["score"] > 0.9
