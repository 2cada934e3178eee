"""Times on a GPU without the host's: calls are recorded as a CUDA graph, which is replayed."""

import contextlib
from itertools import cycle, islice

import torch

from benchmarks.torch_timing import in_turn

CACHE = 240e6  # bytes that no GPU's cache holds: calls in a row work on as many batches as that
MOST_SETS = 10


def sets_of(nbytes):
    """Return how many batches of this size must take turns, so that none is in the cache when it is used."""
    return min(MOST_SETS, max(1, round(CACHE / nbytes)))


@contextlib.contextmanager
def recording_stream(device):
    """Run the block in a stream of its own: a graph records autograd's backward in the forward's stream."""
    if device != "cuda":
        yield None
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield stream
    torch.cuda.current_stream().wait_stream(stream)


def recorded(calls, stream, count):
    """Return a function that runs the calls in turn, at least `count`, and how many; all run once before."""
    turns = list(islice(cycle(calls), max(count, len(calls))))
    for call in calls:
        call()
    if stream is None:
        return lambda: [call() for call in turns], len(turns)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for call in turns:
            call()
    return graph.replay, len(turns)


def times(contestants, stream, device, rounds, count=10):
    """Return the median seconds of a call of every contestant: {name: [one call per set of batches]}."""
    replays, counts = {}, {}
    for name, calls in contestants.items():
        replays[name], counts[name] = recorded(calls, stream, count)
    found = in_turn(replays, device, rounds, 2)
    return {name: seconds / counts[name] for name, seconds in found.items()}
