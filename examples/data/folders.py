"""ImageNet and every data set with a folder per class: train/CLASS/*.JPEG, val/CLASS/*.JPEG."""

from .files import read_image

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")


class ClassFolders:
    """Images and the numbers of their classes.

    Parameters
    ----------
    folder : Path
        Has a folder per class.
    classes : list of str, optional
        The classes that it must have: those of the training images. Without it, its folders in sorted order.

    Attributes
    ----------
    classes : list of str
    """

    def __init__(self, folder, classes=None):
        if not folder.is_dir():
            raise SystemExit(f"{folder}: expected a folder with a folder per class")
        self.classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        if classes is not None and self.classes != classes:
            different = sorted(set(classes) ^ set(self.classes))
            raise SystemExit(
                f"{folder}: expected the classes of the training images, {', '.join(different[:5])} "
                f"{'is' if len(different) == 1 else 'are'} only in one of both"
            )
        self._files = []
        for number, name in enumerate(self.classes):
            found = sorted(path for path in (folder / name).iterdir() if path.suffix.lower() in SUFFIXES)
            if not found:
                raise SystemExit(f"{folder / name}: has no images; expected files that end in {SUFFIXES}")
            self._files += [(path, number) for path in found]
        if not self._files:
            raise SystemExit(f"{folder}: has no folders; expected one per class")

    def __len__(self):
        return len(self._files)

    def __getitem__(self, index):
        """Return an image and the number of its class; `BadFile` if it cannot be read."""
        path, number = self._files[index]
        return read_image(path), number
