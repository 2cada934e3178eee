"""Small data sets in the file formats of ImageNet, Cityscapes, Mapillary Vistas and COCO-Stuff."""

import json

import numpy as np
from PIL import Image

#: Classes of the tiny Vistas: names, and if they are evaluated.
VISTAS = {"animal--bird": True, "construction--barrier": True, "void--car": False, "void--unlabeled": False}


def save_image(path, pixels, **options):
    """Write uint8 numbers, (H, W) or (H, W, 3), as an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format="PNG" if path.suffix == ".png" else "JPEG", **options)
    return path


def class_folders(root, split, images, labels):
    """Write ImageNet's folders: SPLIT/nNNNNNNNN/*.JPEG."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        name = f"n{int(label):08}"
        save_image(root / split / name / f"{name}_{number}.JPEG", image, quality=95)


def three_classes(root, training, validation):
    """Write class folders with these numbers of random images of three classes; return the folder."""
    for seed, (split, images) in enumerate({"train": training, "val": validation}.items()):
        class_folders(root, split, random_images(images, seed=seed), np.arange(images) % 3)
    return root


def cityscapes(root, split, images, labels):
    """Write leftImg8bit and gtFine; `labels` are label ids. Half of the images are in another city."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        city = ("aachen", "zurich")[number % 2]
        name = f"{city}_{number:06}_000019"
        save_image(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", image)
        save_image(root / "gtFine" / split / city / f"{name}_gtFine_labelIds.png", label)


def vistas(root, split, images, labels, labels_folder="labels", config="config.json"):
    """Write images and palette PNGs; `labels` are positions in `VISTAS`."""
    folder = {"train": "training", "val": "validation"}[split]
    described = [
        {"name": name, "readable": name, "evaluate": flag, "instances": True, "color": [position, 9, 90]}
        for position, (name, flag) in enumerate(VISTAS.items())
    ]
    root.mkdir(parents=True, exist_ok=True)
    (root / config).write_text(json.dumps({"labels": described, "version": "1.1"}), "utf-8")
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        save_image(root / folder / "images" / f"name-{number}.jpg", image)
        paletted = Image.fromarray(label, "P")
        paletted.putpalette([value for row in described for value in row["color"]])
        path = root / folder / labels_folder / f"name-{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        paletted.save(path)


def coco_stuff(root, split, images, labels):
    """Write COCO's images and pixel maps; `labels` are numbers - 1."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        save_image(root / "images" / f"{split}2017" / f"{number:012}.jpg", image)
        save_image(root / "annotations" / f"{split}2017" / f"{number:012}.png", label)


def random_images(number, height=8, width=8, seed=0):
    """Return images (number, height, width, 3) of random uint8 numbers."""
    return np.random.default_rng(seed).integers(256, size=(number, height, width, 3), dtype=np.uint8)


def random_labels(values, number, height=8, width=8, seed=1):
    """Return labels (number, height, width) with random ones of `values`."""
    return np.random.default_rng(seed).choice(np.array(values, np.uint8), size=(number, height, width))


def digits(factor):
    """Return scikit-learn's digits and their classes: 300 for evaluation, 1,497 for training.

    Images are uint8, (N, 8 * factor, 8 * factor, 3).
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.repeat(np.repeat(found.images * 255 / 16, factor, 1), factor, 2).astype(np.uint8)
    images = np.repeat(images[..., None], 3, 3)
    return {"val": (images[:300], found.target[:300]), "train": (images[300:], found.target[300:])}
