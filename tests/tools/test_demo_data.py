"""The demo with other networks, and with the images of a folder."""

import numpy as np
import pytest

from inplace_abn import demo, models
from inplace_abn.__main__ import main
from inplace_abn.demo import image_folder, networks, tasks, training

for needed in demo.NEEDED:
    pytest.importorskip(needed, reason="the demo needs the extra 'demo'")

Image = pytest.importorskip("PIL.Image", reason="Pillow comes with Matplotlib")

#: Class -> the channel that is bright in its images
CLASSES = {"blue": 2, "green": 1, "red": 0}


def write_images(folder, each, size=(20, 14)):
    """Write `each` images of a colour, with noise, into a folder for each class."""
    rng = np.random.default_rng(0)
    for name, channel in CLASSES.items():
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = rng.integers(0, 80, (*size, 3))
            pixels[..., channel] += 150
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")


@pytest.fixture
def split(tmp_path):
    """Return a folder with images for training and for the test."""
    write_images(tmp_path / "train", 16)
    write_images(tmp_path / "val", 4)
    return tmp_path


def setting_of(folder, **options):
    return tasks.TASKS["classification"].setting(
        **{"quick": True, "epochs": 1, "batch_size": 8, "folder": folder, "size": 16, **options}
    )


# ---- networks ----------------------------------------------------------------------------------------------


def test_every_network_of_the_models_is_offered():
    offered = {*networks.OF_IMAGES, *networks.OF_PIXELS}
    with_options = {"resnet"}  # the general form of those offered
    blocks = {"DenseBlock", "Style", "inverted_residual", "postactivation_block", "preactivation_block"}
    assert offered == set(models.__all__) - with_options - blocks


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("classification", "mobilenet_v2"),
        ("segmentation", "UNet"),
        pytest.param("classification", "resnet34", marks=slow),
        pytest.param("classification", "densenet", marks=slow),
        pytest.param("segmentation", "deeplabv3", marks=slow),
    ],
)
def test_a_step_of_other_networks(task, name):
    setting = tasks.TASKS[task].setting(quick=True, batch_size=2, network=name)
    images, targets = setting.noise()
    trainer = training.Trainer(setting.network("inplace_2"), 2)
    before = trainer.net.state_dict()
    assert np.isfinite(trainer.step(images, targets))
    assert any(np.any(after != before[key]) for key, after in trainer.net.state_dict().items())


def test_a_batch_too_small_for_the_network_is_refused(split, tmp_path, capsys):
    arguments = ["--network", "resnet34", "--data", str(split), "--image-size", "8", "--batch-size", "1"]
    picture = str(tmp_path / "picture.png")
    assert main(["demo", *arguments, "--strategy", "inplace", "--epochs", "1", "--output", picture]) == 1
    error = capsys.readouterr().err
    assert error.rstrip().splitlines()[-1].startswith("ValueError: ")
    assert "demo: measuring the memory of 'inplace_2' failed:" in error


def test_a_network_of_another_task_is_refused(capsys):
    assert main(["demo", "--network", "UNet"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("demo: network must be one of 'residual_network', 'resnet34'")
    assert "got 'UNet'" in error


# ---- images of a folder ------------------------------------------------------------------------------------


def test_batches_of_a_folder(split):
    setting = setting_of(split)
    assert (setting.classes, setting.channels, setting.size) == (3, 3, 16)
    data = setting.data()
    batches = list(data.batches(0))
    assert len(batches) == data.steps == 6
    for images, labels in [*batches, data.test]:
        assert images.shape == (len(labels), 3, 16, 16)
        assert images.dtype == np.float32
        assert -1 <= images.min() < images.max() <= 1
        bright = images.mean(axis=(2, 3)).argmax(axis=1)
        assert np.array_equal(bright, np.array(list(CLASSES.values()))[labels])
    assert np.bincount(np.concatenate([labels for _, labels in batches])).tolist() == [16, 16, 16]
    first, of_another_epoch = (next(data.batches(epoch))[0] for epoch in (0, 1))
    assert np.array_equal(first, batches[0][0])
    assert not np.array_equal(of_another_epoch, first)


def test_without_a_folder_of_test_images_a_fifth_is_for_the_test(tmp_path):
    write_images(tmp_path, 10)
    found = image_folder.listing(tmp_path)
    assert found.classes == tuple(CLASSES)
    assert (len(found.train), len(found.test)) == (24, 6)
    assert not set(found.train) & set(found.test)


def test_files_without_an_ending_of_images_are_ignored(split):
    (split / "train" / "red" / "notes.txt").write_text("not an image")
    assert len(image_folder.listing(split).train) == 48


def test_the_command_with_a_folder(split, tmp_path, capsys):
    picture = tmp_path / "picture.png"
    arguments = ["--data", str(split), "--image-size", "16", "--batch-size", "8", "--epochs", "2", "--quick"]
    assert main(["demo", *arguments, "--strategy", "standard", "inplace", "--output", str(picture)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"images of {split}: residual_network, 2 epochs, batches of 8, float32, ")
    assert picture.exists()


def test_corrupt_images_are_named_and_counted(split, capsys):
    bad = [split / "train" / "red" / "3.png", split / "train" / "blue" / "0.png"]
    bad[0].write_bytes(b"no image")
    bad[1].write_bytes(bad[1].read_bytes()[:200])
    with pytest.raises(ValueError, match="data: 2 of 48 files cannot be read as images:") as error:
        setting_of(split).data()
    assert all(str(path) in str(error.value) for path in bad)
    assert str(error.value).endswith("To leave them out, pass --skip-bad-files.")
    data = setting_of(split, skip_bad_files=True).data()
    assert sum(len(labels) for _, labels in data.batches(0)) == 40  # of 46 images, in whole batches
    assert "Left out: 2 of 48 files" in capsys.readouterr().err


def test_images_with_16_bits_are_scaled_to_8(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((4, 6), 0x4E20, np.uint16)).save(path)
    images, _ = image_folder.decode([(path, 0)], 4)
    assert (images == 0x4E).all()


@pytest.mark.parametrize("pixels", [np.full((4, 4), 0.5, np.float32), np.full((4, 4), -1, np.int32)])
def test_images_whose_range_is_unknown_are_refused(tmp_path, pixels):
    path = tmp_path / "measured.tif"
    Image.fromarray(pixels).save(path)
    with pytest.raises(ValueError, match=r"measured\.tif: expected integers of 8 or 16 bits"):
        image_folder.decode([(path, 0)], 4)


def test_images_too_large_for_pillow_are_named(tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    Image.new("RGB", (40, 40)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"large\.png: Image size"):
        image_folder.decode([(path, 0)], 4)


def test_a_test_without_readable_images_is_refused(split, capsys):
    for path in split.glob("val/*/*.png"):
        path.write_bytes(b"not an image")
    with pytest.raises(ValueError, match="none of the 12 images for the test can be read"):
        image_folder.FolderImages(setting_of(split, skip_bad_files=True))
    assert "Left out: 12 of 12 files" in capsys.readouterr().err


def test_only_some_corrupt_images_are_listed(tmp_path):
    write_images(tmp_path, 10)
    for path in (tmp_path / "red").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"\.\.\. and 3 more"):
        setting_of(tmp_path).data()


def missing(folder):
    (folder / "val").rename(folder / "validation")


def another_class(folder):
    (folder / "val" / "blue").rename(folder / "val" / "violet")


def empty_class(folder):
    for path in (folder / "train" / "blue").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (missing, "has the folder 'train', but no folder 'val' or 'test' beside it"),
        (another_class, r"must have the same classes; only in one: \['blue', 'violet'\]"),
        (empty_class, "class 'blue' in .* has no image for training"),
    ],
)
def test_an_incomplete_folder_is_refused(split, change, message):
    change(split)
    with pytest.raises(ValueError, match=f"^data: .*{message}"):
        setting_of(split)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--data", "nowhere"],
            "data: expected a folder with a folder of images for each class, got nowhere",
        ),
        (
            ["--data", ".", "--task", "segmentation"],
            "data: a folder of images is for the task 'classification'",
        ),
        (["--image-size", "32"], "image_size: the images of the task have 32 pixels; pass data as well"),
    ],
)
def test_options_that_do_not_fit(arguments, message, capsys):
    assert main(["demo", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_folder_with_one_class_is_refused(tmp_path):
    (tmp_path / "red").mkdir()
    with pytest.raises(ValueError, match="expected at least 2 folders, one for each class"):
        image_folder.listing(tmp_path)
