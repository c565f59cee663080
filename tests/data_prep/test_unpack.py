"""Archives from strangers: what is in them comes out, what leads out of the folder does not."""

import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from data_prep.unpack import ArchiveError, unpack

FILES = {"a/one.mp4": b"1" * 1000, "a/b/two words.mp4": b"22", "empty.txt": b""}


def tar_of(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for info, data in members:
            info.size = info.size or len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_everything_comes_out(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    if suffix == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/", "")
            for name, data in FILES.items():
                archive.writestr(name, data)
    else:
        members = [(member("a", tarfile.DIRTYPE), b""), *((member(n), d) for n, d in FILES.items())]
        tar_of(path, members, f"w:{suffix[4:]}")
    found = unpack(path, tmp_path / "out")
    assert {str(p.relative_to(tmp_path / "out")): p.read_bytes() for p in found} == FILES
    every = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert sorted(found) == sorted(every)  # and no .part is left


HOSTILE_NAMES = [
    "/etc/x", "../x", "a/../../x", "a/./../../x", "..", "C:/x", "c:x", "..\\x", "a\\..\\..\\x",
    "//server/x", ".. /x",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_NAMES)
@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_a_name_that_leads_out_is_refused(name: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    if suffix == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("good.mp4", b"1")
            info = zipfile.ZipInfo("x")
            info.filename = name
            archive.writestr(info, b"2")
    else:
        tar_of(path, [(member("good.mp4"), b"1"), (member(name), b"2")])
    before = sorted(tmp_path.parent.iterdir())
    with pytest.raises(ArchiveError, match=r"leads out of the folder; nothing was unpacked"):
        unpack(path, tmp_path / "deep" / "out")
    assert not (tmp_path / "deep").exists()
    assert sorted(tmp_path.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("kind", "link"),
    [
        (tarfile.SYMTYPE, "/etc"), (tarfile.SYMTYPE, "../.."), (tarfile.SYMTYPE, "good.mp4"),
        (tarfile.LNKTYPE, "good.mp4"), (tarfile.LNKTYPE, "/etc/passwd"), (tarfile.CHRTYPE, ""),
        (tarfile.BLKTYPE, ""), (tarfile.FIFOTYPE, ""),
    ],
)  # fmt: skip
def test_links_and_devices_are_refused(kind: bytes, link: str, tmp_path: Path) -> None:
    members = [(member("good.mp4"), b"1"), (member("x", kind, link), b"")]
    path = tar_of(tmp_path / "x.tar", [*members, (member("x/passwd"), b"2")])
    with pytest.raises(ArchiveError, match=r"'x' is .*nothing was unpacked"):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    info = zipfile.ZipInfo("x")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(ArchiveError, match="'x' is a link"):
        unpack(path, tmp_path / "out")


def test_bombs_are_refused_before_they_go_off(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(300 << 20))
    with pytest.raises(ArchiveError, match=r"unpack to 314,572,800 or more in 1 files"):
        unpack(tmp_path / "x.zip", tmp_path / "out")
    huge = member("huge")
    huge.size = 1 << 45
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.addfile(huge)
    with pytest.raises(ArchiveError, match=r"unpack to 35,184,372,088,832 or more"):
        unpack(tmp_path / "x.tar", tmp_path / "out")
    small = tar_of(tmp_path / "y.tar", [(member("a"), b"1" * 100)])
    with pytest.raises(ArchiveError, match="which is no archive of videos"):
        unpack(small, tmp_path / "out", largest=99)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "names",
    [
        ["a", "a"], ["A.mp4", "a.mp4"], ["a", "a/b"], ["a/b", "a"], ["A", "a/b"],
        ["caf\u00e9", "cafe\u0301"], ["stra\u00dfe", "STRASSE"], ["a.part", "a"],
    ],
)  # fmt: skip
def test_members_that_overwrite_each_other_are_refused(names: list[str], tmp_path: Path) -> None:
    path = tar_of(tmp_path / "x.tar", [(member(name), b"1") for name in names])
    with pytest.raises(ArchiveError, match=r"stands there twice|lies in a file|with \.part, too"):
        unpack(path, tmp_path / "out")


def test_a_link_that_waits_in_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "elsewhere")
    path = tar_of(tmp_path / "x.tar", [(member("a/one"), b"1")])
    with pytest.raises(ArchiveError, match="a is a link and may lead out"):
        unpack(path, tmp_path / "out")
    (tmp_path / "out" / "a").unlink()
    (tmp_path / "secret").write_text("mine")
    (tmp_path / "out" / "a").mkdir()
    (tmp_path / "out" / "a" / "one").symlink_to(tmp_path / "secret")
    (tmp_path / "out" / "a" / "one.part").symlink_to(tmp_path / "secret")
    unpack(path, tmp_path / "out")
    assert (tmp_path / "secret").read_text() == "mine"
    assert (tmp_path / "out" / "a" / "one").read_bytes() == b"1"


def test_what_is_there_is_kept_and_the_rest_is_done(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "x.tar", [(member(name), data) for name, data in FILES.items()])
    unpack(path, tmp_path / "out")
    kept = tmp_path / "out" / "a" / "one.mp4"
    os.utime(kept, ns=(1, 1))
    (tmp_path / "out" / "a" / "b" / "two words.mp4").write_bytes(b"2")  # cut short
    unpack(path, tmp_path / "out")
    assert kept.stat().st_mtime_ns == 1
    assert (tmp_path / "out" / "a" / "b" / "two words.mp4").read_bytes() == b"22"


@pytest.mark.parametrize("cut", [20, 600, 1400])
def test_damaged_archives_are_explained(cut: int, tmp_path: Path) -> None:
    path = tar_of(tmp_path / "x.tar", [(member(name), data) for name, data in FILES.items()])
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ArchiveError, match="damaged"):
        unpack(path, tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a", b"1" * 5000)
    data = bytearray((tmp_path / "x.zip").read_bytes())
    data[100 + cut] ^= 255
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(ArchiveError, match="damaged"):
        unpack(tmp_path / "x.zip", tmp_path / "zip")
    assert not (tmp_path / "zip" / "a").exists()


def test_what_is_no_archive_is_explained(tmp_path: Path) -> None:
    (tmp_path / "x.rar").write_bytes(b"Rar!\x1a\x07\x00" + bytes(100))
    with pytest.raises(ArchiveError, match="unrar x"):
        unpack(tmp_path / "x.rar", tmp_path / "out")
    with pytest.raises(ArchiveError, match="there is no archive"):
        unpack(tmp_path / "none.zip", tmp_path / "out")
