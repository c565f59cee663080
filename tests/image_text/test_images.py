"""Labelled pictures from folders and from torchvision's data sets, and every way to be wrong."""

import json
import os
import pickle

import numpy as np
import pytest
from pictures_on_disk import class_folders
from PIL import Image

from videoclip.errors import ImageError, SplitError
from videoclip.image_text.images import image_set, read_image


def test_a_folder_of_class_folders(tmp_path) -> None:
    images = image_set(class_folders(tmp_path / "colors"))
    assert images.classes == ("blue", "green", "red")
    assert images.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert images.names[4] == "green/0.png"
    assert images.places(["green/1.png", "blue/0.png"]) == [5, 0]
    assert np.array(images.image(11).convert("RGB")).mean((0, 1)).argmax() == 0  # red


def test_splits_are_chosen_and_asked_for(tmp_path) -> None:
    class_folders(tmp_path / "train", 2)
    class_folders(tmp_path / "test", 1)
    assert len(image_set(tmp_path, split="train")) == 6
    with pytest.raises(ImageError, match=r"has no split 'val'; it has train, test"):
        image_set(tmp_path, split="val")
    with pytest.raises(ImageError, match=r"choose with --split"):
        image_set(tmp_path)


def test_the_key_follows_the_files(tmp_path) -> None:
    folder = class_folders(tmp_path / "colors")
    before = image_set(folder).key
    assert image_set(folder).key == before
    Image.new("RGB", (9, 9)).save(folder / "red" / "0.png")
    assert image_set(folder).key != before


def test_files_that_are_no_pictures_are_counted(tmp_path) -> None:
    folder = class_folders(tmp_path / "colors")
    (folder / "red" / "notes.txt").write_text("x")
    images = image_set(folder)
    assert len(images) == 12
    assert images.left_out == 1


def test_classes_are_renamed(tmp_path) -> None:
    folder = class_folders(tmp_path / "colors")
    table = tmp_path / "names.json"
    table.write_text(json.dumps({"red": "a rose", "green": "grass", "blue": "the sea"}))
    assert image_set(folder, classes=table).classes == ("the sea", "grass", "a rose")
    lines = tmp_path / "names.txt"
    lines.write_text("the sea\ngrass\n")
    with pytest.raises(ImageError, match=r"names 2 classes, colors has 3"):
        image_set(folder, classes=lines)
    table.write_text(json.dumps({"red": "a rose"}))
    with pytest.raises(ImageError, match=r"no name for the classes blue, green"):
        image_set(folder, classes=table)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"no picture", "is not a picture"), (None, "cannot be read as a picture")],
)
def test_broken_files_are_named(tmp_path, content, message) -> None:
    path = tmp_path / "broken.jpg"
    if content is None:
        Image.effect_noise((64, 64), 90).save(path)
        content = path.read_bytes()[:900]
    path.write_bytes(content)
    with pytest.raises(ImageError, match=f"broken.jpg.*{message}"):
        read_image(path)


def test_a_missing_file_a_folder_and_a_bomb_are_named(tmp_path, monkeypatch) -> None:
    with pytest.raises(ImageError, match=r"does not exist"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match=r"is a folder"):
        read_image(tmp_path)
    Image.new("L", (100, 100)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(ImageError, match=r"is refused.*scale it down"):
        read_image(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6000)  # over the limit, but not twice
    assert read_image(tmp_path / "bomb.png").size == (100, 100)


def test_sixteen_bits_keep_their_range_and_a_turned_picture_is_turned(tmp_path) -> None:
    deep = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.abs(np.array(read_image(tmp_path / "deep.png")) - deep / 257.0).max() < 2
    turned = Image.new("RGB", (8, 4))
    mark = turned.getexif()
    mark[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=mark)
    assert read_image(tmp_path / "turned.jpg").size == (8, 4)
    assert read_image(tmp_path / "turned.jpg", upright=True).size == (4, 8)


def test_nothing_but_wrong_folders(tmp_path) -> None:
    with pytest.raises(ImageError, match=r"is not a folder"):
        image_set(tmp_path / "none")
    with pytest.raises(ImageError, match=r"holds no class folders"):
        image_set(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(ImageError, match=r"hold no pictures"):
        image_set(tmp_path)


def test_a_folder_without_splits_says_so_and_a_class_may_be_called_train(tmp_path) -> None:
    whole = image_set(class_folders(tmp_path / "colors"), split="test")
    assert (len(whole), whole.split, whole.name) == (12, None, "colors")
    (tmp_path / "colors" / "red").rename(tmp_path / "colors" / "train")
    assert image_set(tmp_path / "colors", split="test").classes == ("blue", "green", "train")
    class_folders(tmp_path / "data" / "train", 1)
    class_folders(tmp_path / "data" / "test", 2)
    (tmp_path / "data" / "notes").mkdir()
    assert image_set(tmp_path / "data", split="test").split == "test"
    assert len(image_set(tmp_path / "data", split="test")) == 6
    (tmp_path / "data" / "val").mkdir()
    (tmp_path / "data" / "notes").rmdir()
    with pytest.raises(ImageError, match=r"val holds no class folders"):
        image_set(tmp_path / "data", split="val")


def test_the_key_tells_train_from_test_and_follows_the_classes(tmp_path) -> None:
    """Unpacked archives give all files one time, and uncompressed pictures have one size."""
    for split, seed in (("train", 0), ("test", 1)):
        for path in class_folders(tmp_path / split, 2, seed).rglob("*.png"):
            Image.open(path).save(path.with_suffix(".bmp"))
            path.unlink()
            os.utime(path.with_suffix(".bmp"), (0, 0))
    train, test = (image_set(tmp_path, split=split) for split in ("train", "test"))
    assert train.names == test.names
    assert train.key != test.key
    (tmp_path / "train" / "apple").mkdir()  # moves every label by one
    assert image_set(tmp_path, split="train").key != train.key


def test_hidden_files_and_loose_pictures_are_left_out_and_counted(tmp_path) -> None:
    folder = class_folders(tmp_path / "colors")
    picture = (folder / "red" / "0.png").read_bytes()
    (folder / "red" / "._0.png").write_bytes(b"macOS writes such")
    (folder / "red" / ".ipynb_checkpoints").mkdir()
    (folder / "red" / ".ipynb_checkpoints" / "0.png").write_bytes(picture)
    (folder / "loose.png").write_bytes(picture)
    images = image_set(folder)
    assert (len(images), images.left_out) == (12, 3)


def test_a_part_is_a_set_of_its_own(tmp_path) -> None:
    whole = image_set(class_folders(tmp_path / "colors"))
    part = whole.part(np.array([11, 1]), "test")
    assert part.names == ("red/3.png", "blue/1.png")
    assert part.labels.tolist() == [2, 0]
    assert (part.name, part.split) == ("colors test", "test")
    assert part.key not in (whole.key, whole.part(np.array([11, 2]), "test").key)
    assert np.array(part.image(0)).tolist() == np.array(whole.image(11)).tolist()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_every_kind_of_pixel_becomes_the_color_it_shows(tmp_path, mode) -> None:
    gray = Image.new("RGB", (20, 20), (128, 128, 128))
    path = tmp_path / f"gray.{'tif' if mode in ('CMYK', 'YCbCr') else 'png'}"
    gray.convert(mode).save(path)
    read = read_image(path)
    assert read.mode == mode
    assert abs(np.array(read.convert("RGB")).mean() - 128) < 2


def test_thirty_two_bits_are_refused_where_their_range_is_unknown(tmp_path) -> None:
    for kind, top in ((np.int32, 40000), (np.float32, -1.5)):
        Image.fromarray(np.full((9, 9), top, kind)).save(tmp_path / "deep.tif")
        with pytest.raises(ImageError, match=r"deep.tif holds values from .* to .*8 bits"):
            read_image(tmp_path / "deep.tif")
    Image.fromarray(np.full((9, 9), 200, np.int32)).save(tmp_path / "deep.tif")
    assert np.array(read_image(tmp_path / "deep.tif").convert("RGB")).max() == 200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{red", r"names.json cannot be read"),
        ("3", r"neither"),
        ('["a", ["b", "c"], "d"]', r'names a class \["b", "c"\]; give one text'),
    ],
)
def test_wrong_class_names_are_one_message(tmp_path, text, message) -> None:
    folder = class_folders(tmp_path / "colors", 1)
    (tmp_path / "names.json").write_text(text)
    with pytest.raises(ImageError, match=message):
        image_set(folder, classes=tmp_path / "names.json")


def test_cifar_from_its_own_files(tmp_path, monkeypatch) -> None:
    numbers = np.random.default_rng(0)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_, **__: True)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    def write(name: str) -> np.ndarray:
        pixels = numbers.integers(0, 256, (3, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [2, 0, 1]}))
        return pixels

    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["cat", "dog", "car"]}))
    first = [write(name) for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]]
    source = f"torchvision:CIFAR10:{tmp_path}"
    train, test = image_set(source, split="train"), image_set(source, split="test")
    assert (len(train), len(test)) == (15, 3)
    assert test.classes == ("cat", "dog", "car")
    assert test.labels.tolist() == [2, 0, 1]
    assert (np.array(train.image(4)) == first[1][1].reshape(3, 32, 32).transpose(1, 2, 0)).all()
    with pytest.raises(SplitError, match=r"has the splits train and test, not 'val'"):
        image_set(source, split="val")
    write("data_batch_1")
    assert image_set(source, split="train").key != train.key
    assert image_set(source, split="test").key == test.key


def test_a_set_of_torchvision_without_splits_or_labels(tmp_path) -> None:
    class_folders(tmp_path / "eurosat" / "2750", 2)
    found = image_set(f"torchvision:EuroSAT:{tmp_path}", split="train")
    assert (found.name, found.split, len(found)) == ("EuroSAT", None, 6)
    part = found.part(np.array([5]), "test")
    assert np.array(part.image(0)).tolist() == np.array(found.image(5)).tolist()
    with pytest.raises(ImageError, match=r"CocoCaptions is no set of labelled pictures"):
        image_set(f"torchvision:CocoCaptions:{tmp_path}")


def test_a_data_set_of_torchvision_on_disk(tmp_path) -> None:
    with pytest.raises(ImageError, match=r"no data set 'CIFAR11'; .*CIFAR10"):
        image_set(f"torchvision:CIFAR11:{tmp_path}")
    with pytest.raises(ImageError, match=r"nothing is downloaded unless asked for"):
        image_set(f"torchvision:MNIST:{tmp_path}")
    # The files of USPS, FER2013 and others are tiny texts; this one is a csv.
    folder = tmp_path / "fer2013"
    folder.mkdir()
    rows = [f'{label},"{" ".join([str(label * 30)] * 48 * 48)}"' for label in range(7)]
    (folder / "train.csv").write_text("emotion,pixels\n" + "\n".join(rows) + "\n")
    import torchvision.datasets.fer2013 as fer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fer, "check_integrity", lambda *_, **__: True)
        images = image_set(f"torchvision:FER2013:{tmp_path}", split="train")
    assert images.labels.tolist() == list(range(7))
    assert np.array(images.image(3)).mean() == 90
    assert pickle.loads(pickle.dumps(images)).names == images.names
