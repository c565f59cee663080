"""A scheduler's signal at any moment leaves a state from which the run goes on to the bit.

`MOMENTS=20 pytest tests/training/test_signals.py` sends it at 20 moments.
"""

import os
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_loop import EPOCHS, PER_EPOCH, endless, same, train

from videoclip.errors import Preempted, VideoclipError
from videoclip.training.logbook import read_metrics
from videoclip.training.snapshots import fault, newest
from videoclip.training.states import STATES

MOMENTS = int(os.environ.get("MOMENTS", "4"))
ENDED, REFUSED = 75, 3


def child(folder: Path, **run: object) -> int:
    """Starts a run in a process of its own, whose batches take a while."""
    number = os.fork()
    if number:
        return number
    torch.set_num_threads(1)
    try:
        train(folder, dict.fromkeys(range(1, EPOCHS * PER_EPOCH + 1), slow), **run)
    except Preempted:
        os._exit(ENDED)
    finally:
        os._exit(1)


def slow(batch):
    time.sleep(0.02)
    return batch


def wait_for_lines(folder: Path, count: int) -> None:
    while len(read_metrics(folder)) < count:
        time.sleep(0.002)


def test_at_any_moment(tmp_path) -> None:
    whole = train(tmp_path / "whole")
    random = np.random.default_rng(0)
    for number in range(MOMENTS):
        folder = tmp_path / str(number)
        run = child(folder)
        lines = int(random.integers(1, EPOCHS * PER_EPOCH))
        wait_for_lines(folder, lines)
        time.sleep(random.uniform(0, 0.03))
        before = len(read_metrics(folder))
        os.kill(run, signal.SIGTERM if number % 2 else signal.SIGUSR1)
        _, ended = os.waitpid(run, 0)
        assert os.waitstatus_to_exitcode(ended) == ENDED
        found = newest(folder / STATES)
        done = int(found.name.removeprefix("step-"))
        assert before - 1 <= done <= before + 1, "within a step of the signal"
        assert same(train(folder), whole), f"moment {number}, after step {done}"


def test_a_disk_that_is_full_leaves_the_state_of_before(tmp_path, capfd) -> None:
    """No file may grow beyond some bytes, which is what a full disk says to who writes one."""
    with pytest.raises(VideoclipError, match="memory ran out"):
        train(tmp_path, {3: endless})
    before = newest(tmp_path / STATES)
    size = (before / "state.pt").stat().st_size
    for limit in (size // 2, 2000):  # in the middle of the state, and of the first file
        run = os.fork()
        if not run:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                train(tmp_path, save_minutes=0)
            except VideoclipError as error:
                os.write(2, str(error).encode())
                os._exit(REFUSED)
            finally:
                os._exit(1)
        _, ended = os.waitpid(run, 0)
        said = capfd.readouterr().err
        assert os.waitstatus_to_exitcode(ended) == REFUSED, said
        assert "the state after step" in said
        assert f"cannot be saved in {tmp_path / STATES}" in said
        assert "File too large; make room and run the same command again" in said
        assert newest(tmp_path / STATES) == before
        assert fault(before) is None
        assert [path.name for path in (tmp_path / STATES).glob("*.part")] == []
