"""The benchmark of kept memory: every buffer counts in one row; the command prints and writes its tables."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("the benchmarks are in the source tree only", allow_module_level=True)
sys.path.append(str(ROOT))

from benchmarks import memory  # noqa: E402
from inplace_abn import layers  # noqa: E402
from inplace_abn.memory import ledger  # noqa: E402

SHAPE = (2, 3, 32, 32)


def kept(strategy, activation="leaky_relu", network="ResNet-50"):
    return memory.measure(network, 8, SHAPE, activation, strategy)


@pytest.mark.parametrize("activation", memory.ACTIVATIONS)
@pytest.mark.parametrize(
    ("network", "variant"), [(n, v) for n in ("ResNet-34", "MobileNetV2") for v in memory.variants_of(n)]
)
def test_rows_add_up_to_what_the_ledger_counts(network, variant, activation):
    with ledger() as book:
        rows = kept(variant, activation, network)
    assert sum(rows.values()) == book.kept


def test_in_place_keeps_the_same_inputs_of_convolutions_and_no_inputs_of_normalizations():
    standard, inplace = kept("standard"), kept("inplace")
    assert inplace[memory.CONVOLUTIONS] == standard[memory.CONVOLUTIONS]
    assert inplace["inputs of normalizations"] == 0 < standard["inputs of normalizations"]
    # 4 x 8 channels of 8 x 8 pixels after the first stage; twice as many in a quarter after each other one
    assert inplace[memory.SHORTCUTS] == 4 * 2 * sum(32 * 2**i * (8 // 2**i) ** 2 for i in range(4))
    assert inplace[memory.OFFSETS] == 2 * 8 * 8 * 8


def test_a_recomputed_stem_keeps_only_the_images():
    inplace, again = kept("inplace"), kept(memory.RECOMPUTED)
    assert again.pop(memory.OFFSETS) == 0 < inplace.pop(memory.OFFSETS)
    assert inplace.pop(memory.POOLED) - again.pop(memory.POOLED) == 4 * 2 * 8 * 16 * 16
    assert again == inplace


def test_a_silu_adds_a_bit_per_element():
    mask = kept("inplace", "silu")["branch masks, a bit per element"]
    activated = sum(kept("inplace")[row] for row in (memory.CONVOLUTIONS, memory.POOLED))
    first = 4 * np.prod(SHAPE) + 4 * 2 * 8 * 8 * 8  # the images, and the result of the pooling
    assert mask == (activated - first) / 32


def test_guarded_channels_have_a_row():
    net = layers.Sequential(layers.InPlaceABN(4), layers.Conv2d(4, 4, 1, rng=0))
    net[0].weight.data[0] = 0
    with ledger() as book:
        net(np.random.default_rng(0).standard_normal((2, 4, 3, 3), dtype=np.float32))
        rows = memory.by_row(book.table())
    assert rows["guarded channels"] == 4 * 2 * 9
    assert rows[memory.CONVOLUTIONS] == 4 * 2 * 4 * 9


def results(share):
    """Return invented results: in place keeps `share` of standard, 2 of 100 bytes of it beyond the floor."""
    rows = dict.fromkeys(memory.ROWS, 0)
    kept = {variant: rows | {memory.CONVOLUTIONS: 98, memory.POOLED: 2} for variant in memory.VARIANTS}
    kept["standard"] = rows | {memory.REST: 100 / share}
    return {("ResNet-50", "leaky_relu"): kept, ("ResNet-34", "silu"): kept}


def test_figures_with_a_target_are_judged():
    figures = memory.judge(results(0.57))
    assert [name for name, figure in figures.items() if figure.missed] == [
        f"ResNet-50, leaky_relu, {memory.RECOMPUTED}: of standard",
        f"ResNet-50, leaky_relu, {memory.RECOMPUTED}: normalizations and activations, share of the floor",
    ]
    assert figures[f"ResNet-34, silu, {memory.RECOMPUTED}: of standard"].target is None
    assert not memory.judge(results(0.55))[f"ResNet-50, leaky_relu, {memory.RECOMPUTED}: of standard"].missed


def test_the_command_prints_and_writes_its_tables(tmp_path, capsys):
    readme, output = tmp_path / "README.md", tmp_path / "memory.json"
    page = tmp_path / "docs" / "benchmarks.md"
    page.parent.mkdir()
    readme.write_text((ROOT / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    page.write_text((ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8"), encoding="utf-8")
    small = ["--networks", "ResNet-50", "--width", "8", "--size", "32"]
    assert memory.main([*small, "--output", str(output), "--docs", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "| ResNet-50 " in printed
    assert "inplace, stem recomputed: of standard" in printed
    assert json.loads(output.read_text())["ResNet-50 silu"]["inplace"] == kept("inplace", "silu")
    short = readme.read_text(encoding="utf-8").split(memory.SHORT_BEGIN)[1].split(memory.SHORT_END)[0]
    assert "| ResNet-50, silu " in short
    block = page.read_text(encoding="utf-8").split(memory.BEGIN)[1].split(memory.END)[0]
    assert "| inputs of convolutions " in block
    assert "2 images of 32 x 32, float32, width 8" in block
