"""The code blocks of README.md and docs/ run in order and print the output stated in `# ->` comments."""

import contextlib
import io
import re
from pathlib import Path

import pytest

#: Packages that some pages need, and that not every environment has: the rest of such a page is skipped.
OPTIONAL = ("onnx", "onnxruntime", "torch")
ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
STATED = re.compile(r"# -> (.*)$", re.MULTILINE)


def marks(page):
    """Return the marks of a page: torch if a code block imports it."""
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [pytest.mark.torch] if any("import torch\n" in block for block in blocks) else []


PAGES = [
    pytest.param(page, id=page.name, marks=marks(page))
    for page in (ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")))
    if page.exists()
]

if not PAGES:
    pytest.skip("the pages are part of the sources, not of the installed package", allow_module_level=True)


@pytest.mark.parametrize("page", PAGES)
def test_code_blocks_run_and_print_the_stated_output(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    names = {"__name__": "__main__"}
    for block in BLOCK.finditer(text):
        lines_before = text.count("\n", 0, block.start(1))
        code = compile("\n" * lines_before + block[1], str(page), "exec")
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                exec(code, names)
        except ModuleNotFoundError as error:
            if error.name not in OPTIONAL:
                raise
            pytest.skip(f"{error.name} is not installed")
        stated = STATED.findall(block[1])
        assert not stated or printed.getvalue().splitlines() == stated, f"{page.name}, line {lines_before}"
