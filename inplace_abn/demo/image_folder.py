"""Images of a folder as training data: a folder for each class, as torchvision's ImageFolder reads them."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

#: Endings of the files that are read; others are ignored.
ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
#: Names of the folder of test images beside ``train``.
TEST_FOLDERS = ("val", "test")
#: Without such a folder, one of so many images of a class is a test image.
IMAGES_PER_TEST_IMAGE = 5
#: Largest number of files that an error or warning lists.
MOST_LISTED = 5


@dataclass(frozen=True)
class Listing:
    """The files of a folder: `classes` are the names, `train` and `test` lists of (path, label)."""

    classes: tuple
    train: list
    test: list


def listing(folder):
    """Return the `Listing` of ``FOLDER/train/CLASS/*`` and ``FOLDER/val/CLASS/*``, or of ``FOLDER/CLASS/*``.

    Raises
    ------
    ValueError
        If there are fewer than two classes, or a class has no images for training or for the test.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"data: expected a folder with a folder of images for each class, got {folder}")
    train = folder / "train"
    if not train.is_dir():
        classes, files = _classes(folder)
        test = [paths[::IMAGES_PER_TEST_IMAGE] for paths in files]
        rest = [[path for i, path in enumerate(paths) if i % IMAGES_PER_TEST_IMAGE] for paths in files]
        result = Listing(classes, _labelled(rest), _labelled(test))
    else:
        test_folders = [folder / name for name in TEST_FOLDERS if (folder / name).is_dir()]
        if not test_folders:
            raise ValueError(
                f"data: {folder} has the folder 'train', but no folder 'val' or 'test' beside it"
            )
        classes, files = _classes(train)
        test_classes, test_files = _classes(test_folders[0])
        if test_classes != classes:
            differing = sorted(set(classes) ^ set(test_classes))
            raise ValueError(
                f"data: {train} and {test_folders[0]} must have the same classes; only in one: {differing}"
            )
        result = Listing(classes, _labelled(files), _labelled(test_files))
    for purpose, images in [("training", result.train), ("the test", result.test)]:
        without = sorted(set(range(len(classes))) - {label for _, label in images})
        if without:
            raise ValueError(f"data: class {classes[without[0]]!r} in {folder} has no image for {purpose}")
    return result


def _classes(folder):
    """Return the sorted names of the folders in `folder`, and for each the sorted paths of its images."""
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(folders) < 2:
        raise ValueError(
            f"data: expected at least 2 folders, one for each class, in {folder}; got {len(folders)}"
        )
    files = [sorted(path for path in each.rglob("*") if path.suffix.lower() in ENDINGS) for each in folders]
    return tuple(path.name for path in folders), files


def _labelled(files):
    return [(path, label) for label, paths in enumerate(files) for path in paths]


def decode(images, size, skip_bad_files=False):
    """Read images, scaled to `size` on the shorter side and cropped to the middle.

    Parameters
    ----------
    images : list of (path, label)
    size : int
        Height and width of the results, in pixels.
    skip_bad_files : bool
        Leave out files that cannot be decoded, with a warning on standard error.

    Returns
    -------
    images : ndarray of uint8, (N, 3, size, size)
    labels : ndarray of int64, (N,)

    Raises
    ------
    ValueError
        If files cannot be decoded; it says how many and names the first ones.
    """
    from PIL import Image, ImageOps

    decoded, labels, bad = np.empty((len(images), 3, size, size), np.uint8), [], []
    for path, label in images:
        try:
            with Image.open(path) as image:
                fitted = ImageOps.fit(as_rgb(image), (size, size), Image.Resampling.BILINEAR)
        # Pillow has no common class for what a damaged file can raise.
        except (
            OSError,
            SyntaxError,
            ValueError,
            EOFError,
            IndexError,
            Image.DecompressionBombError,
        ) as error:
            bad.append(f"{path}: {error}")
            continue
        decoded[len(labels)] = np.asarray(fitted).transpose(2, 0, 1)
        labels.append(label)
    if bad:
        more = f"\n... and {len(bad) - MOST_LISTED} more" if len(bad) > MOST_LISTED else ""
        message = (
            f"{len(bad)} of {len(images)} files cannot be read as images:\n"
            + "\n".join(bad[:MOST_LISTED])
            + more
        )
        if not skip_bad_files:
            raise ValueError(f"data: {message}\nTo leave them out, pass --skip-bad-files.")
        print(f"Left out: {message}", file=sys.stderr)
    return decoded[: len(labels)], np.array(labels, np.int64)


def as_rgb(image):
    """Return an image of Pillow in RGB with 8 bits per channel.

    Pillow's own conversion clamps integers of 16 bits to 255 instead of scaling them.
    """
    from PIL import Image

    if image.mode != "F" and not image.mode.startswith("I"):
        return image.convert("RGB")
    pixels = np.asarray(image)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > 0xFFFF:
        raise ValueError(f"expected integers of 8 or 16 bits, got an image of Pillow's mode {image.mode!r}")
    return Image.fromarray((pixels >> 8).astype(np.uint8)).convert("RGB")


class FolderImages:
    """The images of a folder, all decoded; those for training are shifted and mirrored at random."""

    def __init__(self, setting):
        self._setting, size = setting, setting.size
        files = listing(setting.folder)
        self._shift = max(1, size // 8)  # the largest shift, in pixels
        images, self._labels = decode(files.train, size, setting.skip_bad_files)
        margin = (self._shift, self._shift)
        self._padded = np.pad(images, ((0, 0), (0, 0), margin, margin), mode="edge")
        self.steps = len(images) // setting.batch_size
        test, labels = decode(files.test, size, setting.skip_bad_files)
        if not len(labels):
            raise ValueError(f"data: none of the {len(files.test)} images for the test can be read")
        self.test = self._as_input(test), labels

    def batches(self, epoch):
        """Yield batches (images, labels) of the training data, shuffled by seed and epoch."""
        setting = self._setting
        rng, size = np.random.default_rng((setting.seed, epoch)), setting.batch_size
        order = rng.permutation(len(self._labels))
        shape = (setting.size, setting.size)
        windows = np.lib.stride_tricks.sliding_window_view(self._padded, shape, axis=(2, 3))
        for step in range(self.steps):
            chosen = order[step * size : (step + 1) * size]
            down, across = rng.integers(2 * self._shift + 1, size=(2, len(chosen)))
            images = windows[chosen, :, down, across]
            mirrored = rng.random(len(chosen)) < 0.5
            images[mirrored] = images[mirrored, ..., ::-1]
            yield self._as_input(images), self._labels[chosen]

    def _as_input(self, images):
        return np.ascontiguousarray(images / 127.5 - 1, self._setting.image_dtype)
