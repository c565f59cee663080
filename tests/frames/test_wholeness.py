"""A file that is shorter than it says is known without decoding anything."""

import shutil
from pathlib import Path

import pytest
from clips import cut, pattern, write_video

from videoclip.frames.wholeness import beginning, has_index, promised


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.avi", "a.mkv", "a.webm"])
def test_containers_tell_their_size(name: str, tmp_path: Path) -> None:
    codec = {"a.avi": "mpeg4", "a.webm": "libvpx-vp9"}.get(name, "libx264")
    # The index first, so that it is there when the end is not.
    first = {"movflags": "+faststart"} if name in ("a.mp4", "a.mov") else {}
    path = write_video(tmp_path / name, pattern(20), codec=codec, container_options=first)
    size = path.stat().st_size
    assert promised(path) is None
    for share in (0.99, 0.5):
        cut(path, share)
        assert promised(path) == size
    cut(path, 0.01)
    promised(path)  # whatever is left


def test_what_says_nothing_is_not_guessed(tmp_path: Path) -> None:
    live = {"live": "1"}
    path = write_video(tmp_path / "a.mkv", pattern(20), container_options=live)
    assert promised(cut(path, 0.5)) is None
    path = write_video(tmp_path / "a.ts", pattern(20))
    assert promised(cut(path, 0.5)) is None


def test_the_last_page_of_an_ogg_file_must_be_whole(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.ogv", pattern(40, 200, 200), codec="libvpx")
    whole = path.read_bytes()
    assert promised(path) is None
    assert promised(Path(shutil.copy(path, tmp_path / "a.mkv"))) is None
    for length in (len(whole) - 1, len(whole) // 2, len(whole) // 3, 40, 20):
        path.write_bytes(whole[:length])
        assert length < promised(path) <= len(whole)
    page = whole.rindex(b"OggS")
    for end in (b"", b"noise", bytes(50)):  # it does not say how many pages it has
        path.write_bytes(whole[:page] + end)
        assert promised(path) is None


def test_the_index_of_an_mp4(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", pattern(20))
    assert has_index(path)
    assert not has_index(cut(path, 0.3))


def test_text_is_quoted_and_bytes_are_not(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("<html>\n")
    assert beginning(path) == r"; it begins with '<html>\n'"
    path.write_bytes(b"\x00\x01\xff")
    assert beginning(path) == ""
