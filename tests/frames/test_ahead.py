"""Processes that read ahead: whatever becomes of them, the same is read, in the same order."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from videoclip.errors import VideoclipError
from videoclip.frames import handover
from videoclip.frames.ahead import TRIES, ReadAhead
from videoclip.frames.handover import packed, unpacked
from videoclip.types import Batch, Frames, Keys


class Numbers(NamedTuple):
    """A number and itself three times; some numbers do something to who reads them."""

    folder: Path
    deeds: Mapping[int, Callable[[], Any]] = {}
    often: int = 1
    """So often a deed is done; then the number is read."""

    def read(
        self, number: int, tell: Callable[[str], None], refused: Mapping[str, str]
    ) -> tuple[int, Tensor] | str:
        for part in ("a", "b"):
            tell(f"{number}{part}")
            if f"{number}{part}" in refused:
                return refused[f"{number}{part}"]
            if part == "b" and number in self.deeds:
                done = len(list(self.folder.glob(f"{number}-*")))
                if done < self.often:
                    (self.folder / f"{number}-{done}").touch()
                    self.deeds[number]()
        return number, torch.full((3,), number)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    time.sleep(1000)


def fail() -> None:
    raise ValueError("a mistake in a reader")


def refuse() -> None:
    raise VideoclipError("say this")


def numbers_of(read: list[tuple[int, Tensor]]) -> list[int]:
    assert all(tensor.tolist() == [number] * 3 for number, tensor in read)
    return [number for number, _ in read]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_everything_is_read_once_and_in_order_by_the_same_processes(
    tmp_path: Path, method: str
) -> None:
    workers = 2 if method == "fork" else 1  # the others import everything anew
    ahead = ReadAhead(Numbers(tmp_path), workers, context=multiprocessing.get_context(method))
    assert numbers_of(list(ahead(range(7)))) == list(range(7))
    processes = [line.process.pid for line in ahead.lines]
    assert numbers_of(list(ahead(range(5)))) == list(range(5))
    assert [line.process.pid for line in ahead.lines] == processes
    assert list(ahead(range(0))) == []
    ahead.close()
    assert numbers_of(list(ReadAhead(Numbers(tmp_path), 0)(range(4)))) == list(range(4))


@pytest.mark.parametrize(
    ("deed", "says", "method"),
    [
        (kill, "has ended with SIGKILL", "fork"),
        (hang, "has been stuck for 1 s", "fork"),
        (hang, "has been stuck for 1 s", "spawn"),
    ],
)
def test_who_dies_or_hangs_is_replaced_and_nothing_is_lost(
    tmp_path: Path, capsys, deed: Callable[[], None], says: str, method: str
) -> None:
    context = multiprocessing.get_context(method)
    deeds, workers = ({1: deed, 4: deed}, 2) if method == "fork" else ({1: deed}, 1)
    ahead = ReadAhead(Numbers(tmp_path, deeds), workers, stuck_seconds=1, context=context)
    assert numbers_of(list(ahead(range(9)))) == list(range(9))
    lines = [line for line in capsys.readouterr().err.splitlines() if "reader" in line]
    for number, line in zip(deeds, lines, strict=True):
        assert says in line
        assert f"while it read {number}b" in line
    assert not ahead.refused
    ahead.close()


def test_a_sample_that_always_kills_is_refused_and_the_rest_is_read(tmp_path: Path) -> None:
    ahead = ReadAhead(Numbers(tmp_path, {2: kill}, often=99), 2)
    read = list(ahead(range(6)))
    reason = read.pop(2)
    assert numbers_of(read) == [0, 1, 3, 4, 5]
    assert reason.startswith("3 processes were lost that read it, at last: reader 0 (process")
    assert list(ahead.refused) == ["2b"]
    assert len(list(tmp_path.iterdir())) == TRIES
    assert list(ahead([2])) == [reason], "it is not tried again"
    ahead.close()


def test_a_process_that_dies_before_it_reads_is_one_message(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda _: os._exit(7))
    with pytest.raises(VideoclipError, match="has ended with status 7, as others before it; where"):
        list(ReadAhead(Numbers(tmp_path), 1)(range(3)))


def test_twenty_kills_from_outside_lose_nothing(tmp_path: Path) -> None:
    ahead = ReadAhead(Numbers(tmp_path), 2)
    read = []
    for number, one in enumerate(ahead(range(60))):
        read.append(one)
        if number % 3 == 0:
            os.kill(ahead.lines[number % 2].process.pid, signal.SIGKILL)
    assert numbers_of(read) == list(range(60))
    ahead.close()


def test_what_a_reader_raises_is_raised(tmp_path: Path) -> None:
    ahead = ReadAhead(Numbers(tmp_path, {2: refuse, 9: fail}), 2)
    read = []
    with pytest.raises(VideoclipError, match=r"^say this$"):
        read.extend(ahead(range(6)))
    assert numbers_of(read) == [0, 1]
    with pytest.raises(RuntimeError, match="a mistake in a reader"):
        list(ahead(range(6, 12)))
    assert numbers_of(list(ahead(range(12)))) == list(range(12))
    ahead.close()


def test_what_nobody_waits_for_any_more_is_dropped(tmp_path: Path) -> None:
    ahead = ReadAhead(Numbers(tmp_path), 2)
    source = ahead(range(100))
    assert next(source)[0] == 0
    source.close()
    assert numbers_of(list(ahead(range(50, 55)))) == list(range(50, 55))
    processes = [line.process for line in ahead.lines]
    del ahead
    assert not any(process.is_alive() for process in processes)


PROGRAM = """
import os, sys, time
from pathlib import Path
from test_ahead import Numbers, hang
from videoclip.frames.ahead import ReadAhead

def train(ending):
    ahead = ReadAhead(Numbers(Path(sys.argv[2]), {8: hang}), 2)
    for number, _ in ahead(range(100)):
        if number == 5:
            print(*(line.process.pid for line in ahead.lines), flush=True)
            ending()

def error():
    raise AssertionError("an error of the training")

def kill():
    os.kill(os.getpid(), 9)

train({"error": error, "kill": kill}[sys.argv[1]])
"""


@pytest.mark.parametrize("ending", ["error", "kill"])
def test_readers_do_not_outlive_who_started_them(tmp_path: Path, ending: str) -> None:
    """They ignore signals: a program that ends with a traceback must not wait for them forever."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, ending, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": ":".join(filter(None, sys.path))},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == {"error": 1, "kill": -9}[ending]
    if ending == "error":
        assert done.stderr.splitlines()[-1] == "AssertionError: an error of the training"
    end = time.monotonic() + 20
    left = [int(pid) for pid in done.stdout.split()]
    assert len(left) == 2
    while left and time.monotonic() < end:
        left = [pid for pid in left if is_running(pid)]
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_memory_stays_flat(tmp_path: Path) -> None:
    ahead = ReadAhead(Large(), 2)
    held = []
    for number, tensor in enumerate(ahead(range(600))):
        assert tensor.max() == number % 251
        if number % 200 == 199:
            status = Path("/proc/self/status").read_text()
            held.append(int(status.partition("VmRSS:")[2].split()[0]) / 1024)
    ahead.close()
    assert held[-1] - held[0] < 30, f"MiB held by this process: {held}"


class Large:
    """A mebibyte that says its number."""

    def read(self, number: int, tell: Callable[[str], None], refused: Mapping[str, str]) -> Tensor:
        tell(str(number))
        return torch.full((1024, 1024), number % 251, dtype=torch.uint8)


def test_a_value_is_handed_over_as_it_is(monkeypatch) -> None:
    keys = Keys.of(["a", "b"], ["b"])
    frames = Frames(
        torch.arange(24, dtype=torch.uint8).reshape(1, 2, 3, 2, 2), torch.ones(1, 2) > 0
    )
    nothing = torch.zeros(0, 1, 3, 16, 16, dtype=torch.uint8)
    batch = Batch(frames, torch.arange(6).reshape(2, 3).T, keys.matches(), ("é",), keys)

    def handed_over() -> None:
        found, empty, array, text = unpacked(packed((batch, nothing, np.arange(3.0), "text")))
        assert type(found) is Batch
        assert found.names == ("é",)
        for one, two in zip(
            (*found.frames, found.ids, found.matches, *found.keys[:3], empty),
            (*frames, batch.ids, batch.matches, *keys[:3], nothing),
            strict=True,
        ):
            assert one.dtype == two.dtype
            assert torch.equal(one, two)
        found.frames.pixels.add_(1)  # it belongs to who has it
        assert array.tolist() == [0.0, 1.0, 2.0]
        assert text == "text"

    handed_over()
    monkeypatch.delattr(os, "memfd_create")
    handed_over()


def test_tensors_are_pinned_where_they_are(monkeypatch) -> None:
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self + 1)
    frames = Frames(torch.zeros(1), torch.zeros(1))
    found = handover.pinned((frames, "text", torch.ones(1)))
    assert found == ((torch.ones(1), torch.ones(1)), "text", torch.full((1,), 2))
    assert type(found[0]) is Frames
