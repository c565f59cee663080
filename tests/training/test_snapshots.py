"""Snapshots: whatever a kill, a damaged disk or a full one leaves behind, a whole state loads."""

import errno
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from videoclip.errors import VideoclipError
from videoclip.training import snapshots
from videoclip.training.snapshots import newest, newest_state, save, save_state


def test_states_come_back_and_the_last_two_are_kept(tmp_path) -> None:
    for step in (8, 9, 10):
        save_state(tmp_path, step, {"w": torch.full((3,), float(step)), "at": [step, "x"]})
    found = newest_state(tmp_path)
    assert found["w"].tolist() == [10.0] * 3
    assert found["at"] == [10, "x"]
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "step-000000009",
        "step-000000010",
    ]
    save_state(tmp_path, 10, {"w": torch.zeros(1)})
    assert newest_state(tmp_path)["w"].tolist() == [0.0]
    assert newest_state(tmp_path / "none") is None


def test_every_damage_is_seen_and_the_one_before_is_taken(tmp_path, capsys) -> None:
    save_state(tmp_path, 1, {"at": 1})
    whole = save_state(tmp_path, 2, {"at": 2, "w": torch.arange(50)})
    kept = tmp_path.parent / "kept"
    shutil.copytree(whole, kept)
    size = (whole / "state.pt").stat().st_size

    def damage(act) -> None:
        shutil.rmtree(whole)
        shutil.copytree(kept, whole)
        act(whole)
        assert newest_state(tmp_path)["at"] == 1

    for length in (0, 1, size // 2, size - 1):
        damage(lambda path, n=length: os.truncate(path / "state.pt", n))
    for place in np.random.default_rng(0).integers(0, size, 10).tolist():

        def flip(path: Path, place: int = place) -> None:
            content = bytearray((path / "state.pt").read_bytes())
            content[place] ^= 1
            (path / "state.pt").write_bytes(content)

        damage(flip)
        assert "state.pt has other bytes than were written" in capsys.readouterr().out
    damage(lambda path: (path / "state.pt").unlink())
    damage(lambda path: (path / "manifest.json").unlink())
    damage(lambda path: (path / "manifest.json").write_text("{"))


@pytest.mark.parametrize("refused", ["write", "sync", "rename"])
def test_a_full_disk_is_one_message_and_the_old_state_stays(tmp_path, monkeypatch, refused) -> None:
    save_state(tmp_path, 1, {"at": 1})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if refused == "sync":
        monkeypatch.setattr(snapshots, "_sync", full)
    if refused == "rename":
        monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(VideoclipError, match=r"after step 2 cannot be saved in .*No space left"):
        save(tmp_path, 2, full if refused == "write" else lambda path: (path / "x").touch())
    monkeypatch.undo()
    assert newest_state(tmp_path)["at"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


def test_a_kill_at_any_moment_leaves_a_whole_state(tmp_path) -> None:
    """A child saves without end, each file in slow small pieces, and is killed."""

    def slow(value: int, path: Path) -> None:
        for name in ("a", "b", "c"):
            with (path / name).open("w") as file:
                for _ in range(4):
                    file.write(f"{value}\n")
                    file.flush()
                    time.sleep(0.0005)

    moments = np.random.default_rng(0).uniform(0, 0.05, 40)
    last = 0
    for number, moment in enumerate(moments):
        first = last + 1
        child = os.fork()
        if not child:
            for step in range(first, first + 1000):
                save(tmp_path, step, lambda path, step=step: slow(step, path))
            os._exit(1)
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = newest(tmp_path)
        if found is None:
            assert last == 0, f"kill {number}: the state after step {last} is gone"
            continue
        step = int(found.name.removeprefix("step-"))
        assert step >= last
        for name in ("a", "b", "c"):
            assert (found / name).read_text() == f"{step}\n" * 4
        last = step
    assert last > 10
