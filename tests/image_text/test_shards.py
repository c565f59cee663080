"""Tar shards: what is found, what is refused, and that every sample is accounted for."""

import io
import pickle
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from videoclip.errors import VideoclipError
from videoclip.image_text.shards import find_shards, index, write_shards


def jpeg(color: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 20), (color, 0, 0)).save(file, "JPEG")
    return file.getvalue()


def tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def test_shards_of_a_folder_a_pattern_and_a_glob(tmp_path) -> None:
    paths = [tar(tmp_path / f"s-{n:02d}.tar", []) for n in range(9, 12)]
    assert find_shards(str(tmp_path)) == paths
    assert find_shards(str(tmp_path / "s-{09..11}.tar")) == paths
    assert find_shards(str(tmp_path / "s-*.tar")) == paths
    assert find_shards(str(paths[0])) == paths[:1]
    with pytest.raises(VideoclipError, match=r"1 of 4 shards are missing: .*s-12.tar"):
        find_shards(str(tmp_path / "s-{09..12}.tar"))


@pytest.mark.parametrize("source", ["pipe:cat x.tar", "http://host/x.tar", " pipe:rm x"])
def test_commands_and_addresses_are_refused(source) -> None:
    with pytest.raises(VideoclipError, match=r"is refused: shards are read from files alone"):
        find_shards(source)


def test_a_packed_shard_is_refused(tmp_path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"x")
    with pytest.raises(VideoclipError, match=r"is not a plain .tar; unpack it first"):
        find_shards(str(tmp_path / "a.tar.gz"))


def test_offsets_lead_to_the_members(tmp_path) -> None:
    members = [
        ("a/1.jpg", jpeg(1)), ("a/1.txt", b"one"), ("a/1.json", b"{}"),
        ("b/1.txt", b"other folder"), ("b/1.v2.PNG", b""), ("b/1.JPEG", jpeg(2)),
    ]  # fmt: skip
    found = index([tar(tmp_path / "s.tar", members)])
    assert found.names.to_pylist() == ["s.tar/a/1", "s.tar/b/1"]
    content = (tmp_path / "s.tar").read_bytes()
    for row, (picture, caption) in enumerate([(jpeg(1), b"one"), (jpeg(2), b"other folder")]):
        for (offset, size), wanted in ((found.image[row], picture), (found.caption[row], caption)):
            assert content[offset : offset + size] == wanted
    assert not found.is_json.any()
    assert found.bad == {}
    assert "1 .v2.png" in found.notes[0]


def test_bad_samples_are_named(tmp_path) -> None:
    members = [
        ("ok.jpg", jpeg()), ("ok.txt", b"fine"), ("alone.jpg", jpeg()), ("mute.txt", b"no picture"),
        ("twice.jpg", jpeg()), ("twice.jpg", jpeg()), ("twice.txt", b"x"),
        ("back.jpg", jpeg()), ("back.txt", b"x"), ("evil.pkl", pickle.dumps(print)),
        ("evil.jpg", jpeg()), ("back.json", b"{}"),
    ]  # fmt: skip
    path = tar(tmp_path / "s.tar", members)
    with tarfile.open(path, "a") as file:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    found = index([path])
    assert found.names.to_pylist() == ["s.tar/ok"]
    assert found.bad == {
        "s.tar/alone": "it has no caption",
        "s.tar/mute": "it has no picture",
        "s.tar/twice": "it has two members .jpg",
        "s.tar/back": "its name stands in two places of the shard",
        "s.tar/evil": "it has no caption",
    }
    assert "1 .pkl, 1 link or device" in found.notes[0]


def test_a_shard_cut_off_anywhere_keeps_what_is_whole(tmp_path) -> None:
    members = [(f"{n}.{end}", c) for n in range(4) for end, c in (("jpg", jpeg()), ("txt", b"x"))]
    whole = tar(tmp_path / "whole.tar", members).read_bytes()
    complete = index([tmp_path / "whole.tar"])
    assert len(complete.names) == 4
    assert complete.notes == []
    cut = tmp_path / "cut.tar"
    end_of_last = int(complete.caption[-1].sum())
    end_of_first = int(complete.caption[0].sum())
    for size in range(end_of_first, end_of_last + 512, 97):
        cut.write_bytes(whole[:size])
        found = index([cut])
        inside = sum(int(place.sum()) <= size for place in complete.caption)
        assert len(found.names) == inside, size
        assert "cut off" in found.notes[0], size
        assert all("cut off" in reason for reason in found.bad.values())
    cut.write_bytes(b"no tar at all" * 100)
    with pytest.raises(VideoclipError, match=r"hold no usable sample.*cut off or damaged"):
        index([cut])


def test_what_is_written_is_found(tmp_path) -> None:
    (tmp_path / "p.jpg").write_bytes(jpeg())
    samples = [(f"{n:03d}", tmp_path / "p.jpg", f"caption {n}") for n in range(5)]
    paths = write_shards(samples, tmp_path / "out", per_shard=2)
    assert [path.name for path in paths] == [f"shards-00{n}.tar" for n in range(3)]
    assert len(index(paths).names) == 5
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [p.name for p in paths]
