"""The C test program of tests/core/c has the compiler flags of the extension, and reliability.sh runs."""

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import unreached

ROOT = Path(__file__).parents[2]

if not (ROOT / "setup.py").exists():
    pytest.skip("the sources are not there, only the installed package", allow_module_level=True)

MAKEFILE = Path(__file__).with_name("c").joinpath("Makefile").read_text(encoding="utf-8")


@pytest.fixture
def setup_py(monkeypatch):
    """Return the names in setup.py, without building anything."""
    setuptools = pytest.importorskip("setuptools")
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.chdir(ROOT)
    return runpy.run_path("setup.py")


def test_the_instruction_sets_have_the_flags_of_the_extension(setup_py):
    flags = dict(re.findall(r"^FLAGS_(\w+) := ?(.*)$", MAKEFILE, re.MULTILINE))
    assert flags == {name: unix for name, (_, unix, _) in setup_py["INSTRUCTION_SETS"].items()}


def test_core_and_kernels_have_the_flags_of_the_extension():
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    flags = set(re.findall(r'"(-(?:f|std)[^"]*)"', setup)) - {"-fopenmp", "-fvisibility=hidden"}
    assert flags <= set(MAKEFILE.split())
    assert "-ffp-contract=off" in re.search(r"^CORE := .*$", MAKEFILE, re.MULTILINE)[0]
    assert "-ffp-contract=fast" in re.search(r"^KERNEL := .*$", MAKEFILE, re.MULTILINE)[0]


def test_the_reasons_for_unreached_lines_name_existing_lines():
    for file, text, _ in unreached.REASONS:
        assert text in map(str.strip, unreached.source(file)), (file, text)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("make"), reason="needs make on Linux")
def test_the_c_program_reports_no_error(tmp_path):
    make = [
        "make",
        "-s",
        "-C",
        ROOT / "tests" / "core" / "c",
        f"BUILD={tmp_path}",
        "ISAS=baseline",
        "FLAGS=-O1",
    ]
    subprocess.run(make, check=True)
    for arguments in (["light", "200"], ["allocations"]):
        run = subprocess.run(
            [tmp_path / "reliability", *arguments], capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr
    wrong = subprocess.run([tmp_path / "reliability", "planted", "over"], capture_output=True, check=False)
    assert wrong.returncode != 0
