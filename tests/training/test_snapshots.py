"""Snapshots: whatever a kill, a damaged disk or a full one leaves behind, a whole state loads."""

import errno
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from videoclip.errors import VideoclipError
from videoclip.training import snapshots
from videoclip.training.snapshots import LATEST, newest, save


def keep(folder: Path, step: int, content: str = "", **more: int) -> Path:
    """A snapshot with one file in a folder of its own."""

    def write(inside: Path) -> None:
        (inside / "model").mkdir()
        (inside / "model" / "weights").write_text(content or f"weights of step {step}")

    return save(folder, step, write, **more)


def step_of(folder: Path) -> int:
    found = newest(folder)
    step = int(found.name.removeprefix("step-"))
    assert (found / "model" / "weights").read_text() == f"weights of step {step}"
    return step


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_snapshots_come_back_and_the_last_ones_are_kept(tmp_path) -> None:
    assert newest(tmp_path / "none") is None
    for step in (8, 9, 10):
        keep(tmp_path, step)
    assert step_of(tmp_path) == 10
    assert names(tmp_path) == [LATEST, "step-000000009", "step-000000010"]
    assert (tmp_path / LATEST).read_text() == "step-000000010\n"
    keep(tmp_path, 11, keep_last=3)
    assert len(names(tmp_path)) == 4
    keep(tmp_path, 12, keep_last=1)
    assert names(tmp_path) == [LATEST, "step-000000012"]


def test_a_whole_snapshot_is_never_taken_away_for_the_same_step(tmp_path) -> None:
    """A kill between the two would leave none."""
    keep(tmp_path, 10)
    keep(tmp_path, 10, "others")
    assert step_of(tmp_path) == 10
    (tmp_path / "step-000000010" / "model" / "weights").write_text("damaged")
    keep(tmp_path, 10)
    assert step_of(tmp_path) == 10


def test_what_was_passed_over_does_not_count_as_kept(tmp_path, capsys) -> None:
    """Else the damaged one would stay, and the one that is written now would go."""
    for step in (10, 20):
        keep(tmp_path, step)
    (tmp_path / "step-000000020" / "model" / "weights").unlink()
    assert step_of(tmp_path) == 10
    assert "step-000000020 is passed over: model/weights is missing" in capsys.readouterr().err
    keep(tmp_path, 12)
    assert names(tmp_path) == [LATEST, "step-000000010", "step-000000012"]


def test_every_damage_is_seen_and_the_one_before_is_taken(tmp_path, capsys) -> None:
    keep(tmp_path, 1)
    whole = keep(tmp_path, 2)
    kept = tmp_path.parent / "kept"
    shutil.copytree(whole, kept)
    size = (whole / "model" / "weights").stat().st_size

    def damage(act) -> None:
        shutil.rmtree(whole)
        shutil.copytree(kept, whole)
        act(whole)
        assert step_of(tmp_path) == 1

    for length in (0, 1, size // 2, size - 1):
        damage(lambda path, n=length: os.truncate(path / "model" / "weights", n))
    for place in range(size):

        def flip(path: Path, place: int = place) -> None:
            content = bytearray((path / "model" / "weights").read_bytes())
            content[place] ^= 1
            (path / "model" / "weights").write_bytes(content)

        damage(flip)
        assert "weights has other bytes than were written" in capsys.readouterr().err
    damage(lambda path: (path / "model" / "weights").unlink())
    damage(lambda path: (path / "manifest.json").unlink())
    damage(lambda path: (path / "manifest.json").write_text("{"))
    shutil.rmtree(whole)
    assert step_of(tmp_path) == 1
    assert "step-000000002, the latest state, is gone" in capsys.readouterr().err


def test_where_all_are_damaged_nothing_starts_anew_in_silence(tmp_path) -> None:
    (keep(tmp_path, 1) / "model" / "weights").unlink()
    with pytest.raises(VideoclipError, match=r"none of the states .* is whole; .*resume never"):
        newest(tmp_path)


@pytest.mark.parametrize("refused", ["write", "sync", "rename"])
def test_a_full_disk_is_one_message_and_the_old_state_stays(tmp_path, monkeypatch, refused) -> None:
    keep(tmp_path, 1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if refused == "sync":
        monkeypatch.setattr(snapshots, "_sync", full)
    if refused == "rename":
        monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(VideoclipError, match=r"after step 2 cannot be saved in .*No space left"):
        save(tmp_path, 2, full if refused == "write" else lambda path: (path / "x").touch())
    monkeypatch.undo()
    assert step_of(tmp_path) == 1
    assert names(tmp_path) == [LATEST, "step-000000001"]


def test_a_kill_at_any_moment_leaves_a_whole_state(tmp_path) -> None:
    """A child saves without end, on a disk that is slow to write and to sync, and is killed.

    KILLS=200 kills 200 of them.
    """
    kills = int(os.environ.get("KILLS", "40"))
    moments = np.random.default_rng(0).uniform(0, 0.12, kills)
    steps = []
    for number, moment in enumerate(moments):
        first = max(steps, default=0) + 1
        child = os.fork()
        if not child:
            save_without_end(tmp_path, first)
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = newest(tmp_path)  # raises where there are some and none is whole
        if found is None:
            assert not steps, f"kill {number}: the state after step {steps[-1]} is gone"
            continue
        steps.append(int(found.name.removeprefix("step-")))
        assert steps[-1] >= first - 1
        for name in ("a", "b", "model/c"):
            assert (found / name).read_text() == f"{steps[-1]}\n" * 4
    assert len(set(steps)) > kills // 4, "hardly any was killed after its first save"


def save_without_end(folder: Path, step: int) -> None:
    """Each file in small pieces, and a pause at each sync, rename and deletion."""
    sync, rename, delete = os.fsync, os.rename, os.unlink
    os.fsync = slowly(sync)
    os.rename = slowly(rename)
    os.unlink = slowly(delete)

    def write(value: int, inside: Path) -> None:
        (inside / "model").mkdir()
        for name in ("a", "b", "model/c"):
            with (inside / name).open("w") as file:
                for _ in range(4):
                    file.write(f"{value}\n")
                    file.flush()
                    time.sleep(0.0005)

    while True:
        save(folder, step, lambda inside, step=step: write(step, inside))
        step += 1


def slowly(act: Callable) -> Callable:
    """The same, with a pause before and after."""

    def slow(*given: object, **more: object) -> object:
        time.sleep(0.001)
        found = act(*given, **more)
        time.sleep(0.001)
        return found

    return slow
