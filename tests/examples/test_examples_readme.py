"""The commands of examples/README.md fit the scripts, and its models exist."""

import re
import shlex
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", minversion="2.4")
pytest.importorskip("PIL")

import imagenet  # noqa: E402
import segmentation  # noqa: E402
from training import models  # noqa: E402
from without_operators import import_torchvision  # noqa: E402

import_torchvision()

README = Path(imagenet.__file__).with_name("README.md").read_text(encoding="utf-8")
SCRIPTS = {"imagenet": imagenet, "segmentation": segmentation}
COMMANDS = [
    (script, arguments)
    for block in re.findall(r"^```bash\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    for script, arguments in re.findall(r"examples/(\w+)\.py(.*)", block.replace("\\\n", " "))
]


@pytest.mark.parametrize(("script", "arguments"), COMMANDS)
def test_commands_are_accepted(script, arguments):
    chosen = SCRIPTS[script].parse(shlex.split(arguments))
    with torch.device("meta"):
        make = models.classifier if script == "imagenet" else models.segmenter
        model = make(chosen.model, 3)
    assert sum(parameter.numel() for parameter in model.parameters()) > 1e7


def test_the_readme_has_commands_of_both_scripts():
    assert len(COMMANDS) >= 10
    assert {script for script, _ in COMMANDS} == set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_short(script):
    assert len(Path(SCRIPTS[script].__file__).read_text(encoding="utf-8").splitlines()) <= 250


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the folder of the data set is missing"),
        (["x", "--stock", "--activation", "elu"], "--stock excludes --activation"),
        (["x", "--batch-size", "0"], "must be at least 1, got 0"),
        (["x", "--batch"], "unrecognized arguments"),
    ],
)
@pytest.mark.parametrize("script", SCRIPTS)
def test_wrong_options_are_named(script, arguments, message, capsys):
    with pytest.raises(SystemExit):
        SCRIPTS[script].parse(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (imagenet, ["--evaluation-crop", "320"], "--evaluation-crop 320 is larger than --resize 256"),
        (segmentation, ["--scales", "2", "1"], "--scales: expected a smaller and a larger number above 0"),
    ],
)
def test_wrong_sizes_are_named(script, arguments, message, capsys):
    with pytest.raises(SystemExit):
        script.parse(["x", *arguments])
    assert message in capsys.readouterr().err
