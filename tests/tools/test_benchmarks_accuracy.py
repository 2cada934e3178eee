"""`python -m benchmarks.accuracy` on small shapes: every row, and its bounds."""

import json
import math

import numpy as np
from batches import ACTIVATIONS
from test_benchmarks import ROOT, SHAPES

from benchmarks import accuracy, plans, targets
from benchmarks.contestants import Batch


def test_accuracy_prints_every_row_and_meets_its_bounds(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(accuracy, "_HARD", (4, 32, 7, 7))
    monkeypatch.setattr(accuracy, "activations", lambda threads, shape: [])
    assert accuracy.main(["--shapes", *SHAPES, "--no-peers", "--output", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "accuracy.json").read_text())
    assert len(content["accuracy"]) == len(SHAPES) * 2
    for row in content["accuracy"]:
        assert row["same_bits"]
        assert not any(row[name]["missed"] for name in targets.ACCURACY)
    assert len(content["hard_cases"]) == 6
    assert not any(row["error"]["missed"] for row in content["hard_cases"])
    assert "Hard cases" in capsys.readouterr().out


def test_accuracy_has_every_activation_in_every_dtype(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(accuracy, "_HARD", (8, 16, 14, 14))  # smaller, to be fast
    page = tmp_path / "functions.md"
    page.write_text((ROOT / "docs" / "functions.md").read_text(encoding="utf-8"), encoding="utf-8")
    assert accuracy.main(["--activations", "--docs", str(page), "--output", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "accuracy.json").read_text())
    assert content["accuracy"] == []
    rows = content["activations"]
    names = {(row["activation"], row["residual"]) for row in rows}
    assert names == {(name, False) for name in ACTIVATIONS} | {(name, True) for name in plans.RESIDUAL}
    assert len(rows) == len(names) * 4
    for row in rows:
        bound = {"float64": 1e-13, "float32": 1e-6, "float16": 4e-3, "bfloat16": 4e-2}[row["dtype"]]
        assert row["standard"] < bound
        assert (row["dx"] is None) == (row["activation"] not in plans.ACTIVATIONS)
        if row["dx"] is None:  # no inverse
            continue
        assert row["residual"] == (row["dresidual"] is not None)
        assert not any(row[name]["missed"] for name in ("dx", "times", "farthest", "escaped")), row
    table = page.read_text(encoding="utf-8").split(accuracy.BEGIN)[1].split(accuracy.END)[0]
    assert "| silu + residual " in table
    assert "(<=" not in table  # targets are for developers
    assert "(<= 1%)" in capsys.readouterr().out


def test_nan_is_an_infinite_error():
    batch = Batch((2, 3, 4, 4), "channels-first")
    results = accuracy.run(batch, threads=1)
    results["dx"][0, 0, 0, 0] = np.nan
    found = accuracy.errors(batch, results)
    assert found.total["dx"] == found.worst["dx"] == found.farthest["dx"] == math.inf
