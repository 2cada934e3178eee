"""Times of operations of PyTorch, on the CPU or on a GPU: contestants in turn."""

import statistics
import time

import torch

CALLS = 10  # of a contestant in a round, between two readings of the clock


def seconds(call, device, calls=CALLS):
    """Return the time of a call on the device, the mean of several in a row."""
    if device != "cuda":
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - begin) / calls
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / calls


def rounds_in_turn(contestants, device, rounds, calls=CALLS):
    """Return the times of every contestant, a dict of lists: one per round, after a round for warm-up.

    In each round another contestant is the first.
    """
    entries, times = list(contestants.items()), {name: [] for name in contestants}
    for number in range(rounds + 1):
        turn = number % len(entries)
        for name, call in entries[turn:] + entries[:turn]:
            times[name].append(seconds(call, device, calls))
    return {name: found[1:] for name, found in times.items()}


def in_turn(contestants, device, rounds, calls=CALLS):
    """Return the median time of every contestant, a dict; they run as in `rounds_in_turn`."""
    times = rounds_in_turn(contestants, device, rounds, calls)
    return {name: statistics.median(found) for name, found in times.items()}
