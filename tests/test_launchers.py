"""The launchers in scripts/, run as they are: every way to start ends with the same weights."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import clips as files
import pytest
import torch
from models import build
from processes import free_port

from videoclip.checkpoints.weights import load
from videoclip.manifest import Clip, write_manifest
from videoclip.towers import Text
from videoclip.training.logbook import read_metrics

ROOT = Path(__file__).resolve().parents[1]
STEPS = 24
HIDDEN = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
HIDDEN |= {"PYTHON": sys.executable}


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> list[str]:
    """Of a training of twelve epochs of two batches: tiny clips, a tiny checkpoint."""
    folder = tmp_path_factory.mktemp("material")
    made = []
    for number, split in enumerate(["train"] * 7 + ["val"] * 2 + ["test"] * 2):
        path = folder / f"{number}.mp4"
        files.write_video(path, files.pattern(4 + number, width=32, height=32))
        made.append(Clip(f"v{number}", path, (f"clip number {number}",), split=split))
    write_manifest(folder / "clips.jsonl", made)
    text = Text(width=32, layers=1, context_length=32)
    build(text=text).save_pretrained(folder / "start")
    given = {
        "data": folder / "clips.jsonl", "checkpoint": folder / "start", "frames": 4,
        "finetune.epochs": STEPS // 2, "finetune.batch-size": 4, "finetune.precision": "fp32",
        "finetune.ema": 0.8, "data.takes": 1, "data.workers": 0, "run.log-every": 1,
    }  # fmt: skip
    return ["moving_shapes.mean", *(w for k, v in given.items() for w in (f"--{k}", str(v)))]


def start(
    script: str, options: list[str], output: Path, *more: str, **environment: object
) -> subprocess.Popen:
    """A launcher at work."""
    words = [*options, "--output", str(output), *more]
    return start_command(["bash", f"{ROOT}/scripts/{script}.sh", *words], output, **environment)


def start_command(words: list[str], output: Path, **environment: object) -> subprocess.Popen:
    """A command at work; what it says goes into one file beside the run folder."""
    with (output.parent / "said").open("a") as said:
        return subprocess.Popen(
            words, env=os.environ | HIDDEN | {k: str(v) for k, v in environment.items()},
            stdout=said, stderr=said, cwd=output.parent, start_new_session=True,
        )  # fmt: skip


def finish(output: Path, *processes: subprocess.Popen) -> None:
    for process in processes:
        process.wait(timeout=300)
    said = (output.parent / "said").read_text()
    assert [process.returncode for process in processes] == [0] * len(processes), said[-6000:]


def weights(output: Path) -> dict[str, torch.Tensor]:
    [[model]] = json.loads((output / "results.json").read_text())["models"].values()
    return load(output / model).state_dict()


def assert_same(output: Path, plain: Path) -> None:
    found = weights(output)
    for name, value in weights(plain).items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-5, msg=name)
    steps = [[line["step"] for line in read_metrics(logs(run))] for run in (output, plain)]
    assert steps[0] == steps[1]


def logs(output: Path) -> Path:
    [cell] = output.glob("cells/*")
    return cell


def wait_for_steps(process: subprocess.Popen, output: Path, count: int) -> None:
    """Until so many lines of numbers stand in the log."""
    until = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < until:
        if len([line for at in output.glob("cells/*") for line in read_metrics(at)]) >= count:
            return
        time.sleep(0.01)
    raise AssertionError((output.parent / "said").read_text()[-6000:])


def workers(of: int) -> list[int]:
    """The processes that a process has started."""
    return [int(pid) for pid in Path(f"/proc/{of}/task/{of}/children").read_text().split()]


@pytest.fixture(scope="module")
def plain(options, tmp_path_factory) -> Path:
    """The run of one process."""
    output = tmp_path_factory.mktemp("one") / "run"
    finish(output, start("train_one_gpu", options, output))
    return output


@pytest.mark.parametrize("name", ["one_gpu", "eight_gpus", "nodes", "slurm"])
def test_a_launcher_tells_how_it_is_used(name: str) -> None:
    path = ROOT / f"scripts/train_{name}.sh"
    assert subprocess.run(["bash", "-n", path]).returncode == 0
    assert os.access(path, os.X_OK)
    told = subprocess.run(["bash", path, "-h"], capture_output=True, text=True, check=True).stdout
    assert f"scripts/train_{name}.sh RECIPE.ROW" in told
    assert "SBATCH" not in told
    nothing = subprocess.run(["bash", path], capture_output=True, text=True)
    assert (nothing.returncode, nothing.stdout) == (1, told)


def test_after_a_process_has_died_all_go_on_from_what_was_saved(options, plain, tmp_path) -> None:
    output = tmp_path / "run"
    run = start("train_eight_gpus", options, output, "--run.save-minutes", "0", GPUS=2, RESTARTS=2)
    wait_for_steps(run, output, 8)
    os.kill(workers(run.pid)[-1], signal.SIGKILL)
    finish(output, run)
    said = (output.parent / "said").read_text()
    assert "SIGKILL" in said or "-9" in said
    assert said.count("going on after step") == 1
    assert_same(output, plain)


def test_two_machines_meet(options, plain, tmp_path) -> None:
    output, port = tmp_path / "run", free_port()
    finish(output, *(
        start("train_nodes", options, output, NODES=2, GPUS=1, HOST="127.0.0.1", PORT=port)
        for _ in range(2)
    ))  # fmt: skip
    assert_same(output, plain)


def test_two_machines_meet_under_deepspeed(options, plain, tmp_path) -> None:
    output, port, hosts = tmp_path / "run", free_port(), tmp_path / "hosts"
    hosts.write_text("localhost slots=1\n127.0.0.1 slots=1\n")
    finish(output, *(
        start(
            "train_nodes", options, output, "--run.engine", "deepspeed",
            HOSTFILE=hosts, HOST="127.0.0.1", NODE=node, PORT=port,
        )
        for node in range(2)
    ))  # fmt: skip
    assert_same(output, plain)


def test_deepspeeds_own_launcher_needs_no_script(options, plain, tmp_path) -> None:
    """It gives every process its number as an argument, too."""
    output = tmp_path / "run"
    words = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2"]
    words += ["--master_port", str(free_port()), "--module", "videoclip", "train", *options]
    words += ["--output", str(output), "--run.engine", "deepspeed", "--run.zero", "2"]
    finish(output, start_command(words, output, PYTHONPATH=ROOT))
    assert_same(output, plain)


SRUN = """#!/usr/bin/env bash
# SLURM's own starts a process for each task and passes signals on to them.
shift # --kill-on-bad-exit=1
for task in $(seq 0 $((SLURM_NTASKS - 1))); do
  SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
done
status=0
for task in $(jobs -p); do wait "$task" || status=$?; done
exit $status
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1 $2" = "show hostnames" ]; then echo 127.0.0.1; else echo "$@" >> requeued; fi
"""


def test_slurm_queues_again_what_has_to_end_and_may_give_it_other_machines(
    options, plain, tmp_path
) -> None:
    """Two processes begin, four go on, one ends; each time SLURM sends its signal to the tasks."""
    output, commands = tmp_path / "run", tmp_path / "commands"
    commands.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    for stop, tasks in ((5, 2), (12, 4), (None, 1)):
        run = start(
            "train_slurm", options, output, SLURM_SUBMIT_DIR=ROOT, SLURM_NTASKS=tasks,
            SLURM_JOB_ID=os.getpid(), SLURM_JOB_NODELIST="here",
            PATH=f"{commands}:{os.environ['PATH']}",
        )  # fmt: skip
        if stop:
            wait_for_steps(run, output, stop)
            [srun] = workers(run.pid)
            for task in workers(srun):
                os.kill(task, signal.SIGUSR1)
            finish(output, run)
            assert not (output / "results.json").exists()
    finish(output, run)
    asked = (tmp_path / "requeued").read_text().splitlines()
    assert asked == [f"requeue {os.getpid()}"] * 2
    assert (output.parent / "said").read_text().count("going on after step") == 2
    assert_same(output, plain)
