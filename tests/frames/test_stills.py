"""Pictures and folders of them are videos; a folder with gaps is none."""

from pathlib import Path

import clips
import numpy as np
import pytest
from PIL import Image

from videoclip.errors import VideoError
from videoclip.frames.decode import open_video


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with open_video(path) as video:
        return video.read(range(len(video.timestamps))), video.timestamps


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Frames 8 to 12 of a video, whose names do not sort as their numbers do."""
    folder = tmp_path / "clip"
    folder.mkdir()
    for number, pixels in enumerate(clips.pattern(5), start=8):
        Image.fromarray(pixels).save(folder / f"img_2_{number}.png")
    (folder / "annotations.txt").write_text("no picture")
    return folder


def test_picture_is_a_video_of_one_frame(tmp_path: Path) -> None:
    pixels = clips.pattern(3)[2]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    frames, seconds = read(tmp_path / "a.png")
    np.testing.assert_array_equal(frames, pixels[None])
    assert seconds.tolist() == [0]
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown turned by 90 degrees
    Image.fromarray(pixels).save(tmp_path / "b.png", exif=turned)
    np.testing.assert_array_equal(read(tmp_path / "b.png")[0][0], np.rot90(pixels, -1))
    (tmp_path / "c.jpg").write_text("no picture")
    with pytest.raises(VideoError, match=r"c\.jpg is not a picture"):
        read(tmp_path / "c.jpg")


def test_folder_is_a_video_in_the_order_of_its_numbers(folder: Path) -> None:
    frames, seconds = read(folder)
    np.testing.assert_array_equal(frames, clips.pattern(5))
    np.testing.assert_allclose(seconds, np.arange(5) / 25)
    (folder / "rate.txt").write_text("12.5\n")
    with open_video(folder) as video:
        assert video.rate == 12.5
        np.testing.assert_allclose(video.timestamps, np.arange(5) / 12.5)
        np.testing.assert_array_equal(video.read([4, 0, 4]), clips.pattern(5)[[4, 0, 4]])
        assert video.read([1], short_side=48).shape == (1, 48, 64, 3)


def test_missing_numbers_are_named(folder: Path) -> None:
    (folder / "img_2_9.png").unlink()
    (folder / "img_2_11.png").unlink()
    with pytest.raises(VideoError, match="clip lacks the frames 9, 11 of 8 to 12; extract"):
        read(folder)
    Image.fromarray(clips.pattern(1)[0]).save(folder / "img_2_20.png")
    with pytest.raises(VideoError, match="9, 11, 13, 14, 15 and 4 more of 8 to 20"):
        read(folder)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cover.png", "no number in its name"),
        ("other_2_012.png", "have the same number"),
        ("img_2_13.png", "128 x 97 pixels, an earlier frame 128 x 96"),
        ("img_2_13.jpg", "is not a picture"),
    ],
)
def test_what_does_not_belong_there(folder: Path, name: str, words: str) -> None:
    Image.fromarray(clips.pattern(1, 97, 128)[0]).save(folder / name)
    if "not a picture" in words:
        (folder / name).write_bytes(b"")
    with pytest.raises(VideoError, match=words):
        read(folder)


@pytest.mark.parametrize("text", ["fast", "0", "-3", "nan", "inf"])
def test_a_rate_that_is_none(folder: Path, text: str) -> None:
    (folder / "rate.txt").write_text(text)
    with pytest.raises(VideoError, match=r"rate\.txt"):
        read(folder)


def test_real_folders(shared: Path) -> None:
    folders = [path for path in (shared / "data/frames_demo").rglob("*") if path.is_dir()]
    read_ones = [folder for folder in folders if any(folder.glob("*.jpg"))]
    assert len(read_ones) >= 4
    for folder in read_ones:
        with open_video(folder) as video:
            assert len(video.timestamps) == len(list(folder.glob("*.jpg")))
            assert video.read([0, len(video.timestamps) - 1]).shape[0] == 2
