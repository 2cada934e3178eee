"""The benchmark of training: combined seeds, targets, a run. No test depends on measured times."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("the benchmarks are in the source tree only", allow_module_level=True)
sys.path.append(str(ROOT))

from inplace_abn import demo  # noqa: E402
from inplace_abn.demo import peaks, report, tasks  # noqa: E402

for needed in demo.NEEDED:
    pytest.importorskip(needed, reason="the demo needs the extra 'demo'")

from benchmarks import training  # noqa: E402


def run(standard, inplace):
    """Return the results of one seed, for (score, seconds) of two strategies."""

    def row(score, seconds, kept):
        return {
            "score": score,
            "seconds": seconds,
            "kept": kept,
            "tracemalloc": 2 * kept,
            "process": None,
            "scores": [score],
            "losses": [1.0],
        }

    return {
        "task": "digits",
        "scored": "test accuracy",
        "epochs": 8,
        "batch_size": 64,
        "dtype": "float32",
        "parameters": 1024,
        "machine": "a machine",
        "network": "residual_network",
        "widths": [4],
        "strategies": {"standard": row(*standard, 2000), "inplace_2": row(*inplace, 1000)},
    }


RUNS = [run((0.98, 0.2), (0.99, 0.1)), run((0.98, 0.2), (0.99, 0.2)), run((0.99, 0.1), (0.99, 0.2))]


def test_seeds_are_combined():
    rows = training.combine(RUNS)["strategies"]
    assert rows["standard"]["score"] == pytest.approx((0.98 + 0.98 + 0.99) / 3)
    assert rows["inplace_2"]["seconds"] == 0.2
    assert rows["inplace_2"]["process"] is None


def test_figures_are_compared_with_their_targets():
    score, points, kept, seconds = training.judge("classification", RUNS).values()
    assert score.value == pytest.approx(100 * (0.98 + 0.98 + 0.99) / 3)
    assert points.value == pytest.approx(200 / 300)
    assert [kept.value, seconds.value] == [0.5, 1.0]
    assert [figure.missed for figure in (score, points, kept, seconds)] == [False, True, False, False]
    assert next(iter(training.judge("segmentation", RUNS).values())).target is None


def test_the_published_block():
    text = training.block({"classification": RUNS})
    assert text.startswith("**Digits: 50% of the activation memory**, 1,000 bytes instead of 2.0 KiB; ")
    assert text.count("\n| ") == 4
    assert text.endswith("means of 3 seeds, " + report.head(RUNS[0]))
    assert training.block({"classification": RUNS[:1]}).endswith("\n\none seed, " + report.head(RUNS[0]))


def test_a_run_prints_judges_and_rewrites(tmp_path, monkeypatch, capsys):
    small = tasks.TASKS["classification"].setting(quick=True, epochs=1, batch_size=256)
    small = replace(small, widths=(4, 4))
    monkeypatch.setattr(tasks.Task, "setting", lambda self, seed, **options: replace(small, seed=seed))
    measured = {"process": None, "tracemalloc": 1}
    monkeypatch.setattr(peaks, "in_separate_process", lambda setting, strategy: measured)
    page, numbers = tmp_path / "benchmarks.md", tmp_path / "numbers.json"
    page.write_text(f"before\n{training.BEGIN}\nold\n{training.END}\nafter\n", encoding="utf-8")
    assert training.main(["--seeds", "2", "--docs", str(page), "--output", str(numbers)]) == 0
    assert "kept, inplace_2 / standard" in capsys.readouterr().out
    results = json.loads(numbers.read_text(encoding="utf-8"))
    assert len(results["classification"]) == 2
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert training.block(results) in text
