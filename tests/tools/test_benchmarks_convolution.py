"""The benchmark of convolutions runs on tiny shapes. No test depends on measured times."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("the benchmarks are in the source tree only", allow_module_level=True)
sys.path.append(str(ROOT))

from benchmarks import convolution  # noqa: E402

FAST = ["--repeat", "1", "--pause", "0", "--threads", "1", "--shrink", "8"]


@pytest.mark.parametrize("clock", convolution.CLOCKS)
def test_there_is_a_row_for_every_case_and_layout(clock, capsys):
    assert convolution.main([*FAST, "--clock", clock]) == 0
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if "channels-" in line]
    assert len(rows) == len(convolution.CASES) * len(convolution.LAYOUTS)
    assert "scratch < 10 % of the input" in printed


def test_quick_is_the_case_with_the_target(capsys):
    assert convolution.main([*FAST, "--quick", "--layouts", "channels-last"]) == 0
    assert capsys.readouterr().out.count("channels-") == 1


def test_without_torch_there_is_no_ratio(monkeypatch, capsys):
    monkeypatch.setattr(convolution, "torch", None)
    found = convolution.row(convolution.Case((1, 2, 5, 5), 3), "channels-first", 2, 0)
    assert "ratio" not in found
    assert "torch" not in found
    assert convolution.text([found])


@pytest.mark.torch
@pytest.mark.parametrize("layout", convolution.LAYOUTS)
@pytest.mark.parametrize("case", convolution.CASES, ids=str)
def test_both_compute_the_same(case, layout):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    case = case._replace(shape=(2, case.shape[1], 8, 8), dtype="float64")
    rng = np.random.default_rng(0)
    size = (8 + 2 * (case.kernel // 2) - case.kernel) // case.stride + 1
    x = rng.standard_normal(case.shape)
    weight = rng.standard_normal((case.outputs, case.shape[1] // case.groups, case.kernel, case.kernel))
    dz = rng.standard_normal((2, case.outputs, size, size))
    own, peer = (kind(case, layout, x, weight, dz) for kind in (convolution.Own, convolution.Peer))
    axis = 1 if layout == "channels-first" else -1
    z, other = own.forward(), peer.forward()
    np.testing.assert_allclose(np.moveaxis(z, axis, 1), other.detach().numpy(), rtol=0, atol=1e-10)
    dx, dweight, _ = own.backward(z)
    peer.backward(other)
    np.testing.assert_allclose(np.moveaxis(dx, axis, 1), peer.x.grad.numpy(), rtol=0, atol=1e-10)
    np.testing.assert_allclose(dweight, peer.weight.grad.numpy(), rtol=0, atol=1e-10)


@pytest.mark.slow
def test_the_command_runs(capfd):
    command = [sys.executable, "-m", "benchmarks.convolution", "--quick", *FAST]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    assert capfd.readouterr().out.count("channels-") == 2
