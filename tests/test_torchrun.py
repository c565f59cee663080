"""`torchrun -m videoclip pretrain`: the result of one process, also after a stop and a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pictures_on_disk import class_folders

import videoclip
from videoclip.image_text.pretrain import BAD, MODEL, RESULTS
from videoclip.training.logbook import read_metrics
from videoclip.training.states import STATES

ROOT = Path(__file__).resolve().parents[1]
SIZES = [
    "--model.visual.width", "64", "--model.visual.layers", "1", "--model.visual.patch-size", "8",
    "--model.visual.image-size", "16", "--model.text.width", "32", "--model.text.layers", "1",
    "--model.text.context-length", "12", "--model.embedding", "32",
]  # fmt: skip
OPTIM = ["--batch-size", "4", "--tower-rate", "1e-3", "--precision", "fp32", "--run.log-every", "1"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """A table of twelve pictures, one of which cannot be read: batches of 4, 4 and 3."""
    folder = class_folders(tmp_path_factory.mktemp("pictures") / "colors")
    (folder / "red" / "3.png").write_bytes(b"no picture")
    lines = [
        f"{path.relative_to(folder)},a picture of {path.parent.name}"
        for path in sorted(folder.glob("*/*.png"))
    ]
    (folder / "pairs.csv").write_text("\n".join(["filepath,caption", *lines]) + "\n")
    return folder / "pairs.csv"


def start(
    pairs: Path, output: Path, *more: object, processes: int = 2, restarts: int = 0
) -> subprocess.Popen:
    """A run of so many processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    launcher += ["--max-restarts", str(restarts)]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "videoclip", "pretrain"]
    command += ["--data", str(pairs), "--output", str(output), *SIZES, *OPTIM, *map(str, more)]
    hidden = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    hidden["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # see docs/training.md
    return subprocess.Popen(
        command, env=os.environ | hidden, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finished(run: subprocess.Popen) -> str:
    said, _ = run.communicate()
    assert run.returncode == 0, said
    return said


def assert_near(found: Path, expected: Path) -> None:
    mine, theirs = (videoclip.load(folder / MODEL).state_dict() for folder in (found, expected))
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, atol=1e-5, rtol=1e-5, msg=name)


def wait_for_steps(run: subprocess.Popen, output: Path, count: int) -> None:
    while run.poll() is None and len(read_metrics(output)) < count:
        time.sleep(0.01)
    assert run.poll() is None, run.stdout.read()


@pytest.fixture(scope="module")
def straight(pairs: Path, tmp_path_factory) -> Path:
    """The run of one process."""
    output = tmp_path_factory.mktemp("straight") / "run"
    finished(start(pairs, output, "--epochs", 12, processes=1))
    return output


def children(run: subprocess.Popen) -> list[int]:
    """The processes of a launcher."""
    return [int(n) for n in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]


def test_two_processes_are_one_also_after_a_stop(
    pairs: Path, straight: Path, tmp_path: Path
) -> None:
    """One of them is told to stop, as a scheduler does it, and both save and end."""
    output = tmp_path / "run"
    run = start(pairs, output, "--epochs", 12, "--chunk-size", 1)
    wait_for_steps(run, output, 4)
    os.kill(children(run)[-1], signal.SIGUSR1)
    said, _ = run.communicate()
    assert run.returncode != 0
    assert "exitcode  : 75" in said
    assert said.count("the same command goes on from there") == 1
    assert (output / STATES).is_dir()
    assert not (output / RESULTS).exists()
    said = finished(start(pairs, output, "--epochs", 12, "--chunk-size", 1))
    assert said.count("going on after step") == 1
    assert said.count("pairs: found 12 = trained 11 + bad 1") == 1
    assert_near(output, straight)
    assert (output / BAD).read_text() == (straight / BAD).read_text()
    for mine, theirs in zip(read_metrics(output), read_metrics(straight), strict=True):
        assert mine["step"] == theirs["step"]
        assert mine["samples"] == theirs["samples"]
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
    counts = json.loads((output / RESULTS).read_text())["counts"]
    assert counts == {"found": 12, "trained": 11, "bad": 1}


def test_a_dead_process_ends_the_others(pairs: Path, straight: Path, tmp_path: Path) -> None:
    """And what was saved before is where one process goes on."""
    output = tmp_path / "run"
    run = start(pairs, output, "--epochs", 12, "--run.save-minutes", 0)
    wait_for_steps(run, output, 4)
    os.kill(children(run)[-1], signal.SIGKILL)
    said, _ = run.communicate()
    assert run.returncode != 0
    assert "SIGKILL" in said
    assert not (output / RESULTS).exists()
    said = finished(start(pairs, output, "--epochs", 12, processes=1))
    assert "going on after step" in said
    assert_near(output, straight)


def test_a_launcher_that_starts_them_again_goes_on(
    pairs: Path, straight: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    run = start(pairs, output, "--epochs", 12, "--run.save-minutes", 0, restarts=1)
    wait_for_steps(run, output, 4)
    os.kill(children(run)[-1], signal.SIGKILL)
    assert finished(run).count("going on after step") == 1
    assert_near(output, straight)
    assert [line["step"] for line in read_metrics(output)] == list(range(1, 37))


def test_an_error_is_told_once(pairs: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing.csv"
    run = start(missing, tmp_path / "run", "--epochs", 12)
    said, _ = run.communicate()
    assert run.returncode != 0
    assert said.count("missing.csv does not exist; check --data.source") == 1
