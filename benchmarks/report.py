"""Computes the figures of the tables, with their targets, from the times measured by all processes."""

import dataclasses
import itertools
import math
import statistics

from benchmarks import targets
from benchmarks.plans import OWN, PREFETCHING, STREAM

#: Arrays read and written in a pass of the stream.
_TRAFFIC = {"forward": 2, "backward": 3}
#: section -> (what varies in it, the value that the others are compared with)
_BASE = {
    "dtypes": ("dtype", "float32"),
    "strategies": ("strategy", "standard"),
}
#: Defaults of a contestant.
_DEFAULTS = {
    "dtype": "float32", "activation": "leaky_relu", "strategy": "inplace", "residual": False, "prefetch": 0,
}  # fmt: skip
_PROTOTYPE = {"kind": "prototype"}


@dataclasses.dataclass(frozen=True)
class Judged:
    """A figure and its target: at least `target`, or at most `target` if `at_most`."""

    value: float
    target: float | None = None
    at_most: bool = False

    @property
    def missed(self):
        if self.target is None:
            return False
        return self.value > self.target if self.at_most else self.value < self.target

    def plain(self):
        """Return a dict for JSON."""
        return {"value": self.value, "target": self.target, "at_most": self.at_most, "missed": self.missed}


def _identity(contestant):
    return tuple((_DEFAULTS | contestant)[name] for name in ("kind", *_DEFAULTS))


class Process:
    """The median times of one process. A `row` is (section, shape, layout)."""

    def __init__(self, run):
        self.environment, self.overhead = run["environment"], run["overhead"]
        self.rows = []
        self.medians, self.peaks = {}, {}
        for group in run["groups"]:
            row = group["section"], tuple(group["shape"]), group["layout"]
            self.rows.append(row)
            for record in group["records"]:
                key = row, _identity(record), record["pass"]
                self.medians[key] = statistics.median(record["seconds"])
                if "peak" in record:
                    self.peaks[key] = record["peak"]

    def seconds(self, row, contestant, name):
        """Return the median of pass `name`, or None if not measured. "both" is forward + backward."""
        identity = _identity(contestant)
        found = self.medians.get((row, identity, name))
        if found is None and name == "both":
            parts = [self.medians.get((row, identity, part)) for part in _TRAFFIC]
            found = None if None in parts else sum(parts)
        return found

    def fastest_stream(self, row, name):
        """Return the stream that took the least time."""
        measured = (s for s in (STREAM, *PREFETCHING) if self.seconds(row, s, name) is not None)
        return min(measured, key=lambda stream: self.seconds(row, stream, name))

    def ratio(self, row, above, below, name):
        """Return seconds of `above` / seconds of `below`, or None."""
        seconds = [self.seconds(row, contestant, name) for contestant in (above, below)]
        return None if None in seconds else seconds[0] / seconds[1]

    def has_stream(self, row):
        """Return True if the stream was measured in this row."""
        return self.seconds(row, STREAM, "forward") is not None

    def bandwidth(self, row, name):
        """Return the stream's GB/s."""
        return _TRAFFIC[name] * 4e-9 * math.prod(row[1]) / self.seconds(row, STREAM, name)


def one_line(group):
    """Return the figures of one group of a process as a line of text."""
    process = Process({"environment": "", "overhead": {}, "groups": [group]})
    (row,) = process.rows
    section, shape, layout = row
    parts = []
    for identity in dict.fromkeys(identity for _, identity, _ in process.medians):
        options = dict(zip(("kind", *_DEFAULTS), identity, strict=True))
        reference = STREAM | {"residual": options["residual"]} if process.has_stream(row) else None
        differing = [str(value) for name, value in options.items() if value != _DEFAULTS.get(name)]
        figures = []
        for name in ("forward", "recompute", "backward", "both"):
            seconds = process.medians.get((row, identity, name))
            stream = process.seconds(row, reference, name) if reference else None
            if seconds is not None:
                figures.append(f"{stream / seconds:.2f}" if stream else f"{seconds * 1e3:.3g} ms")
        parts.append(f"{' '.join(differing)} {' / '.join(figures)}")
    unit = " (share of the stream's speed)" if process.has_stream(row) else ""
    return f"{section} {'x'.join(map(str, shape))} {layout}{unit}: {', '.join(parts)}"


def _median(values):
    values = [value for value in values if value is not None]
    return statistics.median(values) if values else None


def _milliseconds(processes, row, contestant, name):
    seconds = _median(process.seconds(row, contestant, name) for process in processes)
    return None if seconds is None else seconds * 1e3


def summarise(runs, notes=()):
    """Return the rows of every table.

    Parameters
    ----------
    runs : list of dict
        Results of `benchmarks.worker.work`, one for each process.
    notes : sequence of str
        Notes for the reader: missing peers, load of the machine.

    Returns
    -------
    dict
        "machine" of the first process; "notes": `notes` and a line for each contestant that failed; "states":
        name -> processes, GB/s; and a list of dicts for each of "limit", "peers", "dtypes", "activations",
        "strategies", "overhead". A figure that may have a target is a `Judged`, a median over processes.
    """
    processes = [Process(run) for run in runs]
    states = split_states(processes)
    summary = {
        "machine": runs[0]["machine"],
        "notes": [*notes, *_failures(runs)],
        "states": {
            name: {"processes": len(members), "stream_gbs": _median(map(_bandwidth, members))}
            for name, members in states.items()
        },
        "limit": [],
        "peers": [],
        "dtypes": [],
        "activations": [],
        "strategies": [],
        "overhead": _overhead(processes),
    }
    groups = {
        (group["section"], tuple(group["shape"]), group["layout"]): group
        for run in runs
        for group in run["groups"]
    }  # a process that was interrupted has fewer
    for row, group in groups.items():
        measured = [process for process in processes if row in process.rows]
        if row[0] == "limit":
            memory = _extra_memory(row, measured)
            for state, members in states.items():
                among = [process for process in members if process in measured]
                summary["limit"] += [_limit(row, state, among, memory, runs[0]["machine"])] if among else []
            summary["peers"] += _peers(row, measured)
        elif row[0] == "activations":
            for state, members in states.items():
                among = [process for process in members if process in measured]
                summary["activations"] += _activations(row, group["records"], state, among)
        else:
            summary[row[0]] += _variants(row, group["records"], measured)
    return summary


def _bandwidth(process):
    rows = [row for row in process.rows if process.has_stream(row)]
    return statistics.median(process.bandwidth(row, name) for row in rows for name in _TRAFFIC)


def split_states(processes):
    """Group processes by the bandwidth of their streams, which may differ from process to process.

    Sorted by GB/s, the processes are split at the largest ratio of neighbours into "slower" and "faster" if
    that ratio is at least `targets.STATE_GAP`; otherwise all are in the state "one". Without processes the
    result is empty.
    """
    ranked = sorted(
        (process for process in processes if any(map(process.has_stream, process.rows))), key=_bandwidth
    )
    gaps = [_bandwidth(above) / _bandwidth(below) for below, above in itertools.pairwise(ranked)]
    if gaps and max(gaps) >= targets.STATE_GAP:
        cut = gaps.index(max(gaps)) + 1
        return {"slower": ranked[:cut], "faster": ranked[cut:]}
    return {"one": ranked} if ranked else {}


def _limit(row, state, processes, extra_memory, machine):
    _, shape, layout = row
    wanted = targets.find(shape, layout, machine)
    entry = {"shape": shape, "layout": layout, "state": state, "processes": len(processes)}
    for name, target in (("forward", wanted.forward), ("backward", wanted.backward)):
        entry[name] = {
            "stream_gbs": _median(process.bandwidth(row, name) for process in processes),
            "milliseconds": _milliseconds(processes, row, OWN, name),
            "of_limit": Judged(
                _median(process.ratio(row, STREAM, OWN, name) for process in processes), target
            ),
            "of_fastest": Judged(
                _median(
                    process.ratio(row, process.fastest_stream(row, name), OWN, name) for process in processes
                )
            ),
        }
        share = _median(process.ratio(row, _PROTOTYPE, OWN, name) for process in processes)
        if share is not None:
            entry[name]["of_prototype"] = Judged(share, targets.PROTOTYPE)
    return entry | {"extra_memory": extra_memory}


def _extra_memory(row, processes):
    """Return the peak of memory that either pass allocated, as a share of the bytes of x."""
    peaks = [peak for process in processes for key, peak in process.peaks.items() if key[0] == row]
    size = 4 * math.prod(row[1])
    bound = targets.EXTRA_MEMORY if size >= targets.EXTRA_MEMORY_FROM else None
    return Judged(max(peaks) / size, bound, at_most=True) if peaks else None


def _peers(row, processes):
    _, shape, layout = row
    kinds = {identity[0]: None for process in processes for _, identity, _ in process.medians}
    peers = [kind for kind in kinds if kind not in (STREAM["kind"], OWN["kind"], _PROTOTYPE["kind"])]
    entries = []
    for environment in dict.fromkeys(process.environment for process in processes):
        members = [process for process in processes if process.environment == environment]
        for peer in peers:
            times = _median(process.ratio(row, {"kind": peer}, OWN, "both") for process in members)
            if times is not None:
                entries.append(
                    {
                        "shape": shape,
                        "layout": layout,
                        "environment": environment,
                        "peer": peer,
                        "milliseconds": _milliseconds(members, row, {"kind": peer}, "both"),
                        "own_milliseconds": _milliseconds(members, row, OWN, "both"),
                        "times": Judged(times, targets.peer_target(shape, layout, peer, environment)),
                    }
                )
    return entries


def _variants(row, records, processes):
    section, shape, layout = row
    what, base = _BASE[section]
    entries = {}
    for record in records:
        if record["kind"] != OWN["kind"]:
            continue
        contestant = _contestant(record)
        value = _median(
            process.ratio(row, contestant, OWN | {what: base}, record["pass"]) for process in processes
        )
        half = section == "dtypes" and record[what] in ("float16", "bfloat16")
        entry = entries.setdefault(record[what], {"shape": shape, "layout": layout, "name": record[what]})
        entry[record["pass"]] = {
            "milliseconds": _milliseconds(processes, row, contestant, record["pass"]),
            "relative": _judge(row, value, targets.HALF_TIME if half else None, at_most=True),
        }
    return list(entries.values())


def _activations(row, records, state, processes):
    _, shape, layout = row
    entries = {}
    for record in records:
        contestant, pass_ = _contestant(record), record["pass"]
        if record["kind"] != OWN["kind"] or not processes:
            continue
        name = record["activation"] + (" + residual" if record.get("residual") else "")
        place = {"shape": shape, "layout": layout, "state": state, "processes": len(processes), "name": name}
        stream = STREAM | {"residual": record.get("residual", False)}
        entry = entries.setdefault(name, place | {"peer": _eager(row, contestant, processes)})
        entry[pass_] = {"milliseconds": _milliseconds(processes, row, contestant, pass_)}
        for key, reference, table in (
            ("of_limit", stream, targets.ACTIVATION_LIMIT),
            ("relative", OWN, targets.ACTIVATION_SPEED),
        ):
            value = _median(process.ratio(row, reference, contestant, pass_) for process in processes)
            entry[pass_][key] = _judge(row, value, table.get(name, {}).get(pass_))
    return list(entries.values())


def _eager(row, contestant, processes):
    """Return forward + backward of PyTorch eager with the same activation, or None if not measured."""
    peer = contestant | {"kind": "torch-eager"}
    times = _median(process.ratio(row, peer, contestant, "both") for process in processes)
    if times is None:
        return None
    milliseconds = _milliseconds(processes, row, peer, "both")
    return {"milliseconds": milliseconds, "times": _judge(row, times, targets.ACTIVATION_EAGER)}


def _contestant(record):
    return {name: record[name] for name in ("kind", *_DEFAULTS) if name in record}


def _judge(row, value, target, at_most=False):
    """Return the figure, with its target if the row is in the table."""
    if value is None:
        return None
    return Judged(value, None if targets.find(*row[1:]).forward is None else target, at_most)


def _overhead(processes):
    entries = []
    for module, target in targets.OVERHEAD.items():
        found = [process.overhead[module] for process in processes if process.overhead]
        if found:
            middle = statistics.median(figures["median"] for figures in found) * 1e6
            least = min(figures["least"] for figures in found) * 1e6
            entries.append({"module": module, "median": Judged(middle, target, at_most=True), "least": least})
    return entries


def _failures(runs):
    lines = {}
    for run in runs:
        for group in run["groups"]:
            for error in group["errors"]:
                who = " ".join(
                    error[name] for name in ("kind", "dtype", "activation", "strategy") if name in error
                )
                where = f"{group['section']} {'x'.join(map(str, group['shape']))} {group['layout']}"
                lines[f"{who} was not measured ({where}): {error['error']}"] = None
    return list(lines)
