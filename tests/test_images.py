"""Labelled pictures from folders and from torchvision's data sets, and every way to be wrong."""

import json
import pickle

import numpy as np
import pytest
from pictures_on_disk import class_folders
from PIL import Image

from videoclip.errors import ImageError
from videoclip.images import image_set, read_image


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
