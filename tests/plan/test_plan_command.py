"""``python -m inplace_abn plan``."""

import json

import pytest

from inplace_abn.__main__ import main

ARGUMENTS = ["plan", "residual_network", "--input", "3x32x32", "--batch", "4", "--classes", "10"]


def test_it_prints_the_table_and_writes_the_files(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    files = {name: str(tmp_path / f"plan.{name}") for name in ("json", "html", "svg")}
    status = main([
        *ARGUMENTS, "--budget", "32MiB", "--strategy", "standard", "--strategy", "inplace",
        "--json", files["json"], "--html", files["html"], "--plot", files["svg"],
    ])  # fmt: skip
    printed = capsys.readouterr().out
    assert status == 0
    assert printed.startswith(
        "residual_network: a training step for 4 x 3 x 32 x 32, float32, budget 32.0 MiB"
    )
    assert "largest batch" in printed
    assert "What to change next, from standard:" in printed
    described = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    assert [one["strategy"] for one in described["strategies"]] == ["standard", "inplace"]
    assert "<svg" in (tmp_path / "plan.html").read_text(encoding="utf-8")
    assert "<svg" in (tmp_path / "plan.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "16"], "budget: expected a number with a unit"),
        (["--input", "224x224"], "--input: expected channels, height and width"),
        (["--input", "3x0x32"], "--input: expected channels, height and width"),
        (["--batch", "0"], "--batch must be at least 1, got 0"),
        (["--classes", "0"], "classes must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_refused(capsys, arguments, message):
    assert main([*ARGUMENTS, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_unknown_networks_are_refused(capsys):
    assert main(["plan", "resnet51", "--input", "3x32x32"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("plan: network must be one of")
    assert error.count("'resnet50'") == 1  # once, although every strategy fails for this reason


@pytest.mark.parametrize("option", ["--json", "--html", "--plot"])
@pytest.mark.parametrize(
    ("name", "message"), [("missing/plan.svg", "is not a folder; create it first"), ("", "got the folder")]
)
def test_files_that_cannot_be_written_are_refused_before_planning(capsys, tmp_path, option, name, message):
    assert main([*ARGUMENTS, option, str(tmp_path / name)]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"plan: {option}: ")
    assert message in printed.err
    assert not printed.out


def test_a_figure_of_an_unknown_format_is_refused_before_planning(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    assert main([*ARGUMENTS, "--plot", str(tmp_path / "plan.xyz")]) == 2
    printed = capsys.readouterr()
    assert "--plot: expected a name that ends in .png, .svg or .pdf" in printed.err
    assert not printed.out
