"""torchvision for its models alone, where its compiled operators do not load."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

torch = pytest.importorskip("torch", minversion="2.4")


def import_torchvision():
    """Import torchvision as the benchmarks do; skip if it is not installed."""
    if not (ROOT / "benchmarks").is_dir():
        pytest.skip("the benchmarks are in the source tree only", allow_module_level=True)
    sys.path.append(str(ROOT))
    from benchmarks import torch_networks

    try:
        return torch_networks.import_torchvision()
    except ModuleNotFoundError:
        pytest.skip("torchvision is not installed", allow_module_level=True)
