"""Description of the machine: processor, caches, versions; and the processors that a run may use."""

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

_CPU = Path("/sys/devices/system/cpu")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_PACKAGES = ("numpy", "ml_dtypes", "torch", "torchvision", "jax", "jaxlib", "onednn-cpu-gomp")


def _sysctl(name):
    try:
        return subprocess.run(
            ["sysctl", "-n", name], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def cpu_model():
    """Return the processor's name."""
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    if match:
        return match.group(1)
    return _sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine()


def caches():
    """Return the data caches of a processor, innermost first: {"L1d": bytes, "L2": bytes, ...}."""
    found = {}
    for index in sorted((_CPU / "cpu0" / "cache").glob("index*")):
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            number, unit = re.fullmatch(r"(\d+)([KMG]?)", size).groups()
            found["L1d" if level == "1" else f"L{level}"] = int(number) * _UNITS[unit]
    if not found and sys.platform == "darwin":
        names = {"L1d": "hw.l1dcachesize", "L2": "hw.l2cachesize", "L3": "hw.l3cachesize"}
        found = {label: int(_sysctl(name) or 0) for label, name in names.items()}
    return {label: size for label, size in found.items() if size}


def processors():
    """Return the processors that this process may use: one per physical core first, then their siblings."""
    if not hasattr(os, "sched_getaffinity"):
        return list(range(os.cpu_count() or 1))
    first, siblings, seen = [], [], set()
    for cpu in sorted(os.sched_getaffinity(0)):
        try:
            core = (_CPU / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text()
        except OSError:
            core = str(cpu)
        (siblings if core in seen else first).append(cpu)
        seen.add(core)
    return first + siblings


def pin(threads):
    """Restrict this process to `threads` processors, for peers without a setting for threads.

    Has no effect on systems without processor affinity.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, processors()[:threads])


def load():
    """Return the number of busy processors in the last minute; 0 if the system does not report it."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def versions():
    """Return the versions of Python and of the installed packages that are measured."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe(threads):
    """Return machine, versions, threads and instruction set as a dict."""
    from inplace_abn import functional

    return {
        "cpu": cpu_model(),
        "processors": len(processors()),
        "caches": caches(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": threads,
        "versions": versions(),
        "inplace_abn": functional.info(),
    }


def header(machine):
    """Return the result of `describe` as a few lines of text."""
    sizes = ", ".join(f"{label} {_size(count)}" for label, count in machine["caches"].items())
    versions_ = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    own = machine["inplace_abn"]
    built, openmp = ", ".join(own["isa_built"]), "with" if own["openmp"] else "without"
    cores = f"{machine['processors']} processors ({sizes or 'caches unknown'})"
    return [
        f"{machine['cpu']}, {cores}, {machine['system']}",
        f"{machine['threads']} threads; {versions_}",
        f"inplace_abn {own['version']} uses the instruction set {own['isa_active']} of {built}, {openmp} "
        f"OpenMP, compiled by {own['compiler']}",
    ]


def short(machine):
    """Return the result of `describe` as one line: processor, threads, versions of the libraries."""
    versions_ = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['cpu']}, {machine['threads']} threads, {machine['inplace_abn']['isa_active']}; {versions_}"
    )


def _size(count):
    return f"{count / (1 << 20):g} MiB" if count >= 1 << 20 else f"{count / (1 << 10):g} KiB"
