"""What the settings ask of a model's blocks: what they keep and drop, and how they are run."""

import os
import shutil

import torch
import torch._dynamo
from torch import nn

from videoclip.config import ConfigError
from videoclip.experiment import Optim, Run
from videoclip.layers import Blocks, ResidualBlock
from videoclip.model import VideoCLIP
from videoclip.towers import ViT

CASES = 64


def set_blocks(model: VideoCLIP, optim: Optim) -> None:
    """Gradient checkpointing in every block, stochastic depth in those of towers and head.

    Raises ConfigError where there is no vision transformer whose blocks samples could pass by.
    """
    for blocks in _stacks(model):
        blocks.checkpoint(optim.checkpointing == "blocks")
    if optim.stochastic_depth and not isinstance(model.config.visual, ViT):
        raise ConfigError(
            f"stochastic_depth is {optim.stochastic_depth}, but samples pass by blocks of a vision "
            "transformer, which this model has not; leave it out"
        )
    for part in (model.clip, model.head):  # a scorer's samples would be pairs
        for blocks in _stacks(part):
            blocks.pass_by(optim.stochastic_depth)


def compile_blocks(model: VideoCLIP, run: Run, backend: str = "inductor") -> None:
    """Lets torch.compile take transformer blocks, with the mixers around them, and the head.

    Their names in the model's state stay, and so do the random numbers that they draw.

    Raises ConfigError where there is no compiler, and where the weights will lie in parts, which
    only whole modules gather.
    """
    if run.compile == "off":
        return
    if run.engine == "deepspeed" and run.zero == 3:
        raise ConfigError("compile is 'blocks', which ZeRO stage 3 cannot run; take stage 2")
    compiler = os.environ.get("CXX", "g++")
    if model.device.type == "cpu" and not shutil.which(compiler):
        raise ConfigError(
            f"compile is 'blocks', which needs a C++ compiler on a processor, and {compiler} is "
            "not there; install it, name another one in CXX, or leave compile off"
        )
    # Blocks share their code: towers, heads, the row that is read, steps and evaluations, all with
    # sizes of their own, are more cases than torch compiles of one function by itself.
    torch._dynamo.config.recompile_limit = max(CASES, torch._dynamo.config.recompile_limit)
    options = {"fallback_random": True} if backend == "inductor" else None
    blocks = [module for module in model.modules() if isinstance(module, ResidualBlock)]
    for module in (*blocks, *model.mixers, model.head):
        module.compile(backend=backend, options=options)


def _stacks(module: nn.Module) -> list[Blocks]:
    return [part for part in module.modules() if isinstance(part, Blocks)]
