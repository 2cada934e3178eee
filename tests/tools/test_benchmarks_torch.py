"""`benchmarks.torch`: tasks on tiny networks, interrupts, tables. No test depends on measured times."""

import json
import math
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("the benchmarks are in the source tree only", allow_module_level=True)
sys.path.append(str(ROOT))

from benchmarks import tables, targets, torch_tables  # noqa: E402
from benchmarks import torch as command  # noqa: E402

MIB = 1 << 20


def a_record(section, found, **arguments):
    task = {"section": section, **arguments, "threads": 2}
    return {"task": task, "found": found, "machine": "a machine"}


def a_step(layout, original, converted, network="resnet50", images=8):
    found = {"original": original, "converted": converted}
    return a_record("steps", found, network=network, images=images, pairs=len(original), layout=layout)


def records():
    """Return a made-up record of each kind."""
    first = {"network": "resnet50", "images": 8, "layout": "channels-first"}
    layers = {"original": [0.4], "converted": [0.3]}
    compiled = {"compile": 90.0, "kept": 300 * MIB, "compiled": [1.5], "original": [1.0], "converted": [0.9]}
    return [
        a_record("kept", {"original": 600 * MIB, "converted": 330 * MIB}, **first),
        a_record("peak", {"original": 1300 * MIB}, who="original", **first),
        a_record("peak", {"converted": 1000 * MIB}, who="converted", **first),
        a_step("channels-first", [1.0, 2.0, 4.0], [0.9, 2.1, 3.0]),
        a_step("channels-last", [1.0], [1.1]),
        a_record(
            "normalizations", layers, activation="relu", images=8, pairs=1, layout=targets.CHANNELS_FIRST
        ),
        a_record("tiny", {"original": [1e-5], "converted": [1.3e-5]}, activation="relu", pairs=1),
        a_record("compiled", compiled, budget=0.5, pairs=1, **first),
    ]


def cells(text):
    return {cell.strip() for line in text.splitlines() for cell in line.split("|")}


def test_the_tables_have_the_figures_and_no_targets():
    text = torch_tables.text(records())
    assert cells(text) >= {
        "ResNet-50, ReLU", "600 → 330", "0.55", "1300 → 1000", "0.90 (2.00 → 2.10 s)", "1.10 (1.00 → 1.10 s)",
        "normalizations of ResNet-50, relu", "0.75 (400 → 300 ms)", "one layer, x of 2x8x4x4, relu",
        "1.30 (10.0 → 13.0 µs)", "300", "90",
    }  # fmt: skip
    assert "8 images" in text
    assert "1 or 3 pairs" in text
    # deviations: 0, 0, 1/6, 1/6
    assert "in half of the pairs of steps the ratio is within 8% of the median" in text
    assert text.endswith("\n- a machine")
    assert all(legend in text for legend in torch_tables._LEGENDS.values())
    assert "MISSED" not in text
    assert "MobileNetV2" not in text  # was not measured


def test_a_network_that_cannot_be_compiled_has_a_reason():
    record = a_record("compiled", {"reason": "no compiler"}, network="resnet50", layout="channels-first",
                      budget=0.5, images=8, pairs=1)  # fmt: skip
    assert "no compiler" in cells(torch_tables.text([record]))


def test_figures_are_compared_with_their_targets():
    judged = torch_tables.judge(records())
    assert [figure.missed for figure in judged.values()] == [True, False, False, True, True, True]
    peak = judged["ResNet-50, ReLU: peak of the process, share of the bytes saved"]
    assert peak.value == pytest.approx(300 / 270)
    step = judged["ResNet-50, ReLU: step, channels-first"]
    assert (step.value, step.target) == (0.9, pytest.approx(0.95 * 1.05, abs=1e-3))
    assert torch_tables.judge([a_step("channels-first", [1.0], [2.0], images=2)]) == {}


def test_every_network_has_a_name_and_targets_of_its_own():
    assert set(targets.TORCH_STEP) | {"resnet50-recompute"} == set(torch_tables.NAMES)
    assert set(targets.TORCH_KEPT) | {"resnet18-32"} == set(torch_tables.NAMES)


def todo(*arguments):
    return command.tasks(command.parser().parse_args(["--threads", "2", *arguments]))


def test_without_options_everything_but_the_compilation_is_measured():
    tasks = todo()
    assert list(dict.fromkeys(task["section"] for task in tasks)) == list(command.SECTIONS)
    steps = [task for task in tasks if task["section"] == "steps"]
    assert len(steps) == len(torch_tables.NAMES) * len(targets.LAYOUTS)
    assert all(task["pairs"] >= 9 and task["images"] == 8 for task in steps)


def test_quick_is_a_few_pairs_of_two_networks():
    tasks = todo("--quick")
    assert {task.get("network") for task in tasks} == {None, *command.QUICK_NETWORKS}
    assert {task.get("layout") for task in tasks} == {None, targets.CHANNELS_FIRST}
    assert {task.get("pairs") for task in tasks} == {None, command.QUICK_PAIRS}
    assert "peak" not in {task["section"] for task in tasks}


def test_sections_networks_and_layouts_can_be_chosen():
    (task,) = todo("--sections", "steps", "--networks", "densenet121", "--layouts", "channels-last")
    assert (task["network"], task["layout"]) == ("densenet121", "channels-last")
    *_, last = todo("--sections", "kept", "--compile", "resnet50", "--budget", "0.4")
    assert (last["section"], last["budget"]) == ("compiled", 0.4)


@pytest.fixture
def fake_run(monkeypatch):
    """Let tasks return made-up numbers; return the list of tasks that ran. The second one is interrupted."""
    ran = []

    def run(task):
        ran.append(task["network"])
        if len(ran) == 2:
            raise KeyboardInterrupt
        return {"original": 2 * MIB, "converted": MIB}

    monkeypatch.setattr(command, "run", run)
    monkeypatch.setattr(command, "why_not", lambda: None)
    return ran


def test_an_interrupt_keeps_what_was_measured_and_a_resumed_run_does_the_rest(fake_run, tmp_path, capsys):
    file, page = tmp_path / "numbers.json", tmp_path / "page.md"
    page.write_text(f"before\n{command.BEGIN}\nold\n{command.END}\nafter\n", encoding="utf-8")
    arguments = ["--sections", "kept", "--networks", "resnet50", "mobilenet-v2", "--output", str(file)]
    assert command.main(arguments) == 0
    printed = capsys.readouterr()
    assert "Interrupted" in printed.out
    assert "kept resnet50 channels-first: original 2.00 MiB, converted 1.00 MiB" in printed.err
    assert len(json.loads(file.read_text(encoding="utf-8"))["records"]) == 1
    assert command.main([*arguments, "--resume", "--docs", str(page)]) == 0
    assert fake_run == ["resnet50", "mobilenet-v2", "mobilenet-v2"]
    assert "Interrupted" not in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert cells(text) >= {"ResNet-50, ReLU", "MobileNetV2, ReLU6", "2.00 → 1.00", "0.50"}
    saved = json.loads(file.read_text(encoding="utf-8"))
    for record in saved["records"]:
        record["machine"] = "another one"
    file.write_text(json.dumps(saved), encoding="utf-8")
    assert command.main([*arguments, "--resume"]) == 0
    assert fake_run[3:] == ["resnet50", "mobilenet-v2"]


def test_an_interrupt_before_the_first_figure_fails(fake_run):
    fake_run.append("")
    assert command.main(["--sections", "kept", "--networks", "resnet50"]) == 130


def test_without_pytorch_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(command, "why_not", lambda: "torch is not installed")
    assert command.main([]) == 0
    assert capsys.readouterr().out == "nothing to measure: torch is not installed\n"


def test_resume_needs_a_file():
    with pytest.raises(SystemExit):
        command.main(["--resume"])


def test_the_page_has_the_region_that_the_command_rewrites(tmp_path):
    copy = tmp_path / "page.md"
    copy.write_text((ROOT / "docs" / "pytorch.md").read_text(encoding="utf-8"), encoding="utf-8")
    tables.rewrite(copy, "new", command.BEGIN, command.END)
    assert f"{command.BEGIN}\n\nnew\n\n{command.END}" in copy.read_text(encoding="utf-8")
    assert "MISSED" not in copy.read_text(encoding="utf-8")


@pytest.fixture
def tiny_network(monkeypatch):
    """Add a network that takes milliseconds; return its name."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from torch import nn

    from benchmarks import torch_networks

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.relu = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()

        def forward(self, x):
            return self.relu(self.bn(self.conv(x)) + x)

    def make():
        stem = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
        head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, torch_networks.CLASSES)
        return nn.Sequential(*stem, Block(), *head)

    monkeypatch.setitem(torch_networks.NETWORKS, "tiny", torch_networks.Network(make, size=12))
    return "tiny"


@pytest.mark.torch
def test_networks_are_compared(tiny_network):
    from benchmarks import torch_tasks

    found = torch_tasks.kept(tiny_network, "channels-first", images=2)
    assert 0 < found["converted"] < 0.7 * found["original"]
    steps = torch_tasks.steps(tiny_network, "channels-last", images=2, pairs=3)
    assert all(len(steps[who]) == 3 and min(steps[who]) > 0 for who in torch_tables.WHO)
    assert torch_tasks.peak(tiny_network, "channels-first", 2, "converted")["converted"] > 0


@pytest.mark.torch
def test_normalizations_are_taken_out_of_the_network(tiny_network):
    from benchmarks import torch_layers

    found = torch_layers.kinds(2, tiny_network)
    shape = (2, 8, 10, 10)
    assert found == {torch_layers.Kind(shape, False, True): 1, torch_layers.Kind(shape, True, True): 1}


@pytest.mark.torch
@pytest.mark.parametrize("activation", command.ACTIVATIONS)
@pytest.mark.parametrize("has_residual", [False, True])
def test_layers_without_convolutions_are_fused_and_give_the_same_gradients(activation, has_residual):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from benchmarks import torch_layers
    from inplace_abn.torch import convert, report

    kind = torch_layers.Kind((2, 4, 3, 3), has_residual, True)
    for layout in targets.LAYOUTS:
        assert set(torch_layers.contestants(kind, activation, layout)) == {"copies", "original", "converted"}
    x, dz, gradients = torch.randn(kind.shape, requires_grad=True), torch.randn(kind.shape), []
    residual = [torch.randn(kind.shape)] if has_residual else []
    for change in (lambda layer: layer, convert):
        layer = torch_layers.without_convolutions(change(torch_layers.make(kind, activation)), dz)
        layer(x, *residual).backward()
        gradients.append(layer.norm.weight.grad)
    (row,) = report(layer).rows
    assert row.state == ("with residual" if has_residual else "fused")
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.torch
def test_layers_are_compared(tiny_network, monkeypatch):
    from benchmarks import torch_layers

    kinds = torch_layers.kinds(2, tiny_network)
    monkeypatch.setattr(torch_layers, "kinds", lambda images: kinds)
    monkeypatch.setattr(torch_layers, "CALLS", 2)
    for found in (
        torch_layers.normalizations("relu", "channels-first", images=2, pairs=2),
        torch_layers.tiny("leaky_relu", pairs=2),
    ):
        assert all(len(found[who]) == 2 and all(map(math.isfinite, found[who])) for who in torch_tables.WHO)


@pytest.mark.torch
def test_a_compiled_network_is_compared(tiny_network, monkeypatch):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from benchmarks import torch_tasks

    monkeypatch.setattr(torch._functorch.config, "activation_memory_budget", 1.0)
    monkeypatch.setattr(torch, "compile", lambda model: model)  # compilation takes long
    found = torch_tasks.compiled(tiny_network, "channels-first", images=2, pairs=1, budget=0.5)
    assert torch._functorch.config.activation_memory_budget == 0.5
    assert len(found["compiled"]) == 1
    assert found["kept"] == torch_tasks.kept(tiny_network, "channels-first", images=2)["original"]

    def fail(model):
        def forward(x):
            raise RuntimeError("no compiler\nmore")

        return forward

    monkeypatch.setattr(torch, "compile", fail)
    found = torch_tasks.compiled(tiny_network, "channels-first", images=2, pairs=1, budget=0.5)
    assert found == {"reason": "RuntimeError: no compiler"}


@pytest.mark.torch
@pytest.mark.slow
def test_every_network_of_the_table_can_be_made():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("without_operators").import_torchvision()
    from benchmarks import torch_networks

    assert list(torch_networks.NETWORKS) == list(torch_tables.NAMES)
    for row in torch_networks.NETWORKS.values():
        images = torch.empty(2, 3, row.size, row.size, device="meta")
        assert row.make().to("meta")(images).shape == (2, torch_networks.CLASSES)


@pytest.mark.torch
@pytest.mark.slow
def test_a_task_runs_in_a_fresh_process():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("without_operators").import_torchvision()
    task = {
        "section": "kept",
        "network": "resnet18-32",
        "layout": "channels-first",
        "images": 1,
        "threads": 1,
    }
    found = command.run(task)
    assert 0 < found["converted"] < found["original"]
    with pytest.raises(RuntimeError, match="ended with code"):
        command.run(task | {"network": "none"})
