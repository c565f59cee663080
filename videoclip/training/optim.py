"""Which weights are trained, and by what rule: groups, optimizer, schedule and arithmetic.

The published recipes and what half precision does to a step: docs/precision.md.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup

from videoclip.config import ConfigError
from videoclip.experiment import Lock, Optim
from videoclip.layers import Attention
from videoclip.model import VideoCLIP
from videoclip.towers import ResNet, Text, ViT

AFTER_BLOCKS = (
    "ln_final.", "text_projection", "logit_", "visual.ln_post.", "visual.proj", "visual.attnpool."
)  # fmt: skip
"""How the names of CLIP's weights begin that stand behind the last block of a tower."""
MOMENTUM = 0.9


def trainers(
    model: VideoCLIP, optim: Optim, steps: int, steps_per_epoch: int | None = None
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """What changes the weights in a run of so many steps, and what changes the learning rates.

    With precision reference-fp16 the weights that CLIP's authors halve are rounded to half
    precision here, and again after every step. They stay float32 tensors.
    """
    groups = parameter_groups(model, optim)
    # Radford et al. 2021, table 18: the ViTs have other constants than the ResNets.
    is_vit = isinstance(model.config.visual, ViT)
    second, eps = (0.98, 1e-6) if is_vit else (0.999, 1e-8)
    betas, eps = (MOMENTUM, second), optim.epsilon or eps
    optimizer: torch.optim.Optimizer
    if optim.optimizer == "bertadam":
        optimizer = BertAdam(groups, betas=betas, eps=eps)
    elif optim.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, momentum=MOMENTUM)
    else:
        optimizer = torch.optim.AdamW(groups, betas=betas, eps=eps, fused=True)
    if optim.precision == "reference-fp16":
        round_to_half(*half_parameters(model))
        if not isinstance(optimizer, BertAdam):  # which computes in half precision itself
            keep_half(optimizer)
    return optimizer, schedule(optimizer, optim, steps, steps_per_epoch)


# What is trained.


def freeze(model: VideoCLIP, optim: Optim) -> None:
    """Takes what the settings lock or freeze out of the training.

    Raises ConfigError where `freeze_layers` counts blocks that the towers do not have.
    """
    for parameter in locked_parameters(model, optim.lock):
        parameter.requires_grad_(False)
    if optim.freeze_layers is None or optim.freeze_layers < 0:
        return
    if not (isinstance(model.config.visual, ViT) and isinstance(model.config.text, Text)):
        raise ConfigError(
            f"freeze_layers is {optim.freeze_layers}, but it counts the blocks of CLIP's two "
            "transformers, which this model has not; leave it out, or lock a tower"
        )
    most = max(model.config.visual.layers, model.config.text.layers)
    if optim.freeze_layers > most:
        raise ConfigError(
            f"freeze_layers is {optim.freeze_layers}, but the towers have {most} blocks; {most} "
            "freezes all of them"
        )
    for parameter in frozen_parameters(model, optim.freeze_layers):
        parameter.requires_grad_(False)


def frozen_parameters(model: VideoCLIP, layers: int) -> list[nn.Parameter]:
    """What CLIP4Clip's freeze_layer_num takes out of the training of two transformers.

    The first blocks of both, and all that stands below the blocks: words, positions, class token,
    patches and the normalization after them. What stands behind the last block is always trained,
    and so are 3D patches: there the original freezes nothing at all, by a slip (it takes the
    result of `str.find` for a truth value).
    """
    spatial = getattr(model.clip.visual, "conv2", None)
    always = set() if spatial is None else {id(p) for p in spatial.parameters()}
    below = {key: number for key, (number, top) in levels(model).items() if number < top}
    found = {key for key, number in below.items() if number <= layers} - always
    return [parameter for parameter in model.clip.parameters() if id(parameter) in found]


def locked_parameters(model: VideoCLIP, lock: Lock) -> list[nn.Parameter]:
    """The parameters of a locked tower, with its projection into the shared space.

    A tower that LiT locks (Zhai et al. 2022) gives the features that it gave before; so its
    projection is part of it. The temperature and the bias belong to neither tower.
    """
    clip = model.clip
    if lock == "both":
        return [*locked_parameters(model, "image"), *locked_parameters(model, "text")]
    if lock == "image":
        return list(clip.visual.parameters())
    if lock == "text":
        temperature = {id(clip.logit_scale), id(clip.logit_bias)}
        temperature |= {id(parameter) for parameter in clip.visual.parameters()}
        return [p for p in clip.parameters() if id(p) not in temperature]
    return []


def locked_modules(model: VideoCLIP, optim: Optim) -> list[nn.Module]:
    """The modules of a locked tower. The text tower's stand beside `visual`."""
    sides = {"image": [model.clip.visual]}
    sides["text"] = [part for name, part in model.clip.named_children() if name != "visual"]
    sides["both"] = sides["image"] + sides["text"]
    return sides.get(optim.lock, [])


class Level(NamedTuple):
    """Where a weight of CLIP's stands in its tower."""

    number: int
    """0 below the blocks, then the number of the block, counted from 1."""
    top: int
    """The level behind the last block."""


def levels(model: VideoCLIP) -> dict[int, Level]:
    """Where each of CLIP's own parameters stands, by its `id`; new modules' have no level."""
    clip, new = model.clip, {id(parameter) for parameter in model.new_parameters()}
    text = clip.transformer.resblocks if isinstance(model.config.text, Text) else []
    visual: list[nn.Module] = []
    if isinstance(model.config.visual, ViT):
        visual = list(clip.visual.transformer.resblocks)
    elif isinstance(model.config.visual, ResNet):
        tower = clip.visual
        visual = list(chain(tower.layer1, tower.layer2, tower.layer3, tower.layer4))
    found = {
        id(parameter): Level(number, len(blocks) + 1)
        for blocks in (text, visual)
        for number, block in enumerate(blocks, 1)
        for parameter in block.parameters()
    }
    for name, parameter in clip.named_parameters():
        if id(parameter) not in found and id(parameter) not in new:
            top = len(visual if name.startswith("visual.") else text) + 1
            found[id(parameter)] = Level(top if name.startswith(AFTER_BLOCKS) else 0, top)
    return found


def parameter_groups(model: VideoCLIP, optim: Optim) -> list[dict[str, Any]]:
    """What is trained, by learning rate, decay and whether it is held in half precision.

    The first group is of CLIP's weights, if any of them are trained, at their highest rate.
    """
    visual = {id(parameter) for parameter in model.clip.visual.parameters()}
    halves = half_parameters(model) if optim.precision == "reference-fp16" else []
    half = {id(parameter) for parameter in halves}
    own = levels(model)
    groups: dict[tuple, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        place = own.get(id(parameter))
        if place is None:
            rate = optim.module_rate
        else:
            rate = optim.tower_rate * optim.layer_decay ** (place.top - place.number)
            rate *= optim.visual_ratio if id(parameter) in visual else 1.0
        decay = optim.weight_decay if _decays(name, parameter, optim.decay) else 0.0
        key = (place is None, -rate, -decay, id(parameter) in half)
        groups.setdefault(key, []).append(parameter)
    return [
        {"params": groups[key], "lr": -key[1], "weight_decay": -key[2], "half": key[3]}
        for key in sorted(groups)
    ]


def _decays(name: str, parameter: nn.Parameter, rule: str) -> bool:
    if rule == "matrices":
        return parameter.ndim >= 2 and "position" not in name and "embedding" not in name
    return rule == "all" or "bias" not in name


# By what rule.


class BertAdam(torch.optim.Optimizer):
    """Adam as CLIP4Clip has it, from Google's BERT: no correction of the first steps.

    Every tensor's gradient is scaled down to norm 1, and decay is added to the update rather than
    taken off the weight, so it is decoupled. In groups with `half`, weight, gradient, both moments
    and every operation between them are in half precision: that is where the original's learning
    rates belong. The moments are kept as float32 tensors all the same, as the weights are.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        betas: tuple[float, float] = (MOMENTUM, 0.98),
        eps: float = 1e-6,
    ) -> None:
        super().__init__(groups, {"betas": betas, "eps": eps, "weight_decay": 0.0, "half": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> None:
        """One step of every weight that has a gradient. A closure is of no use here."""
        assert closure is None, "BertAdam takes the gradients that are there"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state |= {name: torch.zeros_like(parameter) for name in ("first", "second")}
                dtype = torch.half if group["half"] else parameter.dtype
                tensors = (parameter, parameter.grad, *state.values())
                found = _bert_adam(*(tensor.to(dtype) for tensor in tensors), group)
                for kept, new in zip((parameter, *state.values()), found, strict=True):
                    kept.copy_(new)


def _bert_adam(
    weight: Tensor, gradient: Tensor, first: Tensor, second: Tensor, group: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Weight and moments after a step; the operations, one by one, round as the original's do."""
    norm = torch.linalg.vector_norm(gradient)
    gradient.mul_((1.0 / (norm + 1e-6)).clamp(max=1.0))
    keep, keep_second = group["betas"]
    first.mul_(keep).add_(gradient, alpha=1 - keep)
    second.mul_(keep_second).addcmul_(gradient, gradient, value=1 - keep_second)
    update = first / (second.sqrt() + group["eps"])
    if group["weight_decay"]:
        update += group["weight_decay"] * weight
    return weight - group["lr"] * update, first, second


def schedule(
    optimizer: torch.optim.Optimizer, optim: Optim, steps: int, steps_per_epoch: int | None = None
) -> LambdaLR:
    """What changes the learning rates over a run of so many steps, once after every step."""
    warmup = round(optim.warmup * steps)
    if optim.schedule == "cosine":
        return get_cosine_schedule_with_warmup(optimizer, warmup, steps)
    if optim.schedule == "constant":
        return get_constant_schedule_with_warmup(optimizer, warmup)
    if optim.schedule == "clip4clip":
        return LambdaLR(optimizer, partial(clip4clip_share, steps=steps, warmup=optim.warmup))
    per_epoch = steps_per_epoch or max(steps // max(optim.epochs, 1), 1)
    share = partial(actionclip_share, steps=steps, per_epoch=per_epoch, warmup=optim.warmup)
    return LambdaLR(optimizer, share)


def clip4clip_share(step: int, *, steps: int, warmup: float) -> float:
    """The share of the learning rate at a step, counted from 0, in CLIP4Clip (`warmup_cosine`).

    The cosine begins with the run, not behind the warm-up: with a tenth of warm-up the rate rises
    to 1, falls to 0.976 at once and to 0 in the end. Beyond the last step it would rise again.
    """
    done = step / max(steps, 1)
    return done / warmup if done < warmup else 0.5 * (1.0 + math.cos(math.pi * done))


def actionclip_share(step: int, *, steps: int, per_epoch: int, warmup: float) -> float:
    """The share of the learning rate at a step, counted from 0, in ActionCLIP.

    It rises from 0 in a straight line and falls to 0 on a cosine; in every epoch it is set at the
    first step, the tenth, the twentieth, and so on, and stays until the next of these.
    """
    epoch, inside = divmod(step, per_epoch)
    set_at = (inside + 1) // 10 * 10 - 1 if inside >= 9 else 0
    done = (epoch * per_epoch + set_at) / max(steps, 1)
    if done < warmup:
        return done / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (done - warmup) / max(1.0 - warmup, 1e-9)))


# In which arithmetic.


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which a recipe computes scores.

    On a CPU reference-fp16 computes them in float32: many of torch's operations have no half
    precision there.
    """
    if precision == "fp16":
        return torch.autocast(device.type, torch.float16)
    if precision == "reference-fp16":
        return torch.autocast(device.type, torch.float16, enabled=device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def half_parameters(model: VideoCLIP) -> list[nn.Parameter]:
    """What OpenAI's `convert_weights` halves: convolutions, linear layers and both projections.

    Normalizations, embeddings, positions and the temperature stay float32, and so do new modules.
    """
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, Attention)
    found = [
        parameter
        for module in model.clip.modules()
        if isinstance(module, kinds)
        for parameter in module.parameters(recurse=False)
    ]
    names = {"text_projection", "visual.proj"}
    found += [parameter for name, parameter in model.clip.named_parameters() if name in names]
    new = {id(parameter) for parameter in model.new_parameters()}
    return [parameter for parameter in found if id(parameter) not in new]


@torch.no_grad()
def round_to_half(*tensors: Tensor) -> None:
    """Rounds float32 tensors in place to numbers that half precision has."""
    for tensor in tensors:
        tensor.copy_(tensor.half())


def keep_half(optimizer: torch.optim.Optimizer) -> None:
    """Steps in float32 between weights in half precision, as ActionCLIP does.

    In groups with `half`, gradients are rounded before a step, and weights after it; what a step
    changes by less than half of a weight's spacing is lost.
    """

    def chosen(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
        return [p for group in optimizer.param_groups if group["half"] for p in group["params"]]

    def before(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        round_to_half(*(p.grad for p in chosen(optimizer) if p.grad is not None))

    def after(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        round_to_half(*chosen(optimizer))

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
