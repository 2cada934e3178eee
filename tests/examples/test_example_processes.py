"""The scripts of examples/ in processes of their own: killed, resumed, and several of them with torchrun."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", minversion="2.4")
pytest.importorskip("PIL")

import imagenet  # noqa: E402
import segmentation  # noqa: E402
import tiny_data_sets as tiny  # noqa: E402

import inplace_abn  # noqa: E402

torch.set_num_threads(1)
RUN = Path(__file__).with_name("run_example.py")

#: Kills the process in a step, without any clean-up.
KILL = """
import itertools, os, signal
from torch.nn import functional
original, calls = functional.cross_entropy, itertools.count(1)
def cross_entropy(*args, **options):
    if os.environ.get("RANK", RANK) == RANK and next(calls) == STEP:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **options)
functional.cross_entropy = cross_entropy
"""
#: Processes draw different random numbers; without dropout the results are those of one process.
NO_DROPOUT = "models.nn.Dropout.forward = lambda self, x: x"


def kill(step, rank=0):
    return f"STEP, RANK = {step}, '{rank}'\n{KILL}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return a data set with 26 images for training and 6 for evaluation, of three classes."""
    return tiny.three_classes(tmp_path_factory.mktemp("folders"), 26, 6)


def arguments(folders, output, *more):
    """Return the arguments of 2 epochs of small images, with a checkpoint every second step."""
    options = {
        "output": output, "model": "small", "crop": 8, "epochs": 2, "workers": 0, "checkpoint-every": 2,
        "log-every": 1, "learning-rate": 0.02, "device": "cpu",
    }  # fmt: skip
    values = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return [str(folders), *values, *map(str, more)]


#: Sizes of images for imagenet.py.
SIZES = "--evaluation-crop", 8, "--resize", 8


def run(code, script, *arguments, processes=1):
    """Run a script in a process, or by torchrun; return exit code and output."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [*command, str(RUN), code, script.__file__, *arguments], capture_output=True, text=True,
        check=False, timeout=300,
        env={**os.environ, "PYTHONPATH": str(Path(inplace_abn.__file__).parents[1])},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def weights(folder):
    return torch.load(folder / "weights.pt", weights_only=True)


def assert_equal(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    assert [name for name, value in one.items() if not torch.equal(value, other[name])] == []


def test_a_killed_process_ends_with_the_same_bits(folders, tmp_path, capsys):
    options = "--batch-size", 3, *SIZES
    code, output = run(kill(14), imagenet, *arguments(folders, tmp_path / "killed", *options))
    assert code == -signal.SIGKILL, output
    assert (tmp_path / "killed" / "checkpoint.pt").exists()
    assert not (tmp_path / "killed" / "weights.pt").exists()
    for name in ("killed", "unbroken"):
        imagenet.main(arguments(folders, tmp_path / name, *options))
        assert ("continues in epoch 1 after step 4" in capsys.readouterr().out) == (name == "killed")
    assert_equal(tmp_path / "killed", tmp_path / "unbroken")


def test_two_processes_are_one_with_the_whole_batch(folders, tmp_path, monkeypatch):
    options = "--accumulate", 2, *SIZES
    code, output = run(
        NO_DROPOUT, imagenet, *arguments(folders, tmp_path / "two", "--batch-size", 3, *options), processes=2
    )
    assert code == 0, output
    assert output.count("epoch 1, step 4, top1 ") == 1, output
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, x: x)
    scores = imagenet.main(arguments(folders, tmp_path / "one", "--batch-size", 6, *options))
    assert f"epoch 1, step 4, top1 {scores['top1']:.4g}" in output
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    errors = [(two[name] - value).abs().max() / value.abs().max() for name, value in one.items()]
    # Measured after 8 batches: a unit in the last place, 6e-8. Weights have moved by 1e-3.
    assert max(errors) < 3e-6


@pytest.mark.slow
def test_killed_processes_end_with_the_same_bits(tmp_path):
    """With three processes the order of sums matters."""
    for split, number in (("train", 26), ("val", 2)):  # one process evaluates nothing
        labels = tiny.random_labels([0, 7, 8, 11], number, 12, 16)
        tiny.cityscapes(tmp_path / "streets", split, tiny.random_images(number, 12, 16), labels)

    def segment(code, name):
        options = arguments(tmp_path / "streets", tmp_path / name, "--batch-size", 2, "--no-sync")
        return run(code, segmentation, *options, processes=3)

    code, output = segment("", "unbroken")
    assert code == 0, output
    code, output = segment(kill(8, 1), "killed")
    assert code != 0
    assert not (tmp_path / "killed" / "weights.pt").exists(), output
    code, output = segment("", "killed")
    assert code == 0, output
    assert "continues in epoch 1 after step 2" in output
    assert_equal(tmp_path / "killed", tmp_path / "unbroken")
