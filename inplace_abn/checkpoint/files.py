"""Flat dictionaries of arrays in .npz and .safetensors files."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from .._files import replacing
from .._state import stored


def read(path):
    """Read a file; return its arrays by name.

    Parameters
    ----------
    path : str or path
        Ends in .npz or .safetensors.

    Returns
    -------
    dict of str to ndarray
        bfloat16 arrays have the dtype of `ml_dtypes`.

    Raises
    ------
    ValueError
        If `path` ends otherwise, or the file is damaged, or a .npz file contains pickled objects.
    ImportError
        If the library for .safetensors is not installed.
    """
    path, suffix = Path(path), _suffix(path)
    if suffix == ".safetensors":
        library = _safetensors()
        try:
            return {name: stored(array) for name, array in library.numpy.load_file(path).items()}
        except library.SafetensorError as error:
            raise ValueError(f"{path}: cannot be read as a .safetensors file: {error}") from error
    try:
        # Open the file here: np.load leaves it open if it is no archive.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: stored(arrays[name]) for name in arrays}
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read as a .npz file: {error}") from error


def write(path, arrays):
    """Write arrays into a file; an existing file is replaced atomically, after all is written.

    Parameters
    ----------
    path : str or path
        Ends in .npz or .safetensors.
    arrays : dict of str to ndarray

    Raises
    ------
    TypeError
        For arrays of Python objects, and for .safetensors also arrays of complex numbers or text. No file is
        written.
    """
    path, suffix = Path(path), _suffix(path)
    kinds = "biuf" if suffix == ".safetensors" else "biufcSU"
    for name, array in arrays.items():
        if array.dtype.kind not in kinds and array.dtype.name != "bfloat16":
            raise TypeError(f"{name}: an array of {array.dtype} cannot be written to a {suffix} file")
    write_into = _write_safetensors if suffix == ".safetensors" else _write_npz
    with replacing(path) as temporary:
        write_into(temporary, arrays)


def _write_npz(path, arrays):
    # numpy.savez takes names as keywords, and cannot save an array called "file".
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _write_safetensors(path, arrays):
    _safetensors().numpy.save_file(
        {name: np.asarray(array, order="C") for name, array in arrays.items()}, path
    )


def _suffix(path):
    suffix = Path(path).suffix.lower()
    if suffix not in (".npz", ".safetensors"):
        raise ValueError(
            f"path must end in .npz or .safetensors, got {str(path)!r}; convert a file of PyTorch with: "
            'numpy.savez("file.npz", **{name: value.float().numpy() for name, value in '
            'torch.load("file.pth", weights_only=True).items()})'
        )
    return suffix


def _safetensors():
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            ".safetensors files need the library safetensors: pip install 'inplace-abn-numpy[safetensors]'"
        ) from error
    return safetensors
