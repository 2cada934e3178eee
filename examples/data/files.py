"""Images and labels from files; a file that cannot be used is an error that names it."""

import numpy as np
from PIL import Image

from inplace_abn.demo.image_folder import as_rgb

#: The label of pixels that count neither in the loss nor in the score.
IGNORED = 255
#: Entries of class maps for values that must not occur.
UNKNOWN = 254


class BadFile(Exception):
    """A file is missing, damaged, or does not fit the others; the message names it."""


def read_image(path):
    """Return the image in a file as RGB, a PIL image."""
    return _read(path, as_rgb)


def read_labels(path, class_map, size):
    """Return the labels in a PNG file with one number per pixel, a PIL image of mode "L".

    Parameters
    ----------
    path : Path
    class_map : ndarray of uint8, shape (256,)
        The class of each number in the file, `IGNORED` or `UNKNOWN`.
    size : (int, int)
        The width and height that the file must have.
    """
    numbers = _read(path, lambda image: np.array(image) if image.mode in ("L", "P") else image.mode)
    if isinstance(numbers, str):
        raise BadFile(f"{path}: expected one byte per pixel, got an image of mode {numbers}")
    if numbers.shape != size[::-1]:
        raise BadFile(f"{path}: expected the size of the image, {size[0]} x {size[1]}, got {_size(numbers)}")
    labels = class_map[numbers]
    if (labels == UNKNOWN).any():
        unknown = sorted(set(numbers[labels == UNKNOWN].tolist()))
        raise BadFile(f"{path}: the data set has no class {', '.join(map(str, unknown[:5]))}")
    return Image.fromarray(labels)


def pairs(images, labels):
    """Match images and labels.

    Parameters
    ----------
    images, labels : dict of str to Path
        By names that both have in common.

    Returns
    -------
    (list of (Path, Path), list of str)
        The pairs in the order of names, and messages about files without a counterpart.
    """
    messages = [f"{path}: its labels are missing" for name, path in images.items() if name not in labels]
    messages += [f"{path}: its image is missing" for name, path in labels.items() if name not in images]
    return [(images[name], labels[name]) for name in sorted(images.keys() & labels.keys())], messages


def _read(path, convert):
    try:
        with Image.open(path) as image:
            return convert(image)
    # Pillow has no common class for what a damaged file can raise.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError) as error:
        raise BadFile(f"{path}: cannot be read: {error}") from error


def _size(array):
    return f"{array.shape[1]} x {array.shape[0]}"
