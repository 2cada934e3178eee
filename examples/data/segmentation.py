"""Cityscapes, Mapillary Vistas and COCO-Stuff in the layout of their archives."""

import json
from functools import partial
from pathlib import Path

import numpy as np

from .classes import CITYSCAPES, COCO_STUFF_MISSING, COCO_STUFF_NUMBERS
from .files import IGNORED, UNKNOWN, BadFile, pairs, read_image, read_labels


class LabelledImages:
    """Images with a class per pixel.

    Parameters
    ----------
    images, labels : dict of str to Path
        By names that both have in common.
    class_map : dict of int to int
        The class of each number in the label files, or `IGNORED`; other numbers are errors.
    skip_bad_files : bool
        Leave out files without a counterpart. False: they are errors.

    Attributes
    ----------
    classes : int
        The number of classes.
    problems : list of str
        Messages about the files that were left out.
    """

    def __init__(self, images, labels, class_map, skip_bad_files):
        self._files, self.problems = pairs(images, labels)
        if self.problems and not skip_bad_files:
            more = f", and {len(self.problems) - 3} more" if self.problems[3:] else ""
            raise BadFile(f"{'; '.join(self.problems[:3])}{more}; --skip-bad-files trains without them")
        self.classes = len(set(class_map.values()) - {IGNORED})
        self._map = np.full(256, UNKNOWN, np.uint8)
        self._map[list(class_map)] = list(class_map.values())

    def __len__(self):
        return len(self._files)

    def __getitem__(self, index):
        """Return image and labels, PIL images; `BadFile` if one cannot be used."""
        image_path, labels_path = self._files[index]
        image = read_image(image_path)
        return image, read_labels(labels_path, self._map, image.size)


def cityscapes(root, split, skip_bad_files=False):
    """Return a part of Cityscapes: 19 classes, made of ``*_gtFine_labelIds.png``.

    `split` is "train" or "val". The other 15 kinds of pixels are ignored, as in the benchmark.
    """
    images = _files(root, f"leftImg8bit/{split}", "*/*_leftImg8bit.png", "_leftImg8bit.png")
    labels = _files(root, f"gtFine/{split}", "*/*_gtFine_labelIds.png", "_gtFine_labelIds.png")
    class_map = dict.fromkeys([*range(34), 255], IGNORED)  # 255: -1, the licence plates, as a byte
    class_map |= {number: position for position, number in enumerate(CITYSCAPES)}
    return LabelledImages(images, labels, class_map, skip_bad_files)


def vistas(root, split, skip_bad_files=False, version="1.2"):
    """Return a part of Mapillary Vistas, with the classes that its config file marks for evaluation.

    `split` is "train" or "val". `version` is that of the labels: "1.2", or "1.1" in older archives, has the
    65 classes of the paper, all but "unlabeled"; "2.0" has more.
    """
    config, labels_folder = _vistas_files(Path(root), version)
    folder = {"train": "training", "val": "validation"}[split]
    images = _files(root, f"{folder}/images", "*.jpg", ".jpg")
    labels = _files(root, f"{folder}/{labels_folder}", "*.png", ".png")
    try:
        evaluated = [label["evaluate"] for label in json.loads(config.read_text("utf-8"))["labels"]]
    except (ValueError, KeyError, TypeError) as error:
        raise SystemExit(f'{config}: expected "labels", each with "evaluate": {error!r}') from error
    numbers = (number for number, is_evaluated in enumerate(evaluated) if is_evaluated)
    class_map = dict.fromkeys(range(len(evaluated)), IGNORED)
    class_map |= {number: position for position, number in enumerate(numbers)}
    return LabelledImages(images, labels, class_map, skip_bad_files)


def coco_stuff(root, split, skip_bad_files=False):
    """Return a part of COCO-Stuff: 171 classes, the pixel maps of things and stuff.

    `split` is "train" or "val". ``images/train2017/*.jpg`` are COCO's images,
    ``annotations/train2017/*.png`` those of stuffthingmaps_trainval2017.zip: number - 1 of a class, 255 for
    pixels without one.
    """
    images = _files(root, f"images/{split}2017", "*.jpg", ".jpg")
    labels = _files(root, f"annotations/{split}2017", "*.png", ".png")
    numbers = [number - 1 for number in COCO_STUFF_NUMBERS if number not in COCO_STUFF_MISSING]
    class_map = {number: position for position, number in enumerate(numbers)} | {255: IGNORED}
    return LabelledImages(images, labels, class_map, skip_bad_files)


#: The readers by the names on the command line.
READERS = {
    "cityscapes": cityscapes,
    "vistas": vistas,
    "vistas-2.0": partial(vistas, version="2.0"),
    "coco-stuff": coco_stuff,
}


def _files(root, folder, pattern, ending):
    """Return the files of a folder by their names without the ending."""
    found = sorted(Path(root, folder).glob(pattern))
    if not found:
        raise SystemExit(f"{Path(root, folder)}: expected files {pattern}")
    return {path.name.removesuffix(ending): path for path in found}


def _vistas_files(root, version):
    """Return the config file and the folder of the labels of a version."""
    found = {f"config_v{version}.json": f"v{version}/labels"}
    if version != "2.0":
        found["config.json"] = "labels"  # of an archive with one version
    for config, folder in found.items():
        if (root / config).exists():
            return root / config, folder
    raise SystemExit(f"{root}: expected {' or '.join(found)}")
