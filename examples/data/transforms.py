"""Transformations of PIL images for training and evaluation, by NumPy's random generators."""

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from .files import IGNORED

#: Mean and standard deviation of ImageNet's training images, of numbers from 0 to 1.
MEAN = np.array([0.485, 0.456, 0.406], np.float32).reshape(3, 1, 1)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32).reshape(3, 1, 1)


def as_array(image):
    """Return an RGB image as normalized float32 numbers, (3, H, W)."""
    numbers = np.asarray(image, np.float32).transpose(2, 0, 1) / np.float32(255)
    return np.ascontiguousarray((numbers - MEAN) / DEVIATION)


class RandomCrop:
    """A part of random area and shape, resized; mirrored half of the time, with random colors.

    Parameters
    ----------
    size : int
        Height and width of the result.
    smallest : float
        The smallest share of the area.
    jitter : float
        The strength of changes of brightness, contrast and saturation, 0 to 1.
    mirror : bool
    """

    def __init__(self, size, smallest=0.08, jitter=0.0, mirror=True):
        self.size, self.smallest, self.jitter, self.mirror = size, smallest, jitter, mirror

    def __call__(self, sample, rng):
        """Return the image as an array and its label."""
        image, label = sample
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR, self._box(image.size, rng))
        if self.mirror and rng.random() < 0.5:
            image = ImageOps.mirror(image)
        for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            if self.jitter:
                image = enhancer(image).enhance(1 + self.jitter * rng.uniform(-1, 1))
        return as_array(image), np.int64(label)

    def _box(self, size, rng):
        """Return left, top, right, bottom of a part with a ratio of sides from 3:4 to 4:3."""
        width, height = size
        for _ in range(10):
            area = width * height * rng.uniform(self.smallest, 1)
            ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
            w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
            if 0 < w <= width and 0 < h <= height:
                left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
                return left, top, left + w, top + h
        return 0, 0, width, height


class CenterCrop:
    """The middle of an image whose shorter side is resized."""

    def __init__(self, size, side):
        self.size, self.side = size, side

    def __call__(self, sample, rng):
        """Return the image as an array and its label."""
        image, label = sample
        image = _resize_shorter(image, self.side)
        left, top = (image.width - self.size) // 2, (image.height - self.size) // 2
        return as_array(image.crop((left, top, left + self.size, top + self.size))), np.int64(label)


class RandomScaleCrop:
    """Image and labels scaled at random, a random part of them, mirrored half of the time.

    Where the image is smaller than the part, it is filled with zeros and ignored labels.

    Parameters
    ----------
    size : int
        Height and width of the result.
    scales : (float, float)
    mirror : bool
    """

    def __init__(self, size, scales=(0.5, 2.0), mirror=True):
        self.size, self.scales, self.mirror = size, scales, mirror

    def __call__(self, sample, rng):
        """Return image and labels as arrays."""
        image, labels = sample
        scale = np.exp(rng.uniform(*np.log(self.scales)))
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        image, labels = (
            image.resize(size, Image.Resampling.BILINEAR), labels.resize(size, Image.Resampling.NEAREST)
        )  # fmt: skip
        if self.mirror and rng.random() < 0.5:
            image, labels = ImageOps.mirror(image), ImageOps.mirror(labels)
        left, top = (rng.integers(max(0, side - self.size) + 1) for side in size)
        box = (left, top, min(left + self.size, size[0]), min(top + self.size, size[1]))
        height, width = box[3] - top, box[2] - left
        pixels = np.zeros((3, self.size, self.size), np.float32)
        classes = np.full((self.size, self.size), IGNORED, np.int64)
        pixels[:, :height, :width] = as_array(image.crop(box))
        classes[:height, :width] = np.asarray(labels.crop(box))
        return pixels, classes


class WholeImage:
    """Whole images; the labels keep their size, the shorter side of the image is resized if wanted."""

    def __init__(self, side=None):
        self.side = side

    def __call__(self, sample, rng):
        """Return image and labels as arrays."""
        image, labels = sample
        image = _resize_shorter(image, self.side) if self.side else image
        return as_array(image), np.asarray(labels, np.int64)


def _resize_shorter(image, side):
    factor = side / min(image.size)
    size = max(side, round(image.width * factor)), max(side, round(image.height * factor))
    return image.resize(size, Image.Resampling.BILINEAR)
