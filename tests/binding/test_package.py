"""`import inplace_abn`: its names, when they are imported, and its example."""

import doctest
import importlib
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

import inplace_abn

pytestmark = pytest.mark.essential


def python(code):
    """Return the output of a script run in a separate interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_names():
    assert set(inplace_abn.__all__) <= set(dir(inplace_abn))
    assert list(inplace_abn.__all__) == sorted(inplace_abn.__all__)
    for name in inplace_abn.__all__:
        assert getattr(inplace_abn, name).__doc__
    assert inplace_abn.InPlaceABN is inplace_abn.layers.InPlaceABN
    assert isinstance(inplace_abn.gradcheck, types.FunctionType)


def test_all_names_can_be_imported_at_once():
    code = "from inplace_abn import *; import inplace_abn; print(set(inplace_abn.__all__) <= {*globals()})"
    assert python(code).split() == ["True"]


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="module 'inplace_abn' has no attribute 'InplaceAbn'"):
        inplace_abn.InplaceAbn  # noqa: B018


def test_layers_are_imported_at_first_access():
    """Using the functions does not import the layers, and nothing imports matplotlib."""
    code = (
        "import sys, inplace_abn\n"
        "print({'inplace_abn.layers', 'inplace_abn.memory', 'inplace_abn.ops'} & {*sys.modules})\n"
        "inplace_abn.InPlaceABN, inplace_abn.gradcheck, inplace_abn.models, inplace_abn.optim\n"
        "print({'matplotlib', 'sklearn', 'tqdm'} & {*sys.modules})\n"
    )
    assert python(code).splitlines() == ["set()", "set()"]


def test_documented_examples():
    result = doctest.testmod(inplace_abn)
    assert result.attempted > 4
    assert result.failed == 0


def test_an_unbuilt_checkout_raises_an_error(tmp_path):
    """Python started in a checkout finds it before the installed package."""
    here = Path(inplace_abn.__file__).parent
    shutil.copytree(here, tmp_path / here.name, ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__"))
    done = subprocess.run(
        [sys.executable, "-c", "import inplace_abn"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert f"is not built for Python {sys.version_info[0]}.{sys.version_info[1]}" in done.stderr


@pytest.mark.parametrize(
    ("missing", "said"),
    [("inplace_abn._core", "is not built for Python"), ("numpy", "No module named 'numpy'")],
)
def test_a_missing_dependency_is_named(monkeypatch, missing, said):
    def fail(*_):
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ImportError, match=said):
        importlib.reload(inplace_abn._runtime)
