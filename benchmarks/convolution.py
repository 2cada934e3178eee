"""Time and scratch memory of convolutions: ``python -m benchmarks.convolution``.

Times forward and backward of `inplace_abn.ops.conv2d`, alternating with PyTorch's if that is installed. The
threads of both libraries spin for a while after a call, so there is a pause before each timed call. Scratch
is the memory that NumPy allocates beyond the results.

A convolution calls BLAS some hundred times, and each call waits for all threads. On a busy machine, measure
with ``--threads 1 --clock processor``.
"""

import argparse
import gc
import os
import statistics
import subprocess
import sys
import time
import tracemalloc
from typing import NamedTuple

import numpy as np

from benchmarks import ROOT, limit, machine, tables
from inplace_abn.ops import conv2d

try:
    import torch
except ImportError:
    torch = None


class Case(NamedTuple):
    """A convolution with padding kernel // 2."""

    shape: tuple  # (N, C, H, W), independent of the layout
    outputs: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    dtype: str = "float32"

    def __str__(self):
        size = f"{self.kernel}x{self.kernel}"
        name = f"{'x'.join(map(str, self.shape))} -> {self.outputs}, {size}"
        name += f", stride {self.stride}" if self.stride > 1 else ""
        name += f", {self.groups} groups" if self.groups > 1 else ""
        return name if self.dtype == "float32" else f"{name}, {self.dtype}"


#: Targets of the first case: time / PyTorch's time, and scratch / bytes of the input.
RATIO, SHARE = 3.0, 0.1
TARGET = Case((8, 64, 56, 56), 64)
CASES = (
    TARGET,
    TARGET._replace(dtype="float64"),
    TARGET._replace(kernel=1),
    TARGET._replace(stride=2, outputs=128),
    TARGET._replace(groups=64),
    Case((8, 3, 112, 112), 64, kernel=7, stride=2),
    Case((64, 16, 32, 32), 16),
    Case((8, 512, 7, 7), 512),
)
LEGEND = (
    "convolution: (N, C, H, W) -> channels of the result, size of the kernel.",
    "ms: median times of inplace_abn, forward + backward. PyTorch: those of PyTorch.",
    "ratio: time of inplace_abn / time of PyTorch, both passes; median over pairs measured in succession.",
    "scratch: peak of NumPy's allocations beyond the results, and its share of the input's bytes.",
)
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
LAYOUTS = ("channels-first", "channels-last")


class Own:
    """`inplace_abn.ops.conv2d`; the object is also the context of its calls."""

    name = "inplace_abn"

    def __init__(self, case, layout, x, weight, dz):
        axis = 1 if layout == "channels-first" else -1
        self.x, self.dz = (np.ascontiguousarray(np.moveaxis(array, 1, axis)) for array in (x, dz))
        self.kernels = weight
        self.keywords = {"stride": case.stride, "padding": case.kernel // 2, "groups": case.groups}
        self.keywords["channel_axis"] = axis

    def forward(self):
        return conv2d.forward(self, self.x, self.kernels, **self.keywords)

    def backward(self, z):
        return conv2d.backward(self, self.dz)

    def save_for_backward(self, **saved):
        self.saved = saved

    def temporary(self, nbytes):
        pass


class Peer:
    """PyTorch's convolution."""

    name = "torch"

    def __init__(self, case, layout, x, weight, dz):
        form = torch.contiguous_format if layout == "channels-first" else torch.channels_last
        self.x, self.weight, self.dz = (
            torch.tensor(array).contiguous(memory_format=form) for array in (x, weight, dz)
        )
        self.x.requires_grad_(True)
        self.weight.requires_grad_(True)
        self.keywords = {"stride": case.stride, "padding": case.kernel // 2, "groups": case.groups}

    def forward(self):
        return torch.nn.functional.conv2d(self.x, self.weight, **self.keywords)

    def backward(self, z):
        self.x.grad = self.weight.grad = None
        z.backward(self.dz)


def measure(case, layout, repeat, pause, clock=time.perf_counter):
    """Time forward and backward of all contestants in turn.

    Returns
    -------
    seconds : dict of str to list of (float, float)
        By name: seconds of forward and of backward for each repetition.
    nbytes : int
        Scratch of inplace_abn, in bytes.
    """
    rng = np.random.default_rng(0)
    samples, channels, *size = case.shape
    size = [(length + 2 * (case.kernel // 2) - case.kernel) // case.stride + 1 for length in size]
    shapes = case.shape, (case.outputs, channels // case.groups, case.kernel, case.kernel)
    arrays = [
        rng.standard_normal(shape).astype(case.dtype) for shape in (*shapes, (samples, case.outputs, *size))
    ]
    contestants = [kind(case, layout, *arrays) for kind in ((Own, Peer) if torch else (Own,))]
    seconds = {contestant.name: [] for contestant in contestants}
    for number in range(repeat + 2):  # the first two warm up
        for contestant in contestants:
            time.sleep(pause)
            begin = clock()
            z = contestant.forward()
            middle = clock()
            contestant.backward(z)
            end = clock()
            del z
            if number >= 2:
                seconds[contestant.name].append((middle - begin, end - middle))
    return seconds, scratch(contestants[0])


def scratch(own):
    """Return the peak of NumPy's allocations beyond the results, in bytes, over forward and backward."""
    gc.collect()
    tracemalloc.start()
    try:
        z = own.forward()
        forward = tracemalloc.get_traced_memory()[1] - z.nbytes
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        results = [result for result in own.backward(z) if result is not None]
        backward = tracemalloc.get_traced_memory()[1] - held - sum(result.nbytes for result in results)
    finally:
        tracemalloc.stop()
    return max(forward, backward)


def row(case, layout, *settings):
    """Return a row of the table as a dict. `settings` are passed to `measure`."""
    seconds, nbytes = measure(case, layout, *settings)
    found = {"case": str(case), "layout": layout, "scratch": nbytes}
    found["share"] = nbytes / (np.prod(case.shape) * np.dtype(case.dtype).itemsize)
    for name, pairs in seconds.items():
        found[name] = [statistics.median(part) * 1e3 for part in zip(*pairs, strict=True)]
    if len(seconds) == 2:
        # Pairs measured in succession, so that a change of the machine's load affects both.
        found["ratio"] = statistics.median(
            sum(own) / sum(peer) for own, peer in zip(*seconds.values(), strict=True)
        )
    return found


def text(rows):
    """Return the rows as a table."""
    lines = [
        [
            found["case"],
            found["layout"],
            *(
                " + ".join(f"{part:.1f}" for part in found[name]) if name in found else ""
                for name in ("inplace_abn", "torch")
            ),
            f"{found['ratio']:.2f}" if "ratio" in found else "",
            f"{found['scratch'] / 1024:.0f}",
            f"{100 * found['share']:.1f} %",
        ]
        for found in rows
    ]
    titles = [
        "convolution",
        "layout",
        "ms, forward + backward",
        "PyTorch",
        "ratio",
        "scratch, KiB",
        "of the input",
    ]
    return tables.grid(titles, lines)


def parser():
    """Return the command's parser."""
    make = argparse.ArgumentParser(
        prog="python -m benchmarks.convolution", description=__doc__.splitlines()[0]
    )
    make.add_argument("--quick", action="store_true", help="measure only the case that has a target")
    make.add_argument("--repeat", type=int, default=15)
    limit.add_threads(make)
    make.add_argument("--pause", type=float, default=0.2, help="seconds before each call (0.2)")
    make.add_argument("--clock", choices=CLOCKS, default="wall", help="wall-clock or processor time (wall)")
    make.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=LAYOUTS)
    make.add_argument("--shrink", type=int, default=1, help=argparse.SUPPRESS)
    return make


def main(argv=None):
    """Run the command in this process; return its exit code."""
    arguments = parser().parse_args(argv)
    if torch:
        torch.set_num_threads(arguments.threads)
    clock, rows = CLOCKS[arguments.clock], []
    for case in CASES[:1] if arguments.quick else CASES:
        samples, channels, *size = case.shape
        shape = (-(-samples // arguments.shrink), channels, *(-(-n // arguments.shrink) for n in size))
        for layout in arguments.layouts:
            print(f"{case}, {layout}", file=sys.stderr, flush=True)
            rows.append(row(case._replace(shape=shape), layout, arguments.repeat, arguments.pause, clock))
    print("\n".join(machine.header(machine.describe(arguments.threads))))
    if (busy := machine.load()) > 0.5:
        print(f"processors busy in the last minute: {busy:.1f}")
    print(text(rows))
    print(tables.listed(LEGEND))
    print(f"targets of the first case: ratio <= {RATIO:g}, scratch < {100 * SHARE:g} % of the input")
    return 0


def in_fresh_process():
    """Run the command in a process whose number of threads is set before BLAS is loaded."""
    threads = str(parser().parse_args().threads)
    names = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    code = "import sys; from benchmarks import convolution; sys.exit(convolution.main())"
    command = [sys.executable, "-c", code, *sys.argv[1:]]
    return subprocess.call(command, cwd=ROOT, env=os.environ | dict.fromkeys(names, threads))


if __name__ == "__main__":
    sys.exit(in_fresh_process())
