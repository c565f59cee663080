"""Settings -> the engine that trains a model by them."""

from videoclip.experiment import Optim, Run
from videoclip.model import VideoCLIP
from videoclip.training.blocks import compile_blocks
from videoclip.training.engine import Engine


def engine_of(
    model: VideoCLIP, optim: Optim, run: Run, *, steps: int, steps_per_epoch: int | None = None
) -> Engine:
    """The engine that a run asks for. Of several processes all must call it together.

    Whoever looks at the model between two steps takes it from `engine.trained()`.

    Raises ConfigError for settings that the engine cannot carry out.
    """
    if run.engine == "plain":
        compile_blocks(model, run)
        return Engine(model, optim, steps=steps, steps_per_epoch=steps_per_epoch)
    from videoclip.training.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(model, optim, steps=steps, steps_per_epoch=steps_per_epoch, run=run)
