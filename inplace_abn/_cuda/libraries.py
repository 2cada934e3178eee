"""Opens CUDA's driver and NVRTC, its compiler for run time, when first needed."""

import glob
import importlib.util
import os
import sys
from functools import cache

from .. import _core

# Newest first. The last name is that of a CUDA toolkit.
_NAMES = ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2", "libnvrtc.so")
_WINDOWS_NAMES = ("nvrtc64_130_0.dll", "nvrtc64_120_0.dll", "nvrtc64_112_0.dll")


@cache
def open_driver():
    """Return (version, number of devices). INPLACE_ABN_CUDA is the path of another driver than the system's.

    Raises
    ------
    RuntimeError
        Without a driver or a device.
    """
    return _core._cuda_open_driver(os.environ.get("INPLACE_ABN_CUDA"))


@cache
def open_compiler():
    """Return (version, newest compute capability) of NVRTC: 13000 is 13.0, 90 is 9.0.

    It is looked for in INPLACE_ABN_NVRTC, a path, then among the libraries that PyTorch's or CuPy's wheels
    for CUDA install, then where the system's loader looks.

    Raises
    ------
    RuntimeError
        If there is none.
    """
    wanted = os.environ.get("INPLACE_ABN_NVRTC")
    for path in [wanted] if wanted else _candidates():
        try:
            return _core._cuda_open_compiler(path, _builtins_beside(path))
        except RuntimeError:
            continue
    where = f"at INPLACE_ABN_NVRTC={wanted}" if wanted else "as libnvrtc.so"
    raise RuntimeError(
        f"NVRTC, the compiler of CUDA, was not found {where}; PyTorch for CUDA installs it, or: "
        "pip install nvidia-cuda-nvrtc"
    )


def _candidates():
    spec = importlib.util.find_spec("nvidia")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in folders:
        yield from sorted(glob.glob(os.path.join(folder, "*", "lib", "libnvrtc.so.*")), reverse=True)
        yield from sorted(glob.glob(os.path.join(folder, "*", "bin", "**", "nvrtc64*.dll"), recursive=True))
    yield from _WINDOWS_NAMES if sys.platform == "win32" else _NAMES
    yield from sorted(glob.glob("/usr/local/cuda*/lib64/libnvrtc.so"), reverse=True)


def _builtins_beside(path):
    """Return the library of built-in functions in the same folder: the loader may not search there."""
    found = sorted(glob.glob(os.path.join(os.path.dirname(path), "libnvrtc-builtins.so.*")))
    return found[-1] if os.path.dirname(path) and found else None


def describe():
    """Return a dict for `functional.info()`: what a GPU can be used with here, or why none can be."""
    try:
        version, count = open_driver()
    except RuntimeError as error:
        return {"available": False, "reason": str(error)}
    devices = [
        {"name": name, "capability": f"{major}.{minor}"}
        for name, major, minor, _ in map(_core._cuda_device, range(count))
    ]
    found = {"available": True, "driver": _version(version), "devices": devices}
    try:
        return found | {"nvrtc": _version(open_compiler()[0])}
    except RuntimeError as error:
        return found | {"available": False, "reason": str(error)}


def _version(number):
    return f"{number // 1000}.{number % 1000 // 10}"
