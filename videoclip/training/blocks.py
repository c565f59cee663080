"""What the settings ask of a model's blocks: what they keep and drop, and how they are run."""

from torch import nn

from videoclip.config import ConfigError
from videoclip.experiment import Optim, Run
from videoclip.layers import Blocks, ResidualBlock
from videoclip.model import VideoCLIP
from videoclip.towers import ViT


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


def compile_blocks(model: VideoCLIP, run: Run, **options: object) -> None:
    """Lets torch.compile take transformer blocks, with the mixers around them, and the head.

    Their names in the model's state stay. `options` are torch.compile's own.

    Raises ConfigError where the weights will lie in parts, which only whole modules gather.
    """
    if run.compile == "off":
        return
    if run.engine == "deepspeed" and run.zero == 3:
        raise ConfigError("compile is 'blocks', which ZeRO stage 3 cannot run; take stage 2")
    blocks = [module for module in model.modules() if isinstance(module, ResidualBlock)]
    for module in (*blocks, *model.mixers, model.head):
        module.compile(**options)


def _stacks(module: nn.Module) -> list[Blocks]:
    return [part for part in module.modules() if isinstance(part, Blocks)]
