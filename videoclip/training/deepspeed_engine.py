"""The engine's step under DeepSpeed, which spreads what training keeps over the processes.

ZeRO (Rajbhandari et al. 2020): stage 1 spreads the state of the optimizer, stage 2 the gradients
too, stage 3 the weights too; stage 0 spreads nothing. The result is that of the plain engine.
"""

import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from videoclip import distributed
from videoclip.config import ConfigError
from videoclip.experiment import Optim
from videoclip.model import VideoCLIP
from videoclip.towers.clip import MAX_LOGIT_SCALE
from videoclip.training.average import Average
from videoclip.training.engine import Engine, random_state, set_random_state
from videoclip.types import Batch

T = TypeVar("T")
Stage = Literal[0, 1, 2, 3]
TAG = "deepspeed"


class DeepSpeedEngine(Engine):
    """A model and what trains it under DeepSpeed. Every process must make one and call it alike.

    The temperature and the bias are vectors of one number while it is in use: DeepSpeed has no
    place for scalars. `weights` gives them, and all others, as they stand in a checkpoint. From
    stage 1 on a gradient that is not finite is found only when the weights have taken it: the run
    ends all the same, and goes on from what was saved before.
    """

    def __init__(
        self,
        model: VideoCLIP,
        optim: Optim,
        *,
        steps: int,
        steps_per_epoch: int | None = None,
        stage: Stage = 1,
    ) -> None:
        """Raises ConfigError where the recipe needs to see each weight as a whole.

        Also where no launcher has started the processes: DeepSpeed needs one even for a single one.
        """
        if stage and (optim.optimizer == "bertadam" or optim.precision == "reference-fp16"):
            raise ConfigError(
                f"optimizer {optim.optimizer!r} with precision {optim.precision!r} looks at whole "
                f"weights, which ZeRO stage {stage} cuts into pieces; take stage 0 or the plain "
                "engine"
            )
        if not torch.distributed.is_initialized():
            raise ConfigError(
                "DeepSpeed needs a launcher, also for one process: torchrun --nproc-per-node 1 -m "
                "videoclip ..."
            )
        self.scalars = [name for name, p in model.named_parameters() if p.ndim == 0]
        for name in self.scalars:
            owner, _, last = name.rpartition(".")
            scalar = getattr(model.get_submodule(owner), last)
            setattr(model.get_submodule(owner), last, _vector(scalar))
        super().__init__(model, optim, steps=steps, steps_per_epoch=steps_per_epoch)
        self.stage = stage
        self.steps_taken = _Steps(model)
        self.deepspeed = _initialize(self.steps_taken, self.optimizer, optim, stage)
        self.average = Average.of(model, optim, self.scalars)  # of what stage 3 leaves here

    def _clear(self) -> None:
        self.deepspeed.zero_grad()
        if self.stage == 3:
            # It takes it that the first backward pass of a step reaches every weight. To one that
            # only a later pass reaches it would add the gradient of the step before.
            from deepspeed.utils import safe_set_local_grad

            for weight in self.model.parameters():
                if weight.requires_grad:
                    safe_set_local_grad(weight, torch.zeros_like(weight.ds_tensor))

    def _descend(self, make: Callable[[], Tensor]) -> Tensor:
        value = self.deepspeed(make)
        if value.requires_grad:
            self.deepspeed.backward(value, scale_wrt_gas=False)
        return value

    def _inside(self, make: Callable[[], T]) -> T:
        return self.deepspeed(make)

    def _update(self, batch: Batch) -> float:
        if self.stage == 0:  # DeepSpeed knows no norm then, and its step would be refused too late
            distributed.mean_gradients(self.model.parameters())
            largest = self.optim.max_norm or math.inf
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), largest).item()
            self._require_finite("gradient norm", norm, batch)
            self.deepspeed.step()
            return norm
        self.deepspeed.step()
        norm = float(self.deepspeed.get_global_grad_norm())
        self._require_finite("gradient norm", norm, batch)
        return norm

    def _clamped(self) -> float:
        if self.stage == 0:
            return super()._clamped()
        from deepspeed.utils import safe_get_full_fp32_param

        found = safe_get_full_fp32_param(self.model.clip.logit_scale).clone()
        if self.optim.loss == "clip" and found > MAX_LOGIT_SCALE:
            found.clamp_(max=MAX_LOGIT_SCALE)
            self._set_temperature(found)
        return found.item()

    def _set_temperature(self, value: Tensor) -> None:
        """The model has one copy of it, and the optimizer goes on from another."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        scale = self.model.clip.logit_scale
        if self.stage < 3:
            safe_set_full_fp32_param(scale, value)
            scale.data.copy_(value)
        else:  # cut into parts of one number, of which all but the first are padding
            safe_set_local_fp32_param(scale, value)
            scale.ds_tensor.data.copy_(value)

    def weights(self) -> dict[str, Tensor]:
        """The whole weights; all processes must ask for them together."""
        with _whole(self.model.parameters()):
            state = {name: x.detach().clone() for name, x in self.model.state_dict().items()}
        return state | {name: state[name].reshape(()) for name in self.scalars}

    def trained(self) -> VideoCLIP:
        """A copy of the model with the whole weights; all processes must ask for it together."""
        with torch.random.fork_rng():  # whoever looks changes no step
            copy = self.model.config.build().to(self.model.device)
        weights = self.weights()
        copy.load_state_dict(weights | self.average.weights() if self.average else weights)
        copy.origin = self.model.origin
        return copy.eval()

    def state(self) -> dict[str, Any]:
        """Raises TypeError: each process has its own part of it, which `save` writes."""
        raise TypeError("the state of DeepSpeed lies in several processes; use save and load")

    def restore(self, state: dict[str, Any]) -> None:
        """Raises TypeError, as `state` does."""
        raise TypeError("the state of DeepSpeed lies in several processes; use save and load")

    def save(self, folder: Path) -> None:
        """Writes all that the next step depends on into a folder; every process its own part."""
        more = {"schedule": self.schedule.state_dict(), "random": random_state()}
        more["ema"] = self.average.weights() if self.average else {}
        self.deepspeed.save_checkpoint(str(folder), tag=TAG, client_state=more, save_latest=False)

    def load(self, folder: Path) -> None:
        """Goes back to what `save` wrote, with the same number of processes.

        Only for what runs of one's own have written: DeepSpeed's files can hold code.
        """
        _, more = self.deepspeed.load_checkpoint(str(folder), tag=TAG)
        self.schedule.load_state_dict(more["schedule"])
        if self.average:
            self.average.restore(more["ema"])
        set_random_state(more["random"])


class _Steps(nn.Module):
    """The module whose forward DeepSpeed watches: whatever is done with the model inside it."""

    def __init__(self, model: VideoCLIP) -> None:
        super().__init__()
        self.model = model

    def forward(self, make: Callable[[], T]) -> T:
        """What `make` returns."""
        return make()


def _vector(scalar: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(scalar.detach().reshape(1), requires_grad=scalar.requires_grad)


def _initialize(
    module: nn.Module, optimizer: torch.optim.Optimizer, optim: Optim, stage: Stage
) -> Any:
    """DeepSpeed's own engine."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    if not torch.cuda.is_available():  # else it compiles an operation for a minute or two
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    zero = {"stage": stage, "overlap_comm": False}
    if stage == 3:
        zero |= {"stage3_param_persistence_threshold": 0}
    config = {
        "train_micro_batch_size_per_gpu": 1,  # it must be there; a batch may have any size
        "gradient_clipping": optim.max_norm or 0.0,
        "zero_optimization": zero,
        # `step` alone says when a batch is complete, after one backward pass or many.
        "managed_gradient_accumulation": False,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    engine, *_ = deepspeed.initialize(
        model=module, optimizer=optimizer, config=config, dist_init_required=False
    )
    if stage == 0:
        engine.enable_backward_allreduce = False
    return engine


def _whole(parameters: Iterable[nn.Parameter]) -> Any:
    """A context in which ZeRO's weights are all there."""
    import deepspeed

    return deepspeed.zero.GatheredParameters(list(parameters))
