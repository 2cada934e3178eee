"""What ``python -m benchmarks.torch`` measures, one task per process.

A task is a dict of "section", the name of a function in `SECTIONS`, its arguments, and "threads". A function
returns a dict of numbers. The contestants are "original", a model as it is, and "converted".
"""

import time

import torch
import torch._functorch.config

from benchmarks import machine
from benchmarks.torch_layers import normalizations, tiny
from benchmarks.torch_networks import FORMATS, NETWORKS, Training, make
from benchmarks.torch_tables import WHO
from benchmarks.torch_timing import rounds_in_turn, seconds
from inplace_abn import functional
from inplace_abn.demo.peaks import resident_peak
from inplace_abn.torch import ledger


def training(network, who, layout, images):
    """Return the training of a network on a batch of the network's size of images."""
    return Training(make(network, who), FORMATS[layout], images, NETWORKS[network].size)


def kept(network, layout, images):
    """Return the bytes that autograd saves in a forward, each storage once, by contestant."""
    found = {}
    for who in WHO:
        one = training(network, who, layout, images)
        with ledger(one.model) as book:
            one.forward()
        found[who] = book.kept
    return found


def steps(network, layout, images, pairs):
    """Return the seconds of the training steps of both, which alternate."""
    trainings = {who: training(network, who, layout, images) for who in WHO}
    return rounds_in_turn({who: one.step for who, one in trainings.items()}, "cpu", pairs, calls=1)


def peak(network, layout, images, who):
    """Return the highest resident memory of this process, in bytes, after two training steps.

    Without a figure where the system reports none.
    """
    one = training(network, who, layout, images)
    for _ in range(2):
        one.step()
    highest = resident_peak()
    return {} if highest is None else {who: highest}


def compiled(network, layout, images, pairs, budget):
    """Compare with `torch.compile`, which recomputes to stay within a share of the activation memory.

    Returns
    -------
    dict
        "compile": seconds of the first step beyond those of the others; "kept": bytes; and the seconds of
        steps of "original", "converted" and "compiled". If it cannot compile here: "reason".

    References
    ----------
    ``torch._functorch.config.activation_memory_budget``, since PyTorch 2.4.
    """
    torch._functorch.config.activation_memory_budget = budget
    trainings = {who: training(network, who, layout, images) for who in WHO}
    optimized = training(network, "original", layout, images)
    plain, optimized.model = optimized.model, torch.compile(optimized.model)
    begin = time.perf_counter()
    try:
        optimized.step()
    except Exception as error:  # no compiler, an operation without a form for this device, ...
        return {"reason": f"{type(error).__name__}: {error}".splitlines()[0]}
    first = time.perf_counter() - begin
    with ledger(plain) as book:
        optimized.forward()
    trainings["compiled"] = optimized
    times = rounds_in_turn({who: one.step for who, one in trainings.items()}, "cpu", pairs, calls=1)
    return {"compile": first - seconds(optimized.step, "cpu", 1), "kept": book.kept, **times}


SECTIONS = {
    "kept": kept,
    "normalizations": normalizations,
    "tiny": tiny,
    "peak": peak,
    "steps": steps,
    "compiled": compiled,
}


def run(task):
    """Run a task in this process and return its numbers."""
    arguments = dict(task)
    section, threads = arguments.pop("section"), arguments.pop("threads")
    machine.pin(threads)
    torch.set_num_threads(threads)
    functional.set_num_threads(threads)
    return SECTIONS[section](**arguments)
