"""Cost of synchronized statistics: ``python -m benchmarks.sync``.

Starts 1, 2 and 4 processes by ``mpiexec``; each runs forward and backward of a few layers on a batch of its
own, with one thread, alternating between synchronized layers and others. The time of the group's collective
operations is measured apart, waiting for slower processes included. A model of latency and bandwidth
projects the time of the messages to more processes.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks import ROOT, machine, tables
from inplace_abn import functional, layers

SHAPES = ((4, 64, 56, 56), (4, 128, 28, 28), (4, 256, 14, 14), (4, 512, 7, 7))
BEGIN, END = "<!-- sync-table:begin -->", "<!-- sync-table:end -->"

#: Normalizations and channels of ResNet-50, for the projection.
RESNET50_LAYERS, RESNET50_CHANNELS = 53, 26_560
#: The network of the projection: seconds per message, bytes per second, as of InfiniBand HDR100.
LATENCY, BANDWIDTH = 2e-6, 12e9


class Timed:
    """A group that adds up the time of its operations."""

    def __init__(self, group):
        self.group, self.size, self.rank, self.seconds = group, group.size, group.rank, 0.0

    def all_gather(self, values):
        start = time.perf_counter()
        rows = self.group.all_gather(values)
        self.seconds += time.perf_counter() - start
        return rows


def step(stack, batches, gradients):
    """Return the seconds of forward and backward of each layer on its batch."""
    start = time.perf_counter()
    for layer, x in zip(stack, batches, strict=True):
        layer(x)
    for layer, dz in zip(reversed(stack), reversed(gradients), strict=True):
        layer.backward(dz)
    return time.perf_counter() - start


def measure(group, shapes, repeat):
    """Return medians of seconds in this process.

    Those of a step without synchronization; of one with it; of the latter's collective operations; and of one
    such operation without work in between.
    """
    functional.set_num_threads(1)
    group, rng = Timed(group), np.random.default_rng(group.rank)
    alone = [layers.InPlaceABN(shape[1]) for shape in shapes]
    together = [layers.InPlaceABNSync(shape[1], group=group) for shape in shapes]
    batches, gradients = ([rng.standard_normal(s, dtype=np.float32) for s in shapes] for _ in range(2))
    times = []
    for _ in range(repeat + 2):
        group.seconds = 0.0
        times.append([*(step(stack, batches, gradients) for stack in (alone, together)), group.seconds])
    operations, values = [], np.ones(2 * max(shape[1] for shape in shapes) + 2)
    for _ in range(5 * repeat):
        group.seconds = 0.0
        group.all_gather(values)
        operations.append(group.seconds)
    columns = [*zip(*times[2:], strict=True), operations]
    return [statistics.median(column) for column in columns]


def projected(processes, calls, channels, latency=LATENCY, bandwidth=BANDWIDTH):
    """Return the projected seconds of the messages of a step.

    An all-gather by recursive doubling takes ``log2(P)`` messages, and each process receives the rows of all
    others: ``t = ceil(log2(P)) * latency + (P - 1) * bytes / bandwidth``.

    Parameters
    ----------
    processes : int
    calls : int
        Collective operations of a step: two per layer.
    channels : int
        Channels of all layers together.
    latency, bandwidth : float
        Seconds per message, bytes per second.
    """
    row_bytes = 8 * (2 * (2 * channels) + 2 * calls)  # 2 C + 2 numbers in each of both directions
    return calls * math.ceil(math.log2(processes)) * latency + (processes - 1) * row_bytes / bandwidth


def run(processes, shapes, repeat):
    """Return the result of `measure` of the slowest process, by mpiexec."""
    command = [
        "mpiexec",
        "-n",
        str(processes),
        sys.executable,
        "-m",
        "benchmarks.sync",
        "--repeat",
        str(repeat),
    ]
    command += ["--worker", json.dumps(shapes)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def work(shapes, repeat):
    """Measure in this process of MPI; rank 0 prints the result of the slowest one."""
    from mpi4py import MPI

    from inplace_abn.distributed import MPIGroup

    found = MPI.COMM_WORLD.gather(measure(MPIGroup(), shapes, repeat))
    if found:
        print(json.dumps(max(found, key=lambda times: times[1])))


def table(measured):
    """Return the measured times, a dict of processes to the result of `run`, as a table."""
    rows = []
    for count, (alone, together, messages, operation) in measured.items():
        times = [f"{1e3 * seconds:.2f}" for seconds in (alone, together, messages)]
        rows.append([str(count), *times, f"{together / alone:.2f}", f"{1e6 * operation:.0f}"])
    headers = [
        "processes", "each alone, ms", "synchronized, ms", "of it communication, ms", "ratio",
        "one operation, µs",
    ]  # fmt: skip
    return tables.grid(headers, rows)


def projection():
    """Return the projected times of the messages of a step of ResNet-50 as a table."""
    rows = [
        [str(count), f"{1e3 * projected(count, 2 * RESNET50_LAYERS, RESNET50_CHANNELS):.2f}"]
        for count in (2, 4, 16, 64, 256)
    ]
    return tables.grid(["processes", "communication, ms (projected)"], rows)


def block(measured, shapes):
    """Return the text for the documentation."""
    shown = ", ".join("x".join(map(str, shape)) for shape in shapes)
    parts = [
        f"{machine.short(machine.describe(1))}; {len(machine.processors())} processors",
        f"Measured: forward and backward of {len(shapes)} layers, {shown} per process, float32; medians of "
        "the slowest process, each alone and synchronized in turn. Communication includes waiting for slower "
        "processes: those of one machine share its memory bandwidth, and more processes than processors wait "
        "for each other. One operation: those of the widest layer one after the other.",
        table(measured),
        "**A projection, not a measurement:** the messages of a step of ResNet-50, "
        f"{RESNET50_LAYERS} layers and {RESNET50_CHANNELS:,} channels, at {1e6 * LATENCY:g} µs per message "
        f"and {BANDWIDTH / 1e9:g} GB/s. Each operation takes "
        "`ceil(log2(P)) * latency + (P - 1) * bytes / bandwidth`.",
        projection(),
    ]
    return "\n\n".join(parts)


def main(argv=None):
    """Run the command; return the process's exit code."""
    make = argparse.ArgumentParser(prog="python -m benchmarks.sync", description=__doc__.splitlines()[0])
    make.add_argument("--processes", nargs="+", type=int, default=[1, 2, 4], metavar="N")
    make.add_argument("--shapes", type=json.loads, default=SHAPES, help="list of [N, C, H, W], per process")
    make.add_argument("--repeat", type=int, default=50, metavar="N", help="number of steps (50)")
    make.add_argument("--docs", type=Path, nargs="?", const=ROOT / "docs" / "synchronized.md", metavar="FILE",
                      help="write the results into docs/synchronized.md")  # fmt: skip
    make.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    arguments = make.parse_args(argv)
    if arguments.worker is not None:
        work(arguments.worker, arguments.repeat)
        return 0
    shapes = arguments.shapes
    text = block({count: run(count, shapes, arguments.repeat) for count in arguments.processes}, shapes)
    print(text)
    if arguments.docs:
        tables.rewrite(arguments.docs, text, BEGIN, END)
    return 0


if __name__ == "__main__":
    sys.exit(main())
