"""The notebooks of examples/ run from top to bottom and reproduce the outputs stored in them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import inplace_abn

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))

if not NOTEBOOKS:
    pytest.skip("the notebooks are in the sources only", allow_module_level=True)

# In a separate process: warnings of the kernel's client are ignored, warnings of the cells are errors.
RUN = """
import sys, nbformat
from nbclient import NotebookClient
book = nbformat.read(sys.stdin, 4)
strict = nbformat.v4.new_code_cell("import warnings; warnings.simplefilter('error')")
book.cells.insert(0, strict)
client = NotebookClient(book, timeout=300, kernel_name="python3")
client.resources = {"metadata": {"path": sys.argv[1]}}
client.execute()
del book.cells[0]
nbformat.write(book, sys.stdout)
"""


def code(book):
    return [cell for cell in book["cells"] if cell["cell_type"] == "code"]


def kinds(cell):
    """Return the kinds of a cell's outputs. Their texts depend on the machine, their number on buffering."""
    return sorted({(output["output_type"], *sorted(output.get("data", ()))) for output in cell["outputs"]})


def marks(path):
    return [pytest.mark.torch] if "import torch" in path.read_text(encoding="utf-8") else []


@pytest.fixture(params=[pytest.param(path, id=path.stem, marks=marks(path)) for path in NOTEBOOKS])
def notebook(request):
    if request.node.get_closest_marker("torch"):
        pytest.importorskip("torch", minversion="2.4")
    return json.loads(request.param.read_text(encoding="utf-8"))


def test_notebooks_run_and_reproduce_their_outputs(notebook, tmp_path):
    pytest.importorskip("nbclient", reason="running notebooks needs the extra 'test'")
    package = str(Path(inplace_abn.__file__).parents[1])  # the one that all other tests have
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path)], input=json.dumps(notebook), capture_output=True,
        text=True, encoding="utf-8", check=False, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for there, again in zip(code(notebook), code(json.loads(done.stdout)), strict=True):
        assert kinds(there) == kinds(again), "".join(there["source"])


def test_notebooks_were_run_in_order_before_they_were_committed(notebook):
    assert [cell["execution_count"] for cell in code(notebook)] == [*range(1, len(code(notebook)) + 1)]
    assert any(cell["outputs"] for cell in code(notebook))


def test_notebooks_contain_no_path_of_the_machine_they_ran_on(notebook):
    texts = json.dumps([cell["outputs"] for cell in code(notebook)])
    assert not [name for name in ("/tmp/", "site-packages") if name in texts]
