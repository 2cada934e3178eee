"""What the ledger for PyTorch says: explanation, plot, the estimate of what conversion frees."""

import copy
import doctest
import importlib
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", minversion="2.4")
nn = torch.nn

import zoo  # noqa: E402
from test_ledger import FULL, images, small  # noqa: E402

from inplace_abn.torch import convert, ledger  # noqa: E402


def book_of(model, x, label=""):
    with ledger(model, label) as book:
        model(x).sum().backward()
    return book


def test_examples():
    assert doctest.testmod(importlib.import_module("inplace_abn.torch.memory")).failed == 0


def activations():
    """Return a model with activations of which PyTorch keeps the input besides the input of batch norm."""
    layers = []
    for activation in (nn.SiLU(), nn.Hardswish(inplace=True), nn.ReLU6(), nn.GELU(), nn.LeakyReLU(0.1)):
        layers += [nn.Conv2d(8 if layers else 3, 8, 3), nn.BatchNorm2d(8), activation]
    return nn.Sequential(*layers, nn.Conv2d(8, 8, 3))


@pytest.mark.parametrize("make", [lambda: zoo.vision("resnet18"), activations], ids=["resnet18", "small"])
def test_the_estimate_of_what_conversion_frees(make):
    torch.manual_seed(0)
    model = make().train()
    x = torch.randn(2, 3, 64, 64)
    before = book_of(model, x)
    advice = before._advice(before._entries("kept"))
    sizes = {id(views): max(view.nbytes for view in views) for views in advice._buffers.values()}
    estimate = sum(sizes[id(views)] for views in advice._buffers.values() if advice._would_be_freed(views))
    freed = before.kept - book_of(convert(copy.deepcopy(model)), x).kept
    assert estimate == pytest.approx(freed, rel=0.05)
    assert f"({estimate / before.kept:.0%})" in before.explain()


def test_explanation_of_a_model_that_is_not_converted():
    model = small()
    text = book_of(model, images()).explain()
    assert "as input of batch_norm of 1 (BatchNorm2d)" in text
    assert "convert(model) would fuse 1 with what follows it, and free 16.0 KiB" in text
    assert f"convert(model) would free about {2 * FULL / 1024:.1f} KiB of it" in text
    assert model[1].__class__ is nn.BatchNorm2d  # conversion was tried on a copy


def test_explanation_of_a_converted_model():
    text = book_of(convert(small()), images()).explain()
    assert "results of normalizations, written over their inputs" in text
    assert "convert(model, recompute_stem=True, recompute_projections=True) would free 16.0 KiB" in text


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x):
        y = self.bn(self.conv(x))
        return y.relu() if y.sum() > 0 else y.sigmoid()


@pytest.mark.parametrize("converted", [False, True])
def test_explanation_says_why_a_batch_norm_is_left(converted):
    model = nn.Sequential(Untraceable(), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    if converted:
        convert(model)
    text = book_of(model, images()).explain()
    verb = "was not" if converted else "would not be"
    assert f"0.bn {verb} converted: Untraceable 0 cannot be traced" in text


def test_explanation_of_a_converted_model_that_runs_unfused():
    model = convert(small())
    model[1].register_forward_hook(lambda module, args, result: None)
    with pytest.warns(UserWarning, match="without fusion"):
        book = book_of(model, images())
    assert "1 was converted, but PyTorch's own operations ran" in book.explain()


def test_explanation_of_forwards_without_a_backward():
    model, losses = small(), []
    with ledger(model) as book:
        losses += [model(images()).sum() for _ in range(3)]
    assert "3 calls of Sequential wait for their backward" in book.explain()
    assert len(losses) == 3


def test_explanation_of_a_model_that_cannot_be_copied():
    class Stubborn(nn.Sequential):
        def __deepcopy__(self, memo):
            raise NotImplementedError("no copies")

    text = book_of(Stubborn(*small()), images()).explain()
    assert "convert(model) cannot be tried on a copy: NotImplementedError: no copies" in text


def test_plot_and_texts():
    pytest.importorskip("matplotlib").use("agg")
    x = images()
    before, after = book_of(small(), x, "original"), book_of(convert(small()), x, "converted")
    title = before.plot(after).get_title(loc="left")
    assert title == f"converted keeps {after.kept / before.kept:.0%} of the memory of original"
    assert "forward" in str(before)
    assert "backward" in str(before)
    assert "<svg" in after._repr_html_()
    assert "float32" in str(after.table())
    assert "torch.float32" not in str(after.table())
    assert "parameters" in str(before.table())


# ---- compared with the memory of the process and of a GPU --------------------------------------------------

RESIDENT = """
import ctypes, sys
import psutil, torch
from inplace_abn.torch import convert, ledger
torch.set_num_threads(1)
torch.manual_seed(0)
layers = []
for _ in range(4):
    layers += [torch.nn.Conv2d(32, 32, 1, bias=False), torch.nn.BatchNorm2d(32), torch.nn.ReLU()]
model = torch.nn.Sequential(*layers)
if sys.argv[1] == "converted":
    convert(model)
x = torch.randn(2, 32, 224, 224)
trim = ctypes.CDLL(None).malloc_trim
def resident():
    trim(0)
    return psutil.Process().memory_info().rss
for _ in range(2):
    model(x).sum().backward()
before = resident()
with ledger(model) as book:
    result = model(x)
    grown = resident() - before
    table = book.table("now")
shared = x.nbytes  # allocated before
kept = result.nbytes if sys.argv[1] == "converted" else 0  # the result of the last ReLU, which PyTorch keeps
print(grown, book.live - shared + kept)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="compares with what glibc's allocator has taken")
@pytest.mark.parametrize("kind", ["original", "converted"])
def test_memory_of_the_process_grows_by_what_is_kept(kind):
    pytest.importorskip("psutil")
    run = subprocess.run(
        [sys.executable, "-c", RESIDENT, kind], capture_output=True, text=True, check=False,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    grown, counted = map(int, run.stdout.split())
    assert grown == pytest.approx(counted, rel=0.03)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_allocated_memory_of_a_gpu_grows_by_what_is_kept(name, converted):
    """Apart from the rounding of the allocator, and from what the core's contexts keep on the GPU."""
    torch.manual_seed(0)
    model = zoo.vision(name).train().cuda()
    if converted:
        convert(model)
    x = torch.randn(16, 3, 224, 224, device="cuda")
    for _ in range(2):  # algorithms are chosen, and kernels compiled
        model(x).sum().backward()
        model.zero_grad()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    with ledger(model) as book:
        result = model(x)
        torch.cuda.synchronize()
        grown = torch.cuda.memory_allocated() - before
        assert book.live - x.nbytes == pytest.approx(grown, rel=0.02)
        result.sum().backward()
        del result
    assert book.live == 0


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_tensors_that_are_moved_to_the_cpu_are_counted_there():
    model = small().cuda()
    with ledger(model) as book, torch.autograd.graph.save_on_cpu(pin_memory=True):
        model(images().cuda()).sum().backward()
    activations = [row for row in book.table() if len(row.shape) == 4]
    assert all("(on cpu)" in row.role for row in activations)
