"""The benchmark of synchronized statistics. No test depends on measured times."""

import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("the benchmarks are in the source tree only", allow_module_level=True)
sys.path.append(str(ROOT))

from groups import in_ranks, thread_groups  # noqa: E402

from benchmarks import sync  # noqa: E402

SHAPES = [[2, 4, 3, 3], [2, 8, 2, 2]]


def test_communication_is_a_part_of_the_step():
    results = in_ranks(lambda group: sync.measure(group, SHAPES, repeat=2), thread_groups(2))
    for alone, together, messages, operation in results:
        assert min(alone, operation) > 0
        assert 0 < messages < together


def test_the_projection_follows_its_formula():
    assert sync.projected(8, calls=2, channels=10, latency=1, bandwidth=8) == 2 * 3 + 7 * (4 * 10 + 2 * 2)
    assert sync.projected(1, calls=2, channels=10) == 0


def test_the_channels_of_resnet50():
    from inplace_abn import layers, models

    every = models.resnet(50, num_classes=1).named_layers()
    found = [layer for _, layer in every if isinstance(layer, layers.ABN)]
    assert len(found) == sync.RESNET50_LAYERS
    assert sum(layer.num_features for layer in found) == sync.RESNET50_CHANNELS


def test_the_text_has_both_tables():
    text = sync.block({1: (0.01, 0.01, 0.0, 0.0), 2: (0.01, 0.02, 0.005, 2e-5)}, SHAPES)
    for part in ("| 2 ", "20.00", "5.00", "2.00", "| 20 ", "A projection, not a measurement", "| 256 "):
        assert part in text


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mpiexec") is None, reason="mpiexec is not installed")
def test_the_command_writes_the_table(tmp_path, capsys):
    pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    page = tmp_path / "page.md"
    page.write_text(f"{sync.BEGIN}\n{sync.END}\n")
    sync.main(["--processes", "1", "2", "--shapes", "[[2, 4, 3, 3]]", "--repeat", "2", "--docs", str(page)])
    assert capsys.readouterr().out.strip() in page.read_text()
