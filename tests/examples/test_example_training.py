"""The training loop of examples/training: a run that was stopped anywhere ends with the same bits."""

import csv
import re
import types

import numpy as np
import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", minversion="2.4")
pytest.importorskip("PIL")

import imagenet  # noqa: E402
import segmentation  # noqa: E402
import tiny_data_sets as tiny  # noqa: E402
from data.files import BadFile  # noqa: E402
from training import batches, checkpoint  # noqa: E402

torch.set_num_threads(1)  # tests run in parallel


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return a data set with 18 images for training and 5 for evaluation, of three classes."""
    return tiny.three_classes(tmp_path_factory.mktemp("folders"), 18, 5)


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    """Return a Cityscapes with 8 images for training and 3 for evaluation."""
    root = tmp_path_factory.mktemp("streets")
    for split, number in (("train", 8), ("val", 3)):
        labels = tiny.random_labels([0, 7, 8, 11], number, 12, 16)
        tiny.cityscapes(root, split, tiny.random_images(number, 12, 16), labels)
    return root


def arguments(root, output, *more):
    """Return the arguments of a run of the small model on small images."""
    common = [root, "--output", output, "--model", "small", "--crop", 8, "--workers", 0, "--epochs", 3]
    return [str(value) for value in [*common, "--log-every", 2, "--device", "cpu", *more]]


def classify(root, output, *more):
    """Run imagenet.py: 3 epochs of 4 steps of 4 images; checkpoints every 3 steps and after each epoch."""
    sizes = ["--evaluation-crop", 8, "--resize", 8, "--batch-size", 2, "--accumulate", 2]
    return imagenet.main(arguments(root, output, *sizes, "--checkpoint-every", 3, *more))


def segment(root, output, *more):
    """Run segmentation.py."""
    return segmentation.main(arguments(root, output, "--batch-size", 2, "--checkpoint-every", 3, *more))


def weights(folder):
    return torch.load(folder / "weights.pt", weights_only=True)


def rows(folder, name):
    """Return the rows of a log without the speed, which differs from run to run."""
    with open(folder / f"{name}.csv", newline="") as file:
        found = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if key != "images_per_second"} for row in found]


def assert_same_run(one, other):
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []
    for name in ("train", "validation"):
        assert rows(one, name) == rows(other, name)


class Stopped(Exception):
    """The run ends here, as if the process had been killed."""


def stop_at(monkeypatch, owner, name, number):
    """Let a function raise `Stopped` instead of running the given time, counted from 1."""
    original, calls = getattr(owner, name), iter(range(1, 1000))

    def replaced(*args, **kwargs):
        if next(calls) == number:
            raise Stopped
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, replaced)


@pytest.fixture(scope="module")
def unbroken(folders, tmp_path_factory):
    """Return the folder of a run without a stop, and its scores."""
    output = tmp_path_factory.mktemp("unbroken")
    return output, classify(folders, output)


STOPS = {
    "before the first checkpoint": (imagenet, "loss", 3),
    "in an accumulated batch": (imagenet, "loss", 14),
    "before a checkpoint replaces the last": (checkpoint.os, "replace", 2),
    "while a checkpoint is written": (checkpoint.os, "fsync", 7),
    "in the first evaluation": (imagenet, "evaluate", 1),
    "in the second evaluation": (imagenet, "evaluate", 2),
    "between the row of an evaluation and its checkpoint": (checkpoint.os, "replace", 6),
    "before the weights": (checkpoint.os, "replace", 10),
}


@pytest.mark.parametrize("stop", STOPS)
def test_a_stopped_run_ends_with_the_same_bits(folders, unbroken, tmp_path, monkeypatch, stop):
    with monkeypatch.context() as patched:
        stop_at(patched, *STOPS[stop])
        with pytest.raises(Stopped):
            classify(folders, tmp_path)
    assert not (tmp_path / "weights.pt").exists()
    checkpoint.seed_all(99)
    assert classify(folders, tmp_path) == unbroken[1]
    assert_same_run(unbroken[0], tmp_path)


def test_stops_again_and_again(folders, unbroken, tmp_path, monkeypatch):
    stops = 0
    while not (tmp_path / "weights.pt").exists():
        with monkeypatch.context() as patched:
            stop_at(patched, imagenet, "loss", 8)  # in the fourth step: there are three between checkpoints
            try:
                classify(folders, tmp_path)
            except Stopped:
                stops += 1
    assert stops > 2
    assert_same_run(unbroken[0], tmp_path)


def test_a_finished_run_stays_as_it_is(folders, unbroken):
    before = weights(unbroken[0])
    assert classify(folders, unbroken[0]) == unbroken[1]
    assert all(torch.equal(value, before[name]) for name, value in weights(unbroken[0]).items())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # of os.fork, from Python 3.12 on
def test_workers_change_no_bit(folders, unbroken, tmp_path):
    assert classify(folders, tmp_path, "--workers", 2) == unbroken[1]
    assert_same_run(unbroken[0], tmp_path)


@pytest.mark.parametrize(
    ("dataset", "write", "values"),
    [("vistas", tiny.vistas, range(4)), ("coco-stuff", tiny.coco_stuff, [0, 10, 12, 181, 255])],
)
def test_the_other_data_sets(tmp_path, dataset, write, values):
    for split, number in (("train", 4), ("val", 3)):
        labels = tiny.random_labels(values, number, 12, 16)
        write(tmp_path / "data", split, tiny.random_images(number, 12, 16), labels)
    more = "--dataset", dataset, "--epochs", 1, "--evaluation-side", 8
    scores = segment(tmp_path / "data", tmp_path / "run", *more)
    assert 0 < scores["mean_iou"] < 1
    classes = {"vistas": 2, "coco-stuff": 171}[dataset]
    assert weights(tmp_path / "run")["classifier.bias"].shape == (classes,)


@pytest.mark.parametrize("more", [("--autocast", "bfloat16"), ("--autocast", "float16"), ("--stock",)])
def test_stopped_segmentation_ends_with_the_same_bits(streets, tmp_path, monkeypatch, more):
    scores = segment(streets, tmp_path / "unbroken", *more)
    assert set(scores) == {"mean_iou", "pixels"}
    assert 0 < scores["mean_iou"] <= scores["pixels"] < 1
    with monkeypatch.context() as patched:
        stop_at(patched, segmentation, "loss", 8)
        with pytest.raises(Stopped):
            segment(streets, tmp_path / "stopped", *more)
    assert segment(streets, tmp_path / "stopped", *more) == scores
    assert_same_run(tmp_path / "unbroken", tmp_path / "stopped")


def test_other_settings_are_refused(folders, unbroken, tmp_path):
    path = unbroken[0] / "checkpoint.pt"
    with pytest.raises(SystemExit, match=rf"^{path} has learning_rate=0.1, this run learning_rate=0.2: use"):
        classify(folders, unbroken[0], "--learning-rate", 0.2)
    with pytest.raises(SystemExit, match="has activation=None, this run activation='leaky_relu'"):
        classify(folders, unbroken[0], "--activation", "leaky_relu")
    tiny.class_folders(tmp_path, "train", tiny.random_images(19), np.arange(19) % 3)
    tiny.class_folders(tmp_path, "val", tiny.random_images(3), np.arange(3))
    with pytest.raises(SystemExit, match="has images=18, this run images=19"):
        classify(tmp_path, unbroken[0])


def test_a_damaged_checkpoint_is_named(tmp_path):
    path = tmp_path / "checkpoint.pt"
    for content in (b"", b"no checkpoint", b"PK" + bytes(100)):
        path.write_bytes(content)
        with pytest.raises(SystemExit, match=f"(?s){re.escape(str(path))} cannot be read: .*; remove it to"):
            checkpoint.read(path)


def test_a_loss_that_is_not_finite_ends_the_run(folders, tmp_path):
    with pytest.raises(SystemExit, match="the loss is not finite in epoch 0, at or before step"):
        classify(folders, tmp_path, "--learning-rate", 1e30)


def test_the_summary_of_the_conversion_is_printed(folders, tmp_path, capsys):
    classify(folders, tmp_path, "--epochs", 1)
    assert capsys.readouterr().out.startswith("8 batch norms: 5 fused, 3 with residual")


def test_too_few_images_for_a_step(folders, tmp_path):
    with pytest.raises(SystemExit, match=r"^--batch-size: a step needs 200 samples .* set has 18$"):
        classify(folders, tmp_path, "--batch-size", 100)


def test_bad_images_are_named_and_skipped_only_if_asked(folders, tmp_path, capsys):
    for path in folders.rglob("*.JPEG"):
        copy = tmp_path / "images" / path.relative_to(folders)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    bad = [sorted((tmp_path / "images" / split).rglob("*.JPEG"))[2] for split in ("train", "val")]
    for path in bad:
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(
        SystemExit, match=rf"^{bad[0]}: cannot be read: (.|\n)*--skip-bad-files trains without"
    ):
        classify(tmp_path / "images", tmp_path / "run")
    classify(tmp_path / "images", tmp_path / "run", "--skip-bad-files")
    assert "2 bad files were skipped, see" in capsys.readouterr().out
    listed = (tmp_path / "run" / "bad_files.txt").read_text().splitlines()
    assert [line.split(": ")[0] for line in listed] == [str(path) for path in bad]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning-rate", "nan"], "--learning-rate: must be at least 0, got nan"),
        (["--momentum", "1.5"], "--momentum: must be at least 0 and at most 1, got 1.5"),
        (["--weight-decay", "much"], "--weight-decay: invalid number value: 'much'"),
        (["--smallest-crop", "5"], "--smallest-crop: must be at least 0 and at most 1, got 5"),
        (["--resize", "0"], "--resize: must be at least 1, got 0"),
        (["--output", __file__], "test_example_training.py is a file, expected a folder or a new name"),
    ],
)
def test_options_out_of_range_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        imagenet.parse([".", *arguments])
    assert message in capsys.readouterr().err


def test_an_activation_without_an_inverse_is_refused(folders, tmp_path):
    with pytest.raises(SystemExit, match=r"^--activation: activation must be None or one of .*, got 'relu6'"):
        classify(folders, tmp_path, "--activation", "relu6")


def test_tensorboard_hides_the_steps_after_the_checkpoint(folders, unbroken, tmp_path, monkeypatch):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with monkeypatch.context() as patched:
        stop_at(patched, imagenet, "loss", 16)
        with pytest.raises(Stopped):
            classify(folders, tmp_path, "--tensorboard")
    classify(folders, tmp_path, "--tensorboard")
    board = accumulators.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name, column in (("train", "loss"), ("validation", "top1")):
        logged = [(event.step, pytest.approx(event.value)) for event in board.Scalars(f"{name}/{column}")]
        assert logged == [(int(row["step"]), float(row[column])) for row in rows(unbroken[0], name)]


def test_memory_prints_the_ledger(tmp_path, capsys):
    for script, labels in ((imagenet, "classifier"), (segmentation, "classifier")):
        options = ["--memory", "--model", "small", "--crop", "16", "--batch-size", "8", "--device", "cpu"]
        assert script.main(options) is None
        printed = capsys.readouterr().out
        assert "batch: (8, 3, 16, 16)" in printed
        share = int(printed.split("% of it")[0].split()[-1])
        assert 40 <= share <= 70
        assert f"{labels} (Conv2d): input of convolution" in printed
    with pytest.raises(SystemExit):
        imagenet.main([])


def group(rank=0, size=1):
    return types.SimpleNamespace(rank=rank, size=size, device=torch.device("cpu"))


def options(**more):
    return types.SimpleNamespace(
        **{"batch_size": 3, "accumulate": 2, "seed": 0, "skip_bad_files": False, "workers": 0, **more}
    )


@pytest.mark.parametrize("epoch", [0, 5])
def test_processes_divide_the_batches_of_one_process(epoch):
    whole = batches.Order(50, options(batch_size=6), group())
    parts = [batches.Order(50, options(), group(rank, 2)) for rank in range(2)]
    for order in (whole, *parts):
        order.epoch = epoch
    joined = [one + two for one, two in zip(*parts, strict=True)]
    assert joined == list(whole)
    assert len(whole) == len(parts[0]) == 8
    samples = [index for batch in joined for _, index in batch]
    assert len(set(samples)) == len(samples) == 48
    everything = list(whole)
    whole.first = 3
    assert list(whole) == everything[3:]


class Numbers:
    """A reader of numbers; some cannot be read."""

    def __init__(self, size, bad=()):
        self._size, self._bad = size, bad

    def __len__(self):
        return self._size

    def __getitem__(self, index):
        if index in self._bad:
            raise BadFile(f"{index}: cannot be read")
        return index


def numbers(sample, rng):
    return np.array([sample], np.float32), np.int64(sample)


@pytest.mark.parametrize("size", [1, 3, 12])
def test_evaluation_has_every_sample_once(size):
    found = []
    for rank in range(size):
        problems, reader = {}, Numbers(11, bad=(4, 10))
        skipping = options(skip_bad_files=True)
        for images, labels in batches.EvaluationBatches(
            reader, numbers, skipping, group(rank, size), problems, 2
        ):
            assert (images[:, 0] == labels).all()
            found += labels.tolist()
    assert sorted(found) == [0, 1, 2, 3, 5, 6, 7, 8, 9]


def test_the_next_sample_replaces_a_bad_one():
    samples = batches.Samples(Numbers(3, bad=(1, 2)), numbers, 0, skip_bad_files=True, replace=True)
    (image, label), problems = samples[4, 1]
    assert image == label == 0
    assert problems == ["1: cannot be read", "2: cannot be read"]
    samples = batches.Samples(Numbers(2, bad=(0, 1)), numbers, 0, skip_bad_files=True, replace=True)
    with pytest.raises(BadFile, match=r"^all 2 samples are bad; the first: 1: cannot be read$"):
        samples[0, 1]


def test_mean_iou_of_known_labels():
    labels = torch.tensor([[0, 0, 1], [1, 2, 255]])
    predicted = torch.tensor([[0, 1, 1], [1, 1, 0]])
    counts = segmentation.confusion(predicted, labels, 4)
    assert counts.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    model = torch.nn.Identity()
    scores = torch.nn.functional.one_hot(predicted, 4).movedim(-1, 0)[None].double()
    group = types.SimpleNamespace(device="cpu", sum=lambda tensor: tensor)
    found = segmentation.evaluate(model, [(scores, labels[None])], group, 4)
    assert found == {"mean_iou": pytest.approx((1 / 2 + 2 / 4 + 0 + 0) / 3), "pixels": pytest.approx(3 / 5)}


def test_the_loss_of_ignored_pixels_is_zero():
    scores = torch.randn(1, 3, 2, 2, requires_grad=True)
    value = segmentation.loss({"out": scores, "aux": scores}, torch.full((1, 4, 4), 255))
    value.backward()
    assert value == 0
    assert (scores.grad == 0).all()
