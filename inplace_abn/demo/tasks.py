"""The tasks: classification of digits, and segmentation of images composed of digits.

The 1,797 handwritten digits of 8 x 8 pixels come with scikit-learn; nothing is downloaded. They are enlarged
so that activations need far more memory than weights, as in networks for photographs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from .. import layers
from .._arguments import choice
from . import image_folder, networks

#: Height and width of the images of the tasks.
SIZE = 32
#: Default height and width of the images of a folder.
FOLDER_SIZE = 64
#: Label of pixels that are neither ink nor background; the loss ignores them.
FAINT = -100


@dataclass(frozen=True)
class Setting:
    """A task with its options.

    `network_name` is that of a network of `inplace_abn.models`, and `widths` the channels of its stages,
    if it has such a parameter. Images have `channels` channels, and `size` pixels in height and width.
    `dtype` is that of images and activations. Parameters are float64 for float64, else float32;
    for half types they are the master weights. `folder` has the images, instead of the task's own.
    """

    task: "Task"
    network_name: str
    widths: tuple
    epochs: int
    batch_size: int
    dtype: str = "float32"
    seed: int = 0
    channels: int = 1
    classes: int = 10
    size: int = SIZE
    folder: str | None = None
    skip_bad_files: bool = False

    @property
    def image_dtype(self):
        """The dtype of images and activations."""
        return dtype_of(self.dtype)

    @property
    def is_half(self):
        """True if images and activations have a half type."""
        return self.image_dtype.itemsize == 2

    def network(self, strategy):
        """Return the network; all strategies have the same initial weights."""
        dtype = np.float64 if self.dtype == "float64" else np.float32
        return networks.make(
            self.network_name, self.channels, self.classes, self.widths,
            strategy=strategy, dtype=dtype, rng=self.seed,
        )  # fmt: skip

    def noise(self):
        """Return a batch of random images and labels with the shapes and dtypes of the data."""
        rng = np.random.default_rng(0)
        shape = (self.batch_size, self.channels, self.size, self.size)
        images = rng.standard_normal(shape).astype(self.image_dtype)
        return images, rng.integers(self.classes, size=self.task.target_shape(self.batch_size, self.size))

    def data(self):
        """Return the images: an instance of `Digits`, `Pixels` or `FolderImages`."""
        return self.task.data(self) if self.folder is None else image_folder.FolderImages(self)


@dataclass(frozen=True)
class Task:
    """Data, networks and score.

    `key` is the name on the command line, `name` the title, and `scored` the name of the score.
    `networks` are the names of those that fit, the default first, and `classes` is their number of classes.
    ``data(setting)`` returns the images, and ``score(scores, targets)`` a number from 0 to 1.
    ``target_shape(batch, size)`` is that of the labels of a batch. `usual` and `quick` are (widths of the
    network, epochs, batch size).
    """

    key: str
    name: str
    scored: str
    networks: tuple
    classes: int
    data: Callable
    score: Callable
    target_shape: Callable
    usual: tuple
    quick: tuple

    def setting(
        self, quick=False, epochs=None, batch_size=None, dtype="float32", seed=0, *, network=None,
        folder=None, size=None, skip_bad_files=False,
    ):  # fmt: skip
        """Return the `Setting`; None stands for the default.

        Raises
        ------
        ValueError
            If the network does not fit the task, or options of images of a folder do not.
        """
        widths, usual_epochs, usual_batch_size = self.quick if quick else self.usual
        name = self.networks[0] if network is None else choice("network", network, self.networks)
        chosen = Setting(
            self, name, widths, epochs or usual_epochs, batch_size or usual_batch_size, dtype, seed,
            classes=self.classes,
        )  # fmt: skip
        if folder is None:
            if size is not None:
                raise ValueError(f"image_size: the images of the task have {SIZE} pixels; pass data as well")
            return chosen
        if self.key != "classification":
            raise ValueError(f"data: a folder of images is for the task 'classification', got {self.key!r}")
        classes = len(image_folder.listing(folder).classes)
        return replace(
            chosen, channels=3, classes=classes, size=size or FOLDER_SIZE, folder=str(folder),
            skip_bad_files=skip_bad_files,
        )  # fmt: skip


def load():
    """Return training and test digits, each as (images (N, 8, 8) in [0, 1], labels (N,))."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    train, test, train_labels, test_labels = train_test_split(
        digits.images / 16, digits.target, test_size=360, stratify=digits.target, random_state=0
    )
    return (train, train_labels), (test, test_labels)


def dtype_of(name):
    """Return the dtype called `name`; bfloat16 is that of `ml_dtypes`."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def enlarge(images, factor):
    """Return images (N, H, W) enlarged by bilinear interpolation."""
    with layers.no_grad():
        return layers.Upsample(scale_factor=factor)(images[:, None])[:, 0]


def as_input(images, dtype):
    """Return images (N, H, W) in [0, 1] as input (N, 1, H, W) of a network."""
    return np.ascontiguousarray((2 * images - 1)[:, None], dtype_of(dtype))


class Digits:
    """Single digits; those for training are shifted at random."""

    shift = 3  # the largest shift, in pixels

    def __init__(self, setting):
        self._setting = setting
        (images, self._labels), (test, test_labels) = load()
        margin = ((0, 0), (self.shift, self.shift), (self.shift, self.shift))
        self._padded = np.pad(enlarge(images, SIZE // 8), margin)
        self.steps = len(images) // setting.batch_size
        self.test = as_input(enlarge(test, SIZE // 8), setting.dtype), test_labels

    def batches(self, epoch):
        """Yield batches (images, labels) of the training data, shuffled by seed and epoch."""
        rng, size = np.random.default_rng((self._setting.seed, epoch)), self._setting.batch_size
        order = rng.permutation(len(self._labels))
        windows = np.lib.stride_tricks.sliding_window_view(self._padded, (SIZE, SIZE), axis=(1, 2))
        for step in range(self.steps):
            chosen = order[step * size : (step + 1) * size]
            down, across = rng.integers(2 * self.shift + 1, size=(2, len(chosen)))
            yield as_input(windows[chosen, down, across], self._setting.dtype), self._labels[chosen]


class Pixels:
    """Images of 32 x 32 pixels with three digits, on noise; the label of a pixel is 0, or 1 + the digit."""

    each, side, tests = 3, 16, 160  # digits in an image, their height and width, number of test images

    def __init__(self, setting):
        self._setting = setting
        (train, self._labels), (test, test_labels) = load()
        self._train = enlarge(train, self.side // 8)
        self.steps = len(train) // setting.batch_size
        rng = np.random.default_rng((setting.seed, 1))
        images, targets = compose(enlarge(test, self.side // 8), test_labels, self.tests, rng)
        self.test = as_input(images, setting.dtype), targets

    def batches(self, epoch):
        """Yield batches (images, labels of the pixels) of newly composed images."""
        rng = np.random.default_rng((self._setting.seed, 2, epoch))
        for _ in range(self.steps):
            images, targets = compose(self._train, self._labels, self._setting.batch_size, rng)
            yield as_input(images, self._setting.dtype), targets


def compose(digits, labels, count, rng):
    """Return `count` images with digits in three of four quarters, and the labels of their pixels."""
    side = digits.shape[1]
    images, targets = np.zeros((count, SIZE, SIZE)), np.zeros((count, SIZE, SIZE), np.int64)
    for image, target in zip(images, targets, strict=True):
        for quarter in rng.permutation(4)[: Pixels.each]:
            corner = np.array(divmod(quarter, 2)) * side + rng.integers(-3, 4, size=2)
            row, column = np.clip(corner, 0, SIZE - side)
            which = rng.integers(len(digits))
            window = np.s_[row : row + side, column : column + side]
            ink = digits[which]
            above = ink > np.maximum(image[window], 0.1)
            target[window][above] = np.where(ink[above] > 0.4, labels[which] + 1, FAINT)
            image[window][above] = ink[above]
    return np.clip(images + 0.1 * rng.standard_normal(images.shape), 0, 1), targets


def accuracy(scores, targets):
    """Return the share of samples whose label has the highest score."""
    return float(np.mean(scores.argmax(axis=1) == targets))


def mean_iou(scores, targets):
    """Return the mean over the classes of intersection / union of predicted and true pixels."""
    counted = targets != FAINT
    predicted, true = scores.argmax(axis=1)[counted], targets[counted]
    classes = scores.shape[1]
    confusion = np.bincount(classes * true + predicted, minlength=classes**2).reshape(classes, classes)
    hits, union = np.diag(confusion), confusion.sum(axis=0) + confusion.sum(axis=1) - np.diag(confusion)
    return float(np.mean(hits[union > 0] / union[union > 0]))


_TASKS = (
    Task(
        "classification", "digits", "test accuracy", networks.OF_IMAGES, 10, Digits, accuracy,
        lambda batch, size: (batch,), ((16, 32, 64), 8, 64), ((8, 16, 32), 4, 32),
    ),
    Task(
        "segmentation", "pixels of digits", "mean IoU", networks.OF_PIXELS, 11, Pixels, mean_iou,
        lambda batch, size: (batch, size, size), ((16, 32, 64), 5, 16), ((8, 16), 2, 8),
    ),
)  # fmt: skip

TASKS = {task.key: task for task in _TASKS}
