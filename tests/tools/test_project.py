"""The project: one version number, few dependencies, a complete sdist, pinned tools, valid links."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import inplace_abn
from inplace_abn import functional

ROOT = Path(__file__).parents[2]

if not (ROOT / "setup.py").exists():
    pytest.skip("the sources are not there, only the installed package", allow_module_level=True)

#: Files of a checkout that are not sources: left out of the sdist and of the checks below.
LEFTOVERS = shutil.ignore_patterns(
    *(".git", ".venv", "build", "dist", "wheelhouse", "results", "*.egg-info"),
    *("__pycache__", ".*_cache", ".hypothesis", "*.so", "*.pyd", "*.o"),
)


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """Return a copy of the sources without products of builds and tests."""
    copy = tmp_path_factory.mktemp("project") / "checkout"
    shutil.copytree(ROOT, copy, ignore=LEFTOVERS)
    return copy


@pytest.fixture(scope="module")
def sdist(checkout, tmp_path_factory):
    """Build the sdist and return the names in it, without the leading folder."""
    out = tmp_path_factory.mktemp("sdist")
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run = subprocess.run(
        [sys.executable, "-c", build, str(out)], cwd=checkout, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    (archive,) = out.iterdir()
    with tarfile.open(archive) as tar:
        return {member.name.partition("/")[2] for member in tar.getmembers() if member.isfile()}


def test_the_version_is_the_same_everywhere():
    version = re.search(r'^version = "(.+)"$', read("pyproject.toml"), re.MULTILINE)[1]
    assert importlib.metadata.version("inplace-abn-numpy") == version
    assert inplace_abn.__version__ == version
    assert functional.info()["version"] == version
    assert re.search(r"^## (\S+)", read("CHANGELOG.md"), re.MULTILINE)[1] == version
    assert re.search(r"^version: (.+)$", read("CITATION.cff"), re.MULTILINE)[1] == version


def test_numpy_is_the_only_runtime_dependency():
    requires = importlib.metadata.requires("inplace-abn-numpy")
    assert [line for line in requires if "extra ==" not in line] == ["numpy>=2"]


def test_the_sdist_has_every_source(checkout, sdist):
    folders = ("csrc", "inplace_abn", "tests", "benchmarks", "docs", "examples")
    files = {
        path.relative_to(checkout).as_posix() for name in folders for path in (checkout / name).rglob("*.*")
    }
    assert {name for name in files if (checkout / name).is_file()} <= sdist
    assert {
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "LICENSE",
        "pyproject.toml",
        "setup.py",
        ".ci/run",
    } <= sdist


def test_the_sdist_has_nothing_built_or_measured(sdist):
    assert not [name for name in sdist if re.search(r"\.(so|pyd|o|pyc)$|^build/|^benchmarks/results/", name)]


def test_python_headers_stay_in_the_binding(checkout):
    outside = (path for path in (checkout / "csrc").rglob("*.[ch]") if path.parent.name != "python")
    assert not [path.name for path in outside if "Python.h" in path.read_text(encoding="utf-8")]


def test_the_formatters_are_the_same_in_pyproject_and_pre_commit():
    pins = dict(re.findall(r'"(ruff|clang-format)==([\d.]+)"', read("pyproject.toml")))
    hooks = dict(
        re.findall(
            r"(ruff|clang-format)(?:-pre-commit)?\n    rev: v([\d.]+)", read(".pre-commit-config.yaml")
        )
    )
    assert pins == hooks
    assert len(pins) == 2


def test_the_readme_has_one_command_to_try_it_and_one_to_test_it():
    assert re.findall(r"^pip install .* && .*$", read("README.md"), re.MULTILINE) == [
        "pip install '.[demo]' && python -m inplace_abn demo --quick",
        "pip install '.[test]' && pytest -n auto",
    ]


def test_links_have_existing_targets(checkout):
    pages = [checkout / "README.md", checkout / "CONTRIBUTING.md", *(checkout / "docs").rglob("*.md")]
    for page in pages:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_workflows_have_no_permissions_by_default_and_pinned_actions():
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    assert workflows
    for workflow in workflows:
        text = workflow.read_text(encoding="utf-8")
        assert "\npermissions: {}\n" in text
        assert all(re.search(r"@(v\d+|[0-9a-f]{40})$", action) for action in re.findall(r"uses: (\S+)", text))


def test_no_file_contains_a_path_of_a_developers_machine(checkout):
    home = re.compile(r"/(?:home|root|Users)/\w|[A-Z]:\\Users", re.IGNORECASE)
    texts = (
        path
        for path in checkout.rglob("*")
        if path.suffix in {".py", ".pyi", ".c", ".h", ".md", ".toml", ".yml", ".ipynb"}
    )
    assert not [path.name for path in texts if home.search(path.read_text(encoding="utf-8"))]
