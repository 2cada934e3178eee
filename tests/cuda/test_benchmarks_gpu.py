"""`benchmarks.gpu` runs on a machine without a GPU: it says so, and its measurements work on tiny batches."""

import math
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("the benchmarks are in the source tree only", allow_module_level=True)
sys.path.append(str(ROOT))

from benchmarks import gpu, tables  # noqa: E402


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "why_not", lambda: "no GPU")
    assert gpu.main([]) == 0
    assert capsys.readouterr().out == "nothing to measure: no GPU\n"


def small_network(nn, activation):
    """Return a network that takes the place of ResNet-50."""
    pointwise = nn.ReLU() if activation == "relu" else nn.LeakyReLU(0.01)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        pointwise,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 1000),
    )


@pytest.mark.torch
def test_tables_have_a_row_for_every_case(monkeypatch, capsys):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("sklearn", reason="scikit-learn has the digits")
    from torch import nn

    from benchmarks import gpu_networks, gpu_training

    monkeypatch.setattr(gpu_networks, "network", lambda name, activation: small_network(nn, activation))
    monkeypatch.setattr(gpu_networks, "checkpoint_blocks", lambda model: model)
    monkeypatch.setattr(gpu_training, "network", gpu_networks.network)
    monkeypatch.setattr(gpu_training, "STEPS", 4)
    arguments = gpu.parser().parse_args(
        ["--shapes", "2x8x4x4", "--images", "2", "--size", "32", "--rounds", "1"]
    )
    found = gpu.measure(arguments, "cpu")
    assert len(found["operations"]) == len(gpu.DTYPES) * len(gpu.LAYOUTS) * 2
    for row in found["operations"]:
        assert all(
            math.isfinite(row[who][name]) for who in ("stock", "ours") for name in ("forward", "backward")
        )
    assert len(found["host"]) == len(gpu.DTYPES) * len(gpu.LAYOUTS)
    assert len(found["networks"]) == 9
    assert len(found["training"]) == 6
    assert not any(row["errors"] for row in found["networks"])
    shown = gpu.text(found)
    assert "2x8x4x4" in shown
    assert "bfloat16 autocast, channels-last" in shown
    assert "no GPU" in capsys.readouterr().out
    assert tables.grid(*gpu.largest_rows({"ours": 64}))
