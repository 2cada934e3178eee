"""The readers of examples/data: classes, ignored labels, and files that cannot be used."""

import contextlib

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")

import tiny_data_sets as tiny  # noqa: E402
from data import segmentation, transforms  # noqa: E402
from data.files import IGNORED, BadFile, read_image, read_labels  # noqa: E402
from data.folders import ClassFolders  # noqa: E402

IDENTITY = np.arange(256, dtype=np.uint8)


def labels_of(reader, index=0):
    return np.asarray(reader[index][1])


def test_cityscapes_has_the_19_classes_of_the_benchmark(tmp_path):
    ids = np.arange(35, dtype=np.uint8).reshape(1, 5, 7)
    ids[ids == 34] = 255
    tiny.cityscapes(tmp_path, "train", tiny.random_images(1, 5, 7), ids)
    reader = segmentation.cityscapes(tmp_path, "train")
    expected = np.full(256, IGNORED)
    # road 7, sidewalk 8, building 11, …, train 31, motorcycle 32, bicycle 33
    for train_id, label_id in enumerate([7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]):
        expected[label_id] = train_id
    assert reader.classes == 19
    assert (labels_of(reader) == expected[ids[0]]).all()
    assert (np.asarray(reader[0][0]) == tiny.random_images(1, 5, 7)[0]).all()


def test_images_of_16_bits_are_scaled(tmp_path):
    """Pillow's conversion to RGB clamps them to white."""
    numbers = np.arange(0, 256, 16, dtype=np.uint16).reshape(4, 4) * 257
    Image.fromarray(numbers).save(tmp_path / "image.png")
    pixels = np.asarray(read_image(tmp_path / "image.png"))
    assert np.array_equal(pixels, np.repeat((numbers >> 8)[..., None], 3, axis=2))


@pytest.mark.parametrize(
    ("name", "folder", "config"),
    [
        ("vistas", "labels", "config.json"),
        ("vistas", "v1.2/labels", "config_v1.2.json"),
        ("vistas-2.0", "v2.0/labels", "config_v2.0.json"),
    ],
)
def test_vistas_ignores_what_its_config_does_not_evaluate(tmp_path, name, folder, config):
    labels = tiny.random_labels(range(4), 2)
    tiny.vistas(tmp_path, "val", tiny.random_images(2), labels, folder, config)
    reader = segmentation.READERS[name](tmp_path, "val")
    assert reader.classes == 2
    assert (labels_of(reader, 1) == np.array([0, 1, IGNORED, IGNORED])[labels[1]]).all()


def test_coco_stuff_has_171_classes(tmp_path):
    numbers = np.setdiff1d(np.arange(1, 183), [12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91]) - 1
    labels = np.append(numbers, 255).astype(np.uint8).reshape(1, 4, 43)
    tiny.coco_stuff(tmp_path, "train", tiny.random_images(1, 4, 43), labels)
    reader = segmentation.coco_stuff(tmp_path, "train")
    assert reader.classes == 171
    assert (labels_of(reader).ravel() == [*range(171), IGNORED]).all()


@pytest.mark.parametrize("missing", ["gtFine", "leftImg8bit"])
def test_files_without_a_counterpart_are_named_or_left_out(tmp_path, missing):
    tiny.cityscapes(tmp_path, "val", tiny.random_images(3), tiny.random_labels([7], 3))
    lost = sorted((tmp_path / missing).rglob("*.png"))[1]
    name = next(path for path in tmp_path.rglob(f"{lost.name[:20]}*") if path != lost)
    lost.unlink()
    what = "labels are" if missing == "gtFine" else "image is"
    with pytest.raises(BadFile, match=f"^{name}: its {what} missing; --skip-bad-files"):
        segmentation.cityscapes(tmp_path, "val")
    reader = segmentation.cityscapes(tmp_path, "val", skip_bad_files=True)
    assert len(reader) == 2
    assert reader.problems == [f"{name}: its {what} missing"]


def test_folders_without_files_are_named(tmp_path):
    with pytest.raises(SystemExit, match="leftImg8bit/train: expected files"):
        segmentation.cityscapes(tmp_path, "train")
    with pytest.raises(SystemExit, match=r"expected config_v1\.2\.json or config\.json$"):
        segmentation.vistas(tmp_path, "train")
    with pytest.raises(SystemExit, match=r"expected config_v2\.0\.json$"):
        segmentation.vistas(tmp_path, "train", version="2.0")
    tiny.vistas(tmp_path, "train", tiny.random_images(1), tiny.random_labels([0], 1))
    (tmp_path / "config.json").write_text('{"labels": [{}]}')
    with pytest.raises(SystemExit, match=r"config\.json: expected \"labels\", each with \"evaluate\""):
        segmentation.vistas(tmp_path, "train")


def test_class_folders(tmp_path):
    tiny.class_folders(tmp_path, "train", tiny.random_images(4), [7, 3, 7, 3])
    reader = ClassFolders(tmp_path / "train")
    assert reader.classes == ["n00000003", "n00000007"]
    assert [label for _, label in (reader[index] for index in range(4))] == [0, 0, 1, 1]
    tiny.class_folders(tmp_path, "val", tiny.random_images(2), [3, 8])
    with pytest.raises(SystemExit, match="n00000007, n00000008 are only in one of both"):
        ClassFolders(tmp_path / "val", reader.classes)
    (tmp_path / "train" / "n00000009").mkdir()
    with pytest.raises(SystemExit, match="n00000009: has no images"):
        ClassFolders(tmp_path / "train")
    with pytest.raises(SystemExit, match="expected a folder with a folder per class"):
        ClassFolders(tmp_path / "test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="has no folders"):
        ClassFolders(tmp_path / "empty")


def test_unusable_labels_are_named(tmp_path):
    path = tmp_path / "labels.png"
    known = np.where(IDENTITY < 3, IDENTITY, 254).astype(np.uint8)
    pixels = np.array([[0, 1], [2, 200]], np.uint8)
    tiny.save_image(path, pixels)
    with pytest.raises(BadFile, match=rf"^{path}: the data set has no class 200$"):
        read_labels(path, known, (2, 2))
    with pytest.raises(BadFile, match=rf"^{path}: expected the size of the image, 3 x 2, got 2 x 2$"):
        read_labels(path, IDENTITY, (3, 2))
    tiny.save_image(path, np.repeat(pixels[..., None], 3, 2))
    with pytest.raises(BadFile, match=rf"^{path}: expected one byte per pixel, got an image of mode RGB$"):
        read_labels(path, IDENTITY, (2, 2))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("seed", range(3))
def test_damaged_files_are_errors_that_name_them(tmp_path, suffix, seed):
    rng = np.random.default_rng(seed)
    path = tiny.save_image(tmp_path / f"image{suffix}", tiny.random_images(1, 24, 24)[0])
    whole = path.read_bytes()
    for _ in range(100):
        damaged = bytearray(whole)
        for position in rng.integers(len(whole), size=rng.integers(1, 9)):
            damaged[position] = rng.integers(256)
        path.write_bytes(damaged[: rng.integers(len(whole))] if rng.random() < 0.5 else damaged)
        with contextlib.suppress(BadFile):  # damaged pixels need not be noticed
            assert read_image(path).mode == "RGB"
    for content in (b"", b"<html>404</html>", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(BadFile, match=rf"^{path}: cannot be read: "):
            read_image(path)
    path.unlink()
    with pytest.raises(BadFile, match=rf"^{path}: cannot be read: .*No such file"):
        read_image(path)


def coded(height=20, width=30):
    """Return image and labels with the same numbers, so that they can be compared after a transformation."""
    labels = np.arange(height * width).reshape(height, width) % 200
    labels = labels.astype(np.uint8)
    return Image.fromarray(np.repeat(labels[..., None], 3, 2)), Image.fromarray(labels)


def pixels(array):
    """Return the uint8 numbers of a normalized image's first channel."""
    return np.rint((array[0] * transforms.DEVIATION[0, 0, 0] + transforms.MEAN[0, 0, 0]) * 255)


@pytest.mark.parametrize("size", [8, 25, 40])
def test_image_and_labels_are_cut_and_mirrored_alike(size):
    transform = transforms.RandomScaleCrop(size, scales=(1.0, 1.0))
    results = [transform(coded(), np.random.default_rng(seed)) for seed in range(20)]
    for image, labels in results:
        assert image.shape == (3, size, size)
        assert image.dtype == np.float32
        assert labels.dtype == np.int64
        inside = labels != IGNORED
        assert inside.sum() == min(size, 20) * min(size, 30)
        assert (pixels(image)[inside] == labels[inside]).all()
        assert (image[:, ~inside] == 0).all()
    assert len({labels.tobytes() for _, labels in results}) > (1 if size == 40 else 5)


def test_scales_change_the_size_and_keep_the_classes():
    transform = transforms.RandomScaleCrop(60, scales=(0.5, 2.0), mirror=False)
    for seed in range(20):
        image, labels = transform(coded(), np.random.default_rng(seed))
        assert set(np.unique(labels)) <= {*range(200), IGNORED}
        inside = (labels != IGNORED).any(0).sum(), (labels != IGNORED).any(1).sum()
        assert 15 <= inside[0] <= 60
        assert abs(inside[0] / inside[1] - 1.5) < 0.2
        assert np.isfinite(image).all()


def test_whole_images_keep_the_size_of_labels():
    image, labels = transforms.WholeImage(side=10)(coded(), None)
    assert image.shape == (3, 10, 15)
    assert labels.shape == (20, 30)
    image, labels = transforms.WholeImage()(coded(), None)
    assert (pixels(image) == labels).all()


def test_random_crops_depend_on_the_generator_alone():
    picture = Image.fromarray(tiny.random_images(1, 40, 60)[0])
    transform = transforms.RandomCrop(16, jitter=0.4)
    results = [transform((picture, 3), np.random.default_rng(seed)) for seed in (0, 0, 1, 2)]
    assert all(image.shape == (3, 16, 16) and label == 3 for image, label in results)
    assert (results[0][0] == results[1][0]).all()
    assert len({image.tobytes() for image, _ in results}) == 3


def test_the_middle_of_images():
    image, _ = transforms.CenterCrop(20, 20)((coded()[0], 0), None)
    assert (pixels(image) == np.asarray(coded()[1])[:, 5:25]).all()
