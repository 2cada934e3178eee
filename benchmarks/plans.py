"""Plans: what each fresh process measures, and how it is started."""

import json
import os
import platform
import subprocess
import sys

from benchmarks import ROOT, machine
from benchmarks.peers import PEERS, takes_part
from benchmarks.targets import CHANNELS_FIRST
from inplace_abn import reference

#: Settings of the C allocator. "as-is": by default, glibc returns large blocks to the system when they are
#: freed, and the next allocation has page faults. "kept": freed memory is kept.
_KEEP = f"glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold={1 << 40}"
ENVIRONMENTS = {"as-is": {}, "kept": {"GLIBC_TUNABLES": _KEEP}}

STREAM = {"kind": "stream"}
#: The stream with prefetching, at distances of bytes. On some processors it is faster than the plain one.
PREFETCHING = [STREAM | {"prefetch": distance} for distance in (4096, 8192)]
OWN = {"kind": "inplace_abn"}

#: Peers of each section. Only "limit" is also measured with the allocator "kept".
TAKES_PART = {"limit": tuple(PEERS), "activations": ("torch-eager",)}
#: Activations that work in place; those measured with a residual as well; those that the peers are measured
#: with.
ACTIVATIONS = [name for name, activation in reference.ACTIVATIONS.items() if activation.inverse]
RESIDUAL, PEERS_HAVE = ("leaky_relu", "silu"), ("silu",)


def contestants(section, row, options):
    """Return the contestants that are measured in turn in a row of `section`."""
    if section == "limit":
        prototype = [{"kind": "prototype", "library": options.prototype}] if options.prototype else []
        return [
            STREAM,
            *PREFETCHING,
            OWN,
            *prototype,
            *({"kind": peer} for peer in options.peers if takes_part(peer, row.shape, row.layout)),
        ]
    if section == "dtypes":
        return [OWN | {"dtype": dtype} for dtype in dict.fromkeys(("float32", *options.dtypes))]
    if section == "activations":
        names = list(dict.fromkeys(("leaky_relu", *options.activations)))
        own = [{"activation": name} for name in names]
        own += [{"activation": name, "residual": True} for name in names if name in RESIDUAL]
        peers = [
            {"kind": peer, "activation": name}
            for peer in options.peers
            for name in names
            if peer in TAKES_PART[section] and name in PEERS_HAVE
        ]
        return [STREAM, STREAM | {"residual": True}, *(OWN | one for one in own), *peers]
    return [OWN | {"strategy": strategy} for strategy in dict.fromkeys(("standard", *options.strategies))]


def make(options):
    """Return the plans of all processes, in order of execution.

    Parameters
    ----------
    options : namespace
        "sections": dict of section -> list of Row; "peers", "dtypes", "activations", "strategies": names;
        "prototype": path of a shared library (`benchmarks.prototype`) or None; "overhead": bool;
        "processes", "threads", "repeat", "flush_bytes": counts.

    Returns
    -------
    list of dict
        Plans for `benchmarks.worker.work`. The two environments alternate, so that a change of the machine's
        speed affects both. Without peers there is one environment, since inplace_abn does not allocate.
    """
    groups = {
        section: [
            {
                "section": section,
                "shape": row.shape,
                "layout": row.layout,
                "contestants": contestants(section, row, options),
            }
            for row in rows
        ]
        for section, rows in options.sections.items()
    }
    limit = groups.get("limit", [])
    plan = {
        "threads": options.threads,
        "repeat": options.repeat,
        "warmup": 2,
        "flush_bytes": options.flush_bytes,
    }
    plans = []
    for process in range(options.processes):
        everything = [group for rows in groups.values() for group in rows]
        calls = 5000 if options.overhead else 0
        first = {"environment": "as-is", "groups": everything, "overhead": calls, "memory": process == 0}
        plans.append(plan | first)
        if limit and options.peers and platform.libc_ver()[0] == "glibc":
            plans.append(plan | {"environment": "kept", "groups": limit, "overhead": 0, "memory": False})
    return plans


def environment(threads):
    """Return the environment of a measuring process with this number of threads."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "JAX_PLATFORMS": "cpu",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }


class Interrupted(KeyboardInterrupt):
    """An interrupt of `run`. `result` holds what was measured before it."""

    def __init__(self, result):
        self.result = result


def run(plan, isa=None, measured=None):
    """Run `plan` in a fresh process and return its result, made of what `benchmarks.worker.work` yields.

    Parameters
    ----------
    plan : dict
    isa : str, optional
        An instruction set to force.
    measured : callable, optional
        Called with each group as soon as it is measured.

    Returns
    -------
    dict
        "environment", "machine", "overhead" and "groups": the plan's groups with "records" and "errors".

    Raises
    ------
    RuntimeError
        The process failed. Its messages are on standard error.
    Interrupted
        By Ctrl-C.
    """
    settings = {
        **environment(plan["threads"]),
        **({"INPLACE_ABN_ISA": isa} if isa else {}),
        **ENVIRONMENTS[plan["environment"]],
    }
    command = [sys.executable, "-m", "benchmarks.limit", "--worker", json.dumps(plan)]
    result = {"environment": plan["environment"], "machine": {}, "overhead": {}, "groups": []}
    with subprocess.Popen(
        command, cwd=ROOT, env=settings, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    ) as process:
        try:
            for line in process.stdout:
                name, value = json.loads(line)
                if name == "group":
                    result["groups"].append(value)
                    if measured:
                        measured(value)
                else:
                    result[name] = value
            code = process.wait()
        except KeyboardInterrupt:
            process.kill()
            raise Interrupted(result) from None
    if code:
        raise RuntimeError(f"a measuring process ({plan['environment']}) ended with code {code}")
    return result


def available(peers, threads):
    """Try each peer on a tiny array, in a process of its own, since a library may crash its process.

    Returns
    -------
    found : list of str
        The peers that ran.
    missing : dict of str to str
        The reason for each of the others.
    """
    found, missing = [], {}
    group = {"section": "limit", "shape": (2, 16, 4, 4), "layout": CHANNELS_FIRST}
    plan = {"environment": "as-is", "threads": threads, "repeat": 1, "warmup": 0, "flush_bytes": 1}
    for peer in peers:
        groups = [group | {"contestants": [{"kind": peer}]}]
        try:
            done = run(plan | {"overhead": 0, "memory": False, "groups": groups})
        except RuntimeError as error:
            missing[peer] = str(error)
            continue
        errors = done["groups"][0]["errors"]
        if errors:
            missing[peer] = errors[0]["error"]
        else:
            found.append(peer)
    return found, missing


def run_robustly(plan, isa=None, measured=None):
    """Run `plan`; if its process fails, repeat it without the peers, one of which may be the cause.

    Returns
    -------
    result : dict
        The result of `run`.
    problem : str or None
        The error of the first attempt.

    Raises
    ------
    RuntimeError
        The process failed without peers.
    """
    try:
        return run(plan, isa, measured), None
    except RuntimeError as error:
        groups = [
            group | {"contestants": [one for one in group["contestants"] if one["kind"] not in PEERS]}
            for group in plan["groups"]
        ]
        if groups == plan["groups"]:
            raise
        done = run(plan | {"groups": groups}, isa, measured)
        return done, f"{error}; it was repeated without the peers"


def flush_bytes():
    """Return a size larger than every cache: 128 MiB, or four times the largest cache if that is more."""
    return max(128 << 20, 4 * max(machine.caches().values(), default=0))
