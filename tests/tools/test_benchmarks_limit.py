"""``benchmarks.limit``: rows as they are measured, interrupts, targets of each machine, prototypes."""

import re
import shutil
from pathlib import Path

import pytest
from test_benchmarks import SHAPES, a_plan, limit, made_up_run, plans, positive, report, run_limit, targets

from benchmarks import prototype

PROTOTYPE = Path(__file__).with_name("prototype.c")


def test_an_interrupted_process_keeps_its_finished_rows(monkeypatch):
    plan = a_plan("stream", "inplace_abn")
    plan["groups"] *= 3

    def interrupt(group):
        raise KeyboardInterrupt

    with pytest.raises(plans.Interrupted) as caught:
        plans.run(plan, measured=interrupt)
    partial = caught.value.result
    assert len(partial["groups"]) == 1
    assert partial["machine"]["threads"] == 1

    def run(plan, isa, measured):
        raise plans.Interrupted(partial)

    monkeypatch.setattr(limit.plans, "run_robustly", run)
    notes = []
    (kept,) = limit._run_all([plan], None, notes)
    assert kept is partial
    assert notes == [
        "Interrupted: the figures are those of 0 of 1 processes and of the first rows of one more."
    ]
    assert [row["shape"] for row in report.summarise([made_up_run(1e-3), partial])["limit"]] == [
        (32, 2048, 7, 7),
        (2, 3, 4, 4),
    ]


def test_each_row_is_printed_as_it_is_measured(tmp_path, capsys):
    run_limit(
        tmp_path, "--shapes", SHAPES[0], "--layouts", "channels-last", "--no-peers", "--limit", "--dtypes"
    )
    printed = capsys.readouterr().err
    assert re.search(
        r"^  limit 2x16x4x4 channels-last \(share of the stream's speed\): stream 1.00 / 1.00, "
        r"stream 4096 \S+ / \S+, stream 8192 \S+ / \S+, inplace_abn \S+ / \S+$",
        printed,
        re.MULTILINE,
    )
    assert re.search(
        r"^  dtypes .*: inplace_abn \S+ ms / \S+ ms, inplace_abn float16 ", printed, re.MULTILINE
    )


def test_the_targets_depend_on_the_processor_and_the_threads():
    place = (32, 256, 56, 56), targets.CHANNELS_LAST
    assert targets.find(*place).forward == 0.53
    machine_ = {"cpu": "Intel(R) Xeon(R)", "threads": 16}
    assert targets.find(*place, machine_)[2:] == (0.72, 0.64)
    assert targets.find((32, 64, 112, 112), targets.CHANNELS_LAST, machine_)[2:] == (None, None)
    assert targets.find(*place, machine_ | {"threads": 3})[2:] == (None, None)
    assert targets.has_targets("AMD EPYC", 2)
    assert not targets.has_targets("AMD EPYC", 16)
    assert targets.has_targets("Intel(R) Xeon(R)", 16)


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_prototype_is_built_checked_and_measured(tmp_path):
    source = tmp_path / "prototype.c"
    source.write_text(PROTOTYPE.read_text().replace("FACTOR", "1"))
    summary = run_limit(tmp_path, "--shapes", SHAPES[0], "--no-peers", "--limit", "--prototype", str(source))[
        "summary"
    ]
    assert all(
        positive(row[name]["of_prototype"]["value"])
        for row in summary["limit"]
        for name in ("forward", "backward")
    )
    source.write_text(PROTOTYPE.read_text().replace("FACTOR", "2"))
    plan = a_plan("inplace_abn")
    plan["groups"][0]["contestants"].append({"kind": "prototype", "library": prototype.build(source)})
    with pytest.raises(RuntimeError, match="ended with code"):  # its z is wrong
        plans.run(plan)
    source.write_text("no C")
    with pytest.raises(RuntimeError, match="could not compile"):
        prototype.build(source)
