"""The engine's step under DeepSpeed, which spreads what training keeps over the processes.

ZeRO (Rajbhandari et al. 2020): stage 1 spreads the state of the optimizer, stage 2 the gradients
too, stage 3 the weights too; stage 0 spreads nothing. The result is that of the plain engine.
"""

import copy
import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from videoclip import distributed
from videoclip.config import ConfigError
from videoclip.experiment import Optim, Run
from videoclip.model import VideoCLIP
from videoclip.towers.clip import MAX_LOGIT_SCALE
from videoclip.training.average import Average
from videoclip.training.blocks import compile_blocks
from videoclip.training.deepspeed_config import config_of
from videoclip.training.deepspeed_order import InOrder
from videoclip.training.engine import Engine, halfway
from videoclip.training.faults import enough_memory
from videoclip.training.parts import Part, parts_of, set_parts, whole

T = TypeVar("T")


class DeepSpeedEngine(Engine):
    """A model and what trains it under DeepSpeed. Every process must make one and call it alike.

    It trains a copy: the model that it was given stays whole, and `trained` fills it with what has
    been learnt. In the copy temperature and bias are vectors of one number, because DeepSpeed has
    no place for scalars. `weights` gives them, and all others, as they stand in a checkpoint.
    """

    def __init__(
        self,
        model: VideoCLIP,
        optim: Optim,
        *,
        steps: int,
        steps_per_epoch: int | None = None,
        run: Run,
    ) -> None:
        """A process that no launcher has started is the only one.

        Raises ConfigError where the recipe needs to see each weight as a whole, and where DeepSpeed
        is asked for what contradicts the settings.
        """
        if run.zero and (optim.optimizer == "bertadam" or optim.precision == "reference-fp16"):
            raise ConfigError(
                f"optimizer {optim.optimizer!r} with precision {optim.precision!r} looks at whole "
                f"weights, which ZeRO stage {run.zero} cuts into pieces; take stage 0 or the plain "
                "engine"
            )
        config = config_of(optim, run)
        distributed.start_alone()
        self.run, self.whole = run, model
        trained = copy.deepcopy(model)
        compile_blocks(trained, run)
        self.scalars = [name for name, p in trained.named_parameters() if p.ndim == 0]
        for name in self.scalars:
            owner, _, last = name.rpartition(".")
            scalar = getattr(trained.get_submodule(owner), last)
            setattr(trained.get_submodule(owner), last, _vector(scalar))
        super().__init__(trained, optim, steps=steps, steps_per_epoch=steps_per_epoch)
        self.deepspeed = _initialize(_Steps(trained), self.optimizer, config)
        self.order = InOrder(trained, self._zero) if run.zero >= 2 else None
        self.average = Average.of(trained, optim, self.scalars)  # of what stage 3 leaves here

    @property
    def _zero(self) -> Any:
        """DeepSpeed's optimizer, from stage 1 on."""
        return self.deepspeed.optimizer

    def _clear(self) -> None:
        self.deepspeed.zero_grad()
        if self.order:
            self.order.clear()
        # It takes it that the first backward pass of a step reaches every weight. To one that only
        # a later pass reaches it would add the gradient of the step before.
        kept: dict[int, Tensor] = {}
        if self.run.zero == 3:
            kept = self._zero._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition
        elif self.run.offload != "none":
            kept = self._zero.accumulated_grads_in_cpu
        for gradient in kept.values():
            gradient.zero_()

    def _let_go(self) -> None:
        if self.run.zero == 3:  # weights would count as used by the modules that were broken off
            for weight in self.model.parameters():
                weight.ds_active_sub_modules.clear()
            self._zero._partition_all_parameters()

    def _descend(self, make: Callable[[], Tensor]) -> Tensor:
        value = self.deepspeed(make)
        if value.requires_grad:
            self.deepspeed.backward(value, scale_wrt_gas=False)
        return value

    def _inside(self, make: Callable[[], T]) -> T:
        return self.deepspeed(make)

    def _update(self) -> float:
        if self.run.zero == 0:  # DeepSpeed knows no norm then, and would take any step
            norm = self._norm()
            if math.isfinite(norm):
                with enough_memory(halfway):
                    self.deepspeed.step()
            return norm
        with enough_memory(halfway):
            self._zero.loss_scale = self._factor  # by which it divides the gradients
            self.deepspeed.step()
            self._zero.loss_scale = 1.0
        # It has taken no step where the norm is not finite.
        return float(self.deepspeed.get_global_grad_norm())

    def _clamp(self) -> None:
        scale = self.model.clip.logit_scale
        if self.run.zero == 0:
            super()._clamp()
        elif self.optim.loss == "clip" and self._temperature() > MAX_LOGIT_SCALE:
            # The model has one copy of it, and the optimizer goes on from another.
            bound = torch.full((1,), MAX_LOGIT_SCALE, device=scale.device)
            if part := self._parts().get("clip.logit_scale"):
                part.flat.data[part.inside] = bound[part.place]
            getattr(scale, "ds_tensor", scale).data.copy_(bound)  # at stage 3, mostly padding

    def _temperature(self) -> float:
        scale = self.model.clip.logit_scale
        with self._gathered(scale):
            return scale.item()

    def weights(self) -> dict[str, Tensor]:
        """The whole weights; all processes must ask for them together."""
        return {name: x.clone() for name, x in self._whole_weights()}

    def trained(self) -> VideoCLIP:
        """The model that was given, with the weights of now; all must ask for it together.

        With moving averages it has these.
        """
        weights = self.weights()
        averaged = self.average.weights() if self.average else {}
        self.whole.load_state_dict(weights | averaged)
        return self.whole.eval()

    def _gathered(self, weight: Tensor, *, changed: bool = False) -> AbstractContextManager:
        """A context in which a weight is there as a whole; what it is changed to stays."""
        if not hasattr(weight, "ds_tensor"):
            return nullcontext()
        import deepspeed

        return deepspeed.zero.GatheredParameters([weight], modifier_rank=0 if changed else None)

    def _whole_weights(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            with self._gathered(tensor):
                yield name, tensor.detach().reshape(() if name in self.scalars else tensor.shape)

    def _set_weights(self, weights: dict[str, Tensor]) -> None:
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            with self._gathered(tensor, changed=True):
                tensor.data.copy_(weights[name].reshape(tensor.shape))
        if self.run.zero:
            self._zero.refresh_fp32_params()  # from which the optimizer goes on

    def _parts(self) -> dict[str, Part]:
        return parts_of(self.model, self._zero)

    def _whole_moments(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        if self.run.zero == 0:
            yield from super()._whole_moments()
            return
        for name, part in self._parts().items():
            if kept := self.optimizer.state.get(part.flat):
                found = {key: x if key == "step" else whole(part, x) for key, x in kept.items()}
                yield name, found

    def _set_moments(self, moments: dict[str, dict[str, Tensor]]) -> None:
        if self.run.zero == 0:
            super()._set_moments(moments)
        else:
            set_parts(self._parts(), self.optimizer.state, moments)


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


def _initialize(module: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any]) -> Any:
    """DeepSpeed's own engine."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")  # it insists, also where there is no launcher
    import deepspeed

    if not torch.cuda.is_available():  # else it compiles an operation for a minute or two
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    engine, *_ = deepspeed.initialize(
        model=module, optimizer=optimizer, config=config, dist_init_required=False
    )
    if config["zero_optimization"]["stage"] == 0:
        engine.enable_backward_allreduce = False
    return engine
