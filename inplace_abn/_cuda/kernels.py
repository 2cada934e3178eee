"""Compiles the kernels, caches the machine code on disk, and loads it."""

import hashlib
import os
import sys
import tempfile
import threading
import warnings
from functools import cache
from pathlib import Path

from .. import _core
from .libraries import open_compiler, open_driver

DTYPES = "float32", "float64", "float16", "bfloat16"
# What a strategy keeps for the backward, as element.h numbers it.
KEEPS = {"inplace": 0, "inplace_1": 0, "inplace_2": 0, "standard": 1, "checkpoint": 1, "checkpoint_xhat": 2,
         "pre_activation": 3}  # fmt: skip
THREADS = 256  # most threads of a block: ABN_CUDA_THREADS
# The headers have functions that not every combination uses.
_OPTIONS = "--device-as-default-execution-space", "-std=c++17", "--diag-suppress=177"

_lock = threading.Lock()


def macros(dtype, activation, strategy, *, residual, guard, width, columns):
    """Return the compiler's options for one combination."""
    return (
        f"-DABN_DTYPE_{dtype.upper()}=1", f"-DABN_ACTIVATION=ABN_{activation.upper()}",
        f"-DABN_KEEPS={KEEPS[strategy]}", f"-DABN_RESIDUAL={int(residual)}", f"-DABN_GUARD={int(guard)}",
        f"-DABN_WIDTH={width}", f"-DABN_{'COLUMNS' if columns else 'PLANES'}=1", f"-DABN_THREADS={THREADS}",
    )  # fmt: skip


def compile_kernels(architecture, options):
    """Return (image, log): machine code for an architecture "sm_90", or PTX for "compute_90"."""
    return _core._cuda_compile((f"--gpu-architecture={architecture}", *_OPTIONS, *options))


@cache
def device_info(device):
    """Return (name, major, minor, multiprocessors)."""
    open_driver()
    return _core._cuda_device(device)


@cache
def load(device, options):
    """Return the kernels for a device, for `_core._CudaPlan`.

    Raises
    ------
    RuntimeError
        Without driver or NVRTC, or if the kernels do not compile.
    """
    with _lock:
        path = _cache_file(device, options)
        if path is not None and (image := _read(path)) is not None:
            try:
                return _core._cuda_load(device, image)
            except RuntimeError:
                pass  # written by another version of the driver, or damaged: compile again
        image, _ = compile_kernels(_architecture(device), options)
        if path is not None:
            _write(path, image)
        return _core._cuda_load(device, image)


def _architecture(device):
    """Return the device's own architecture; of a device newer than NVRTC, one that its driver can compile."""
    _, major, minor, _ = device_info(device)
    newest = open_compiler()[1]
    return f"sm_{major}{minor}" if 10 * major + minor <= newest else f"compute_{newest}"


# ---- the cache ---------------------------------------------------------------------------------------------


def cache_folder():
    """Return INPLACE_ABN_CACHE, or the user's folder for caches."""
    if folder := os.environ.get("INPLACE_ABN_CACHE"):
        return Path(folder)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", tempfile.gettempdir()), "inplace_abn")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "inplace_abn")


@cache
def _source_hash():
    return hashlib.sha256(_core._cuda_source().encode()).hexdigest()


def _cache_file(device, options):
    text = repr((_source_hash(), _OPTIONS, options, _architecture(device), open_compiler()[0]))
    try:
        return cache_folder() / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.bin"
    except RuntimeError:  # no home folder
        return None


def _read(path):
    try:
        return path.read_bytes()
    except OSError:
        return None


def _write(path, image):
    """Write a file that other processes see whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(image)
        os.replace(file.name, path)
    except OSError as error:
        _warn_unwritable(f"{path.parent}: {error.strerror}")


@cache
def _warn_unwritable(why):
    warnings.warn(
        f"the folder for compiled kernels cannot be written, {why}; every process compiles them again. "
        "INPLACE_ABN_CACHE names another folder.",
        RuntimeWarning,
        stacklevel=2,
    )
