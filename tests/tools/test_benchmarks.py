"""Every benchmark runs once on tiny shapes, and its output and files have the documented form.

No test depends on measured times.
"""

import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("the benchmarks are in the source tree only", allow_module_level=True)
sys.path.append(str(ROOT))

from benchmarks import (  # noqa: E402
    limit,
    machine,
    memory,
    plans,
    report,
    tables,
    targets,
    training,
)  # fmt: skip

FAST = ["--processes", "1", "--repeat", "2", "--threads", "1", "--flush", "1"]
SHAPES = ["2x16x4x4", "2x3x2x3x4"]


def run_limit(folder, *arguments):
    """Run the command and return limit.json's content."""
    assert limit.main([*arguments, *FAST, "--output", str(folder)]) == 0
    return json.loads((folder / "limit.json").read_text())


def positive(figure):
    return math.isfinite(figure) and figure > 0


def test_every_section_has_a_row_for_every_shape_layout_and_variant(tmp_path, capsys):
    dtypes = ["float64", "float16"]
    summary = run_limit(
        tmp_path, "--shapes", *SHAPES, "--no-peers", "--limit", "--dtypes", *dtypes, "--activations",
        "--strategies", "--overhead",
    )["summary"]  # fmt: skip
    places = {("x".join(map(str, row["shape"])), row["layout"]) for row in summary["limit"]}
    assert places == set(itertools.product(SHAPES, targets.LAYOUTS))
    for row in summary["limit"]:
        for name in ("forward", "backward"):
            figures = row[name]["of_limit"]["value"], row[name]["stream_gbs"], row[name]["milliseconds"]
            assert all(map(positive, figures))
        assert row["extra_memory"]["value"] >= 0
    names = {section: {row["name"] for row in summary[section]} for section in ("dtypes", "strategies")}
    assert names["dtypes"] == {"float32", *dtypes}
    assert names["strategies"] == {"standard", "checkpoint", "checkpoint_xhat", "inplace_1", "inplace_2"}
    for section in ("dtypes", "activations", "strategies"):
        for row in summary[section]:
            if section == "activations":
                assert positive(row["forward"]["of_limit"]["value"])
            assert positive(row["forward"]["relative"]["value"])
            assert positive(row["backward"]["milliseconds"])
            assert ("recompute" in row) == row["name"].startswith("checkpoint")
    assert {row["module"] for row in summary["overhead"]} == {"functional", "_core"}
    assert summary["peers"] == []
    printed = capsys.readouterr().out
    assert "2x16x4x4" in printed
    assert "channels-last" in printed
    assert f"numpy {np.__version__}" in printed
    for column in ("stream", "of the limit", "extra memory", "relative", "recompute", "median, least"):
        assert f"{column}: " in printed  # explained below the table


def test_one_layout_and_one_section_can_be_chosen(tmp_path):
    summary = run_limit(tmp_path, "--shapes", SHAPES[0], "--layouts", "channels-last", "--activations", "elu")
    rows = summary["summary"]["activations"]
    assert [(row["layout"], row["name"]) for row in rows] == [
        ("channels-last", name) for name in ("leaky_relu", "elu", "leaky_relu + residual")
    ]
    assert summary["summary"]["limit"] == []
    assert not (tmp_path / "limit.png").exists()  # it shows the limit and the peers


def test_the_chart_is_drawn_if_matplotlib_is_installed(tmp_path):
    pytest.importorskip("matplotlib")
    run_limit(tmp_path, "--shapes", SHAPES[0], "--no-peers", "--limit")
    assert (tmp_path / "limit.png").read_bytes().startswith(b"\x89PNG")


def a_plan(*kinds, **options):
    group = {"section": "limit", "shape": (2, 3, 4, 4), "layout": "channels-first"}
    groups = [group | {"contestants": [{"kind": kind} for kind in kinds]}]
    plan = {"environment": "as-is", "threads": 1, "repeat": 1, "warmup": 0, "flush_bytes": 1}
    return plan | {"overhead": 0, "memory": False, "groups": groups} | options


def test_a_process_that_dies_with_peers_is_repeated_without_them(monkeypatch):
    real = plans.run

    def run(plan, isa=None, measured=None):
        if any(one["kind"] == "jax" for one in plan["groups"][0]["contestants"]):
            raise RuntimeError("a measuring process ended with code -11")
        return real(plan, isa, measured)

    monkeypatch.setattr(plans, "run", run)
    done, problem = plans.run_robustly(a_plan("stream", "inplace_abn", "jax"))
    assert {record["kind"] for record in done["groups"][0]["records"]} == {"stream", "inplace_abn"}
    assert "code -11; it was repeated without the peers" in problem
    assert plans.available(["jax"], threads=1) == ([], {"jax": "a measuring process ended with code -11"})


def test_a_process_that_dies_without_peers_stops_the_measurement():
    with pytest.raises(RuntimeError, match="ended with code"):
        plans.run_robustly({"environment": "as-is", "threads": 1, "groups": []})


def test_quick_is_the_limit_and_the_overhead_of_a_few_rows_without_peers():
    options = limit.options(limit.parser().parse_args(["--quick"]))
    assert options.sections == {"limit": list(targets.QUICK)}
    assert options.overhead
    assert options.peers == []


def test_without_options_everything_is_measured():
    options = limit.options(limit.parser().parse_args([]))
    assert options.sections["limit"] == list(targets.LIMIT)
    assert list(options.sections) == ["limit", "dtypes", "activations", "strategies"]
    assert options.overhead
    assert options.processes >= 5
    assert options.repeat >= 7


@pytest.mark.parametrize("text", ["4", "2x0x4", "axb"])
def test_an_invalid_shape_is_refused(text):
    with pytest.raises(ValueError, match=r".*"):
        limit.shape(text)


def activation_run(share, eager):
    """Return what a worker returns for silu at `share` of the stream's speed, `eager` as fast as PyTorch."""
    times = {"stream": 1e-3, "inplace_abn": 1e-3 / share, "torch-eager": eager * 1e-3 / share}
    records = [
        {"kind": kind, "pass": name, "seconds": [time]} | ({} if kind == "stream" else {"activation": "silu"})
        for kind, time in times.items()
        for name in ("forward", "backward")
    ]
    group = {"section": "activations", "shape": (32, 512, 28, 28), "layout": "channels-first"}
    groups = [group | {"records": records, "errors": []}]
    return {"environment": "as-is", "machine": {}, "overhead": {}, "groups": groups}


def test_an_activation_is_judged_by_the_stream_and_by_pytorch():
    (row,) = report.summarise([activation_run(0.4, 2.0)])["activations"]
    assert row["forward"]["of_limit"] == report.Judged(0.4, 0.5)
    assert row["forward"]["of_limit"].missed
    assert row["backward"]["of_limit"] == report.Judged(0.4, 0.32)
    assert row["peer"]["times"] == report.Judged(2.0, 3.0)
    headers, ((*_, forward, _, _, backward, _, times),) = tables._activations([row])
    assert headers[-1] == "times as fast as PyTorch"
    assert (forward, backward) == ("0.40 MISSED (>= 0.5)", "0.40 (>= 0.32)")
    assert times == "2.00x MISSED (>= 3x), 10.0 ms"


def made_up_run(seconds, shape=(32, 2048, 7, 7)):
    """Return what a worker returns: the stream takes `seconds`, inplace_abn twice as long."""
    kinds = (("stream", seconds), ("inplace_abn", 2 * seconds))
    records = [
        {"kind": kind, "pass": name, "seconds": [time] * 3}
        for kind, time in kinds
        for name in ("forward", "backward")
    ]
    group = {"section": "limit", "shape": shape, "layout": "channels-first", "records": records, "errors": []}
    return {"environment": "as-is", "machine": {}, "overhead": {}, "groups": [group]}


def test_processes_fall_into_two_states_at_the_largest_gap():
    runs = [made_up_run(seconds) for seconds in (1.0e-3, 0.6e-3, 1.02e-3, 0.61e-3, 1.01e-3)]
    summary = report.summarise(runs)
    assert {name: state["processes"] for name, state in summary["states"].items()} == {
        "slower": 3,
        "faster": 2,
    }
    slower, faster = summary["limit"]
    assert slower["forward"]["of_limit"] == report.Judged(0.5, 0.63)
    assert slower["forward"]["of_limit"].missed
    assert faster["forward"]["of_limit"] == report.Judged(0.5, 0.63)
    assert faster["backward"]["stream_gbs"] > slower["backward"]["stream_gbs"]
    headers, (first, second) = tables._limit(summary["limit"])
    assert (headers[2], first[2], second[2]) == ("group (processes)", "A (3)", "B (2)")
    line = tables._states(summary["states"])
    assert "group A, 3 processes, stream 31.8 GB/s; group B, 2 processes, stream 53.1 GB/s" in line


def test_targets_are_printed_for_developers_and_not_published(monkeypatch):
    monkeypatch.setattr(tables.machine, "header", lambda machine: [])
    text = tables.text(report.summarise([made_up_run(1e-3)]))
    assert tables._VERDICTS in text
    assert "MISSED" in text
    published = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for part in (tables.text(report.summarise([made_up_run(1e-3)]), targets=False), published):
        assert "stream: GB/s of a loop" in part
        assert "MISSED" not in part
        assert ">=" not in part


def test_processes_of_similar_bandwidth_are_in_one_state():
    summary = report.summarise([made_up_run(seconds) for seconds in (1.0e-3, 1.05e-3, 1.1e-3)])
    assert [(row["state"], row["processes"]) for row in summary["limit"]] == [("one", 3)]
    assert summary["limit"][0]["forward"]["of_limit"].missed


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (report.Judged(0.912), "0.91"),
        (report.Judged(0.912, 0.9), "0.91 (>= 0.9)"),
        (report.Judged(0.85, 0.9), "0.85 MISSED (>= 0.9)"),
        (report.Judged(0.7, 0.6, at_most=True), "0.70 MISSED (<= 0.6)"),
        (None, ""),
    ],
)
def test_a_missed_target_is_marked(figure, text):
    assert tables.judged(figure) == text


def test_a_target_has_the_unit_of_its_figure():
    assert tables.judged(report.Judged(0.0023, 0.02, at_most=True), ".2%") == "0.23% (<= 2%)"
    assert tables.judged(report.Judged(9.0, 8.0, at_most=True), unit=" µs") == "9.00 µs MISSED (<= 8 µs)"


@pytest.mark.parametrize(("busy", "noted"), [(0.1, False), (1.6, True)])
def test_on_a_busy_machine_a_miss_is_printed_with_a_note(busy, noted, monkeypatch, capsys):
    monkeypatch.setattr(limit.machine, "load", lambda: busy)
    monkeypatch.setattr(limit.plans, "run_robustly", lambda plan, isa, measured: (made_up_run(1e-3), None))
    monkeypatch.setattr(limit.tables.machine, "header", lambda machine: [])
    assert limit.main(["--limit", "--no-peers", "--processes", "1"]) == 0
    printed = capsys.readouterr().out
    assert "0.50 MISSED (>= 0.63)" in printed
    assert ("1.6 processors were busy" in printed) == noted


def test_the_default_is_every_thread(monkeypatch):
    monkeypatch.setattr(limit.functional, "get_num_threads", lambda: 5)
    assert limit.parser().parse_args([]).threads == 5


def test_tables_are_printed_without_tabulate_too(monkeypatch):
    monkeypatch.setattr(tables, "tabulate", None)
    lines = ["| a   | bc |", "| --- | -- |", "| 100 | 2  |"]
    assert tables.grid(["a", "bc"], [["100", "2"]]).splitlines() == lines


@pytest.mark.parametrize(
    ("page", "begin", "end"),
    [
        ("docs/benchmarks.md", tables.BEGIN, tables.END),
        ("README.md", tables.SHORT_BEGIN, tables.SHORT_END),
        ("docs/benchmarks.md", memory.BEGIN, memory.END),
        ("README.md", memory.SHORT_BEGIN, memory.SHORT_END),
        ("docs/benchmarks.md", training.BEGIN, training.END),
    ],
)
def test_the_pages_have_the_regions_that_the_commands_rewrite(page, begin, end, tmp_path):
    copy = tmp_path / "page.md"
    before = (ROOT / page).read_text(encoding="utf-8")
    copy.write_text(before, encoding="utf-8")
    for content in ("one", "two"):
        tables.rewrite(copy, content, begin, end)
    after = copy.read_text(encoding="utf-8")
    assert f"{begin}\n\ntwo\n\n{end}" in after
    assert after.split(begin)[0] == before.split(begin)[0]
    assert after.split(end)[1] == before.split(end)[1]


def test_the_short_table_compares_a_few_shapes_with_peers():
    times = {"stream": 1e-3, "inplace_abn": 2e-3, "torch-eager": 8e-3}
    run = made_up_run(1e-3, shape=(32, 256, 56, 56))
    run["groups"][0]["records"] = [
        {"kind": kind, "pass": name, "seconds": [time]}
        for kind, time in times.items()
        for name in ("forward", "backward")
    ]
    run["machine"] = machine.describe(2)
    table = tables.short(report.summarise([run]))
    cells = [cell.strip() for line in table.splitlines() for cell in line.split("|")]
    row = cells.index("32x256x56x56")
    assert cells[row : row + 4] == ["32x256x56x56", "channels-first", "4.00 ms", "4.00x"]
    assert f"2 threads, {run['machine']['inplace_abn']['isa_active']}; python" in table


def test_an_interrupt_prints_the_figures_measured_so_far(monkeypatch, capsys):
    runs = iter([made_up_run(1e-3)])

    def interrupted(plan, isa, measured):
        for run in runs:
            return run, None
        raise KeyboardInterrupt

    monkeypatch.setattr(limit.machine, "load", lambda: 0.0)
    monkeypatch.setattr(limit.plans, "run_robustly", interrupted)
    monkeypatch.setattr(limit.tables.machine, "header", lambda machine: [])
    assert limit.main(["--limit", "--no-peers", "--processes", "3"]) == 0
    printed = capsys.readouterr().out
    assert "Interrupted: the figures are those of 1 of 3 processes." in printed
    assert "| 32x2048x7x7 " in printed
    assert limit.main(["--limit", "--no-peers", "--processes", "3"]) == 130


def test_a_file_without_the_region_is_not_changed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("text")
    with pytest.raises(ValueError, match="no region"):
        tables.rewrite(page, "table")
    assert page.read_text() == "text"


def test_help_names_every_section(capsys):
    with pytest.raises(SystemExit):
        limit.main(["--help"])
    printed = capsys.readouterr().out
    assert all(f"--{name}" in printed for name in limit.SECTIONS)
