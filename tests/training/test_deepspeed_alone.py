"""DeepSpeed in a process that no launcher has started, and where its memory runs out."""

import os
import subprocess
import sys
from pathlib import Path

from videoclip.__main__ import HELP, main

ALONE = """
import warnings
warnings.filterwarnings("ignore", module="deepspeed")
warnings.filterwarnings("ignore", category=FutureWarning)
import torch
from models import build
from test_engine import OPTIM, batch, everything, same
from videoclip.errors import OutOfMemoryError
from videoclip.experiment import Run
from videoclip.training.engines import engine_of

def fail(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

class Fails(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        fail()

plain = engine_of(build(head="transformer"), OPTIM, Run(), steps=9)
plain.train()
plain.step(batch(0))
for zero in range(4):
    for hook in (fail, lambda module, inside, outside: Fails.apply(outside)):
        model = build(head="transformer")
        engine = engine_of(model, OPTIM, Run(engine="deepspeed", zero=zero), steps=9)
        engine.train()
        engine.step(batch(0))
        before = everything(engine.state())
        engine.model.clip.visual.transformer.resblocks[0].register_forward_hook(hook)
        try:
            engine.step(batch(1))
        except OutOfMemoryError as error:
            print(error)
        assert same(everything(engine.state()), before), zero
        assert engine.trained() is model
        for name, value in plain.weights().items():
            torch.testing.assert_close(model.state_dict()[name], value, atol=1e-6, rtol=1e-5)
"""


def test_every_stage_trains_alone_and_keeps_its_state_where_memory_runs_out() -> None:
    paths = os.pathsep.join([*sys.path, str(Path(__file__).parent)])
    launched = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    plain = {name: value for name, value in os.environ.items() if name not in launched}
    done = subprocess.run(
        [sys.executable, "-c", ALONE], capture_output=True, text=True, check=False,
        env=plain | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert not done.returncode, done.stderr
    told = [
        line for line in done.stdout.splitlines() if line.startswith("memory ran out at step 2")
    ]
    assert len(told) == 8


def test_the_number_that_deepspeeds_launcher_adds_is_passed_over(capsys) -> None:
    assert main(["--local_rank=1", "--help"]) == 0
    assert capsys.readouterr().out.strip() == HELP.strip()
