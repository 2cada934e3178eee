"""A measuring process: takes a plan, times all contestants in turn, returns plain data."""

import gc
import os
import sys
import time
import tracemalloc

import numpy as np

from benchmarks import machine, overhead
from benchmarks.contestants import Batch, InPlaceABN, Stream
from benchmarks.peers import PEERS
from benchmarks.prototype import Prototype

try:
    import resource
except ImportError:  # Windows
    resource = None

_KINDS = {"stream": Stream, "inplace_abn": InPlaceABN, "prototype": Prototype} | {
    name: make for name, (make, _) in PEERS.items()
}


def work(plan):
    """Run a plan; yield (name, value) as soon as something is measured.

    Parameters
    ----------
    plan : dict
        "environment": name of the environment of this process; "threads", "repeat", "warmup": counts;
        "flush_bytes": size of the buffer written before each timed call; "memory": True to trace the memory
        that the passes of inplace_abn allocate; "overhead": number of tiny calls, or 0; "groups": contestants
        measured in turn, each a dict of "section", "shape", "layout" and "contestants" (see `_make`).

    Yields
    ------
    "machine", dict
        The description of the machine, first.
    "group", dict
        Each of the plan's groups, with "records" instead of "contestants". A record is its contestant with
        "pass", "seconds" (one figure per repetition), "faults" (page faults, if the system counts them) and,
        if traced, "peak" (bytes allocated in the pass). "errors" has an entry for each contestant that was
        not measured.
    "overhead", dict
        The result of `benchmarks.overhead.measure`, if the plan asks for it.
    """
    machine.pin(plan["threads"])
    flush = Flush(plan["flush_bytes"])
    gc.disable()
    yield "machine", machine.describe(plan["threads"])
    for group in plan["groups"]:
        yield "group", _measure(group, plan, flush)
        gc.collect()
    if plan["overhead"]:
        yield "overhead", overhead.measure(plan["overhead"])


class Flush:
    """Fill the caches with modified lines of another array, as other layers of a network do.

    Reading alone would leave clean lines: the results of a small pass could stay in the cache, and the time
    to write them to memory would not be measured. A single thread writes, so that no thread pool is woken.
    """

    def __init__(self, size):
        self.buffer = np.zeros(max(size // 4, 1), np.float32)

    def __call__(self):
        np.add(self.buffer, 1, out=self.buffer)


def _make(contestant, batches, group, threads):
    """Make a contestant from {"kind": "stream", "inplace_abn" or a name in `PEERS`; "dtype"; its options}."""
    options = dict(contestant)
    kind, dtype = options.pop("kind"), options.pop("dtype", "float32")
    if dtype not in batches:
        batches[dtype] = Batch(group["shape"], group["layout"], dtype)
    return _KINDS[kind](batches[dtype], threads, **options)


def _measure(group, plan, flush):
    batches, records, errors = {}, [], []
    entries = []
    for contestant in group["contestants"]:
        try:
            entries.append((contestant, _make(contestant, batches, group, plan["threads"]), {}))
        except Exception as error:
            _give_up(errors, contestant, error)
    for round_ in range(plan["warmup"] + plan["repeat"]):
        turn = round_ % max(len(entries), 1)
        for entry in entries[turn:] + entries[:turn]:
            contestant, runner, passes = entry
            try:
                _round(runner, flush, passes if round_ >= plan["warmup"] else {})
            except Exception as error:
                entries.remove(entry)
                _give_up(errors, contestant, error)
    for contestant, runner, passes in entries:
        peaks = _peaks(runner) if plan["memory"] and contestant["kind"] == "inplace_abn" else {}
        for name, figures in passes.items():
            record = {**contestant, "pass": name, **figures}
            records.append(record | ({"peak": peaks[name]} if name in peaks else {}))
    return {
        **{name: group[name] for name in ("section", "shape", "layout")},
        "records": records,
        "errors": errors,
    }


def _round(runner, flush, passes):
    for name, call in runner.run():
        flush()
        before, begin = _faults(), time.perf_counter()
        call()
        seconds = time.perf_counter() - begin
        figures = passes.setdefault(name, {"seconds": [], "faults": []})
        figures["seconds"].append(seconds)
        figures["faults"].append(_faults() - before)


def _faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt if resource else 0


def _peaks(runner):
    """Return the peak of memory allocated by Python and NumPy in each pass, relative to its start."""
    peaks = {}
    tracemalloc.start()
    try:
        for name, call in runner.run():
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            call()
            peaks[name] = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    return peaks


def _give_up(errors, contestant, error):
    """Record the error of a peer or of a dtype without its package; raise any other error."""
    if contestant["kind"] not in PEERS and not isinstance(error, ImportError):
        raise error
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    errors.append({**contestant, "error": reason})
    print(f"    without {contestant}: {reason}", file=sys.stderr, flush=True)


def redirect_stdout():
    """Redirect prints of libraries to standard error; return a stream for the real standard output."""
    sys.stdout.flush()
    real = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return real
