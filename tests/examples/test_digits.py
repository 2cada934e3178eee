"""The scripts of examples/ learn scikit-learn's digits, and which pixels belong to which digit."""

import numpy as np
import pytest

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", minversion="2.4")
pytest.importorskip("PIL")
pytest.importorskip("sklearn")

import imagenet  # noqa: E402
import segmentation  # noqa: E402
import tiny_data_sets as tiny  # noqa: E402
from data.classes import CITYSCAPES  # noqa: E402

torch.set_num_threads(1)


def arguments(root, output, **options):
    values = {"output": output, "model": "small", "activation": "leaky_relu", "workers": 0, "device": "cpu"}
    given = [f"--{name.replace('_', '-')}={value}" for name, value in {**values, **options}.items()]
    return [str(root), *given, "--no-mirror"]


def test_digits(tmp_path):
    for split, (images, labels) in tiny.digits(1).items():
        tiny.class_folders(tmp_path / "digits", split, images, labels)
    scores = imagenet.main(arguments(
        tmp_path / "digits", tmp_path / "run", crop=8, evaluation_crop=8, resize=8, smallest_crop=0.8,
        jitter=0, batch_size=32, epochs=3, schedule="linear", learning_rate=0.1,
    ))  # fmt: skip
    assert scores["top1"] > 0.92  # with three seeds 0.95 to 0.96


def mosaics(images, labels, rows=2, columns=3):
    """Return images of several digits, and the label ids of Cityscapes for their pixels.

    Ink of a digit is one of the first ten classes, the background is the eleventh. Pixels that are neither
    are ignored.
    """
    number = len(images) // (rows * columns)
    used = images[: number * rows * columns]
    ink = used[..., 0] / 255
    of_digit = np.array(CITYSCAPES)[labels[: len(used)], None, None]
    ids = np.where(ink >= 0.5, of_digit, np.where(ink <= 0.125, CITYSCAPES[10], 0)).astype(np.uint8)

    def tiled(arrays):
        parts = arrays.reshape(number, rows, columns, 8, 8, -1).transpose(0, 1, 3, 2, 4, 5)
        return np.ascontiguousarray(parts.reshape(number, rows * 8, columns * 8, -1).squeeze())

    return tiled(used), tiled(ids)


def test_pixels_of_digits(tmp_path):
    for split, (images, labels) in tiny.digits(1).items():
        tiny.cityscapes(tmp_path / "streets", split, *mosaics(images, labels))
    scores = segmentation.main([*arguments(
        tmp_path / "streets", tmp_path / "run", crop=16, batch_size=8, epochs=6, learning_rate=0.1,
    ), "--scales", "1", "1"])  # fmt: skip
    assert scores["mean_iou"] > 0.6  # with three seeds 0.66 to 0.76
    assert scores["pixels"] > 0.9
