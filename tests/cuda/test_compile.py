"""Every kernel compiles for every architecture: NVRTC needs no GPU."""

import hashlib
import os
import re
from pathlib import Path

import pytest
from batches import ACTIVATIONS

from inplace_abn import _core
from inplace_abn._cuda import kernels, libraries
from inplace_abn._cuda.layer import INPLACE_ON_GPU
from inplace_abn._files import replacing

try:
    libraries.open_compiler()
except RuntimeError as error:
    pytest.skip(f"NVRTC is not installed: {error}", allow_module_level=True)

ARCHITECTURES = ["sm_75", "sm_80", "sm_90", "sm_100", "sm_120"]
WIDTHS = {"float32": 4, "float64": 2, "float16": 8, "bfloat16": 8}
# Every dtype and layout with the default activation, and PReLU, which needs the most registers.
COMBINATIONS = [
    (dtype, "leaky_relu", "inplace", residual, guard, WIDTHS[dtype], columns)
    for dtype in WIDTHS
    for columns in (False, True)
    for residual, guard in ((False, False), (True, True))
]
COMBINATIONS += [(dtype, "prelu", "inplace", True, True, 1, False) for dtype in WIDTHS]
FOR_EVERY_ARCHITECTURE = list(COMBINATIONS)
# Every activation with each strategy that supports it.
COMBINATIONS += [
    ("float32", activation, strategy, True, False, 4, True)
    for activation in ACTIVATIONS
    for strategy in ("inplace", "pre_activation", "checkpoint_xhat", "standard")
    if strategy != "inplace" or activation in INPLACE_ON_GPU
]
COMBINATIONS += [
    ("bfloat16", activation, "pre_activation", True, True, 8, True) for activation in ACTIVATIONS
]


def log_of(architecture, options):
    """Return the compiler's log. INPLACE_ABN_COMPILER_LOGS names a folder of those of earlier runs.

    A compilation takes seconds, and most changes leave the sources of these kernels as they are.
    """
    folder = os.environ.get("INPLACE_ABN_COMPILER_LOGS")
    compiler = libraries.open_compiler()[0]
    inputs = repr((_core._cuda_source(), kernels._OPTIONS, options, architecture, compiler))
    path = folder and Path(folder, hashlib.sha256(inputs.encode()).hexdigest())
    if path and path.exists():
        return path.read_text(encoding="utf-8")
    image, log = kernels.compile_kernels(architecture, options)
    assert image
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(log, encoding="utf-8")
    return log


def check(architecture, combination):
    dtype, activation, strategy, residual, guard, width, columns = combination
    options = kernels.macros(
        dtype, activation, strategy, residual=residual, guard=guard, width=width, columns=columns
    )
    log = log_of(architecture, (*options, "--ptxas-options=-v"))
    assert "warning" not in log, log
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert len(spills) == 6, log
    assert set(spills) == {("0", "0")}, log


def of_one_architecture(number):
    """Return the architecture of a combination that is compiled for one only; all have their turn."""
    return ARCHITECTURES[number % len(ARCHITECTURES)]


# A quarter of the combinations; the slow tests compile all.
@pytest.mark.parametrize("number", range(0, len(COMBINATIONS), 4))
def test_compiles_without_warnings_and_spills(number):
    check(of_one_architecture(number), COMBINATIONS[number])


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(FOR_EVERY_ARCHITECTURE), len(COMBINATIONS)))
def test_every_activation_compiles(number):
    check(of_one_architecture(number), COMBINATIONS[number])


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("combination", FOR_EVERY_ARCHITECTURE, ids=lambda c: "-".join(map(str, c)))
def test_compiles_for_every_architecture(combination, architecture):
    check(architecture, combination)


def test_ptx_for_a_card_newer_than_the_compiler():
    newest = libraries.open_compiler()[1]
    options = kernels.macros(
        "float32", "relu", "standard", residual=False, guard=False, width=4, columns=False
    )
    image, _ = kernels.compile_kernels(f"compute_{newest}", options)
    assert b".entry cuda_forward_sums" in image


def test_an_error_of_the_compiler_is_shown():
    with pytest.raises(RuntimeError, match="ABN_NO_SUCH"):
        kernels.compile_kernels("sm_90", kernels.macros("float32", "no_such", "standard", residual=False,
                                                        guard=False, width=4, columns=False))  # fmt: skip


def test_source_has_every_file_once():
    source = _core._cuda_source()
    assert "#include" not in source
    assert source.count("ABN_EACH_ACTIVATION(ROW)") == 1
