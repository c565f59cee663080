"""Memory that runs out, and gradients that overflow: what a step leaves behind."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from videoclip.errors import OutOfMemoryError
from videoclip.training.faults import GROWTH, LossScale, enough_memory

HUNGRY = """
import resource
import torch
from models import build
from test_engine import OPTIM, Engine, batch, everything, replace, same
from videoclip.errors import OutOfMemoryError

engine = Engine(build(), OPTIM, steps=9)
engine.train()
engine.step(batch(0))
before, large = everything(engine.state()), batch(1, size=192, frames=16)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, resource.RLIM_INFINITY))
try:
    engine.step(large)
except OutOfMemoryError as error:
    print(error)
assert same(everything(engine.state()), before)
engine.optim = replace(engine.optim, chunk_size=8, checkpointing="blocks")
assert engine.step(large).fault is None
print(engine.steps_done)
"""
"""A process whose memory is bounded to what it has and 64 MiB more."""


def test_memory_that_really_runs_out_changes_nothing() -> None:
    paths = os.pathsep.join([*sys.path, str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", HUNGRY], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert not done.returncode, done.stderr
    told, steps = done.stdout.splitlines()
    assert "memory ran out at step 2, at 192 samples of 16 frames in this process" in told
    assert "Go on with chunk_size 96 or checkpointing blocks, or both" in told
    assert steps == "2"


def test_the_scale_of_the_loss_is_grad_scalers() -> None:
    """Over good and bad steps, and long enough to grow."""
    scaler = torch.amp.GradScaler("cpu", growth_interval=GROWTH)
    weight = nn.Parameter(torch.ones(()))
    optimizer, own = torch.optim.SGD([weight], lr=0.0), LossScale()
    for step in range(2 * GROWTH + 50):
        bad = step in (0, 1, 7, GROWTH)
        weight.grad = torch.full((), math.inf if bad else 1.0)
        scaler.scale(torch.ones(()))
        scaler.step(optimizer)
        scaler.update()
        own = own.after("overflow" if bad else None)
        assert own.factor == scaler.get_scale(), step
    assert own.factor == 2.0**16 / 2**4 * 2


def too_large() -> OutOfMemoryError:
    return OutOfMemoryError("too large")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: Error code 12"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_every_way_to_run_out_of_memory_is_one_error(error: Exception) -> None:
    with pytest.raises(OutOfMemoryError, match="too large"), enough_memory(too_large):
        raise error


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), enough_memory(too_large):
        raise RuntimeError("shapes differ")
