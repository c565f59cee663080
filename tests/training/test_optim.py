"""What is trained, at which rates, by which rule; what half precision does: test_precision.py."""

import importlib
import math
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import build
from torch import nn

import experiments
from videoclip.config import ConfigError
from videoclip.experiment import Optim
from videoclip.heads import Transformer
from videoclip.model import Model, VideoCLIP
from videoclip.towers import ResNet, Text, ViT
from videoclip.training.optim import freeze, parameter_groups, trainers

CLIP4CLIP = Optim(
    tower_rate=1e-3, module_rate=1e-2, optimizer="bertadam", schedule="clip4clip", decay="weights"
)
ACTIONCLIP = Optim(
    epochs=50, tower_rate=5e-6, module_rate=5e-5, schedule="actionclip", decay="all", epsilon=1e-8
)


def on_meta(model: Model) -> VideoCLIP:
    """A model without memory, to count in."""
    with torch.device("meta"):
        return model.build()


def trained_names(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def names_by(model: VideoCLIP, optim: Optim, key: str) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, optim)
    return {names[id(p)]: group[key] for group in groups for p in group["params"]}


def set_gradients(model: nn.Module, step: int, size: float = 1e-3) -> None:
    random = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = size * torch.randn(parameter.shape, generator=random)


def take_steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    steps: range,
) -> Iterator[list[float]]:
    """The learning rates of each step."""
    for step in steps:
        set_gradients(model, step)
        yield [group["lr"] for group in optimizer.param_groups]
        optimizer.step()
        schedule.step()


# What is trained.


def resnet() -> VideoCLIP:
    return build(visual=ResNet(width=16, layers=(1, 1, 1, 1), image_size=32))


@pytest.mark.parametrize("make", [build, resnet, lambda: build(head="lstm", scorer="tight")])
def test_every_weight_is_in_one_group(make: Callable[[], VideoCLIP]) -> None:
    model = make()
    groups = parameter_groups(model, replace(CLIP4CLIP, precision="reference-fp16"))
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(found) == sorted(id(parameter) for parameter in model.parameters())


def test_what_decays() -> None:
    model = build(head="lstm")
    by_rule = {
        rule: {n for n, d in names_by(model, Optim(decay=rule), "weight_decay").items() if d == 0.2}
        for rule in ("matrices", "weights", "all")
    }
    everything = {name for name, _ in model.named_parameters()}
    assert by_rule["all"] == everything
    assert by_rule["weights"] == {name for name in everything if "bias" not in name}
    assert "clip.logit_scale" in by_rule["weights"]
    assert "clip.visual.ln_pre.weight" in by_rule["weights"] - by_rule["matrices"]
    assert "head.lstm.bias_ih_l0" in everything - by_rule["weights"]
    assert "clip.token_embedding.weight" in by_rule["weights"] - by_rule["matrices"]


def test_rates_of_towers_and_modules() -> None:
    model = build(head="transformer")
    rates = names_by(model, Optim(tower_rate=1.0, module_rate=10.0, visual_ratio=0.5), "lr")
    for name, rate in rates.items():
        if name.startswith("clip.visual."):
            assert rate == 0.5, name
        else:
            assert rate == (1.0 if name.startswith("clip.") else 10.0), name


def test_lower_blocks_learn_more_slowly() -> None:
    rates = names_by(build(), Optim(tower_rate=1.0, layer_decay=0.5), "lr")
    assert rates["clip.visual.proj"] == rates["clip.ln_final.bias"] == 1.0
    assert rates["clip.logit_scale"] == 1.0
    for tower in ("clip.", "clip.visual."):
        assert rates[f"{tower}transformer.resblocks.1.ln_1.weight"] == 0.5
        assert rates[f"{tower}transformer.resblocks.0.mlp.c_fc.weight"] == 0.25
        assert rates[f"{tower}positional_embedding"] == 0.125
    assert rates["clip.visual.conv1.weight"] == rates["clip.token_embedding.weight"] == 0.125


def test_lower_bottlenecks_learn_more_slowly() -> None:
    rates = names_by(resnet(), Optim(tower_rate=1.0, layer_decay=0.5), "lr")
    assert rates["clip.visual.attnpool.c_proj.weight"] == 1.0
    assert rates["clip.visual.layer4.0.conv1.weight"] == 0.5
    assert rates["clip.visual.layer1.0.conv1.weight"] == 0.5**4
    assert rates["clip.visual.conv1.weight"] == 0.5**5


def test_the_first_group_tells_the_rate_of_clip() -> None:
    optim = Optim(tower_rate=1.0, module_rate=10.0, visual_ratio=0.5, layer_decay=0.5)
    assert parameter_groups(build(head="lstm"), optim)[0]["lr"] == 1.0


def frozen_by_name(name: str, layers: int) -> bool:
    """The rule of CLIP4Clip's freeze_layer_num, as retrieval.md 2.7 tells it."""
    always = ("ln_final.", "text_projection", "logit_scale", "visual.ln_post.", "visual.proj")
    name = name.removeprefix("clip.")
    if name.startswith(always) or name.startswith("visual.conv2."):
        return False
    _, blocks, number = name.partition("resblocks.")
    return int(number.partition(".")[0]) < layers if blocks else True


@pytest.mark.parametrize("patch_frames", [1, 3])
@pytest.mark.parametrize("layers", [None, -1, 0, 1, 2, 3])
def test_freezing_as_clip4clip_does(layers: int | None, patch_frames: int) -> None:
    """The text tower has two blocks, the vision tower three."""
    visual = ViT(width=64, layers=3, patch_size=8, image_size=16, patch_frames=patch_frames)
    model = build(head="transformer", visual=visual)
    before = trained_names(model)
    freeze(model, Optim(freeze_layers=layers))
    frozen = {
        name
        for name in before
        if layers is not None
        and layers >= 0
        and name.startswith("clip.")
        and frozen_by_name(name, layers)
    }
    assert trained_names(model) == before - frozen


@pytest.mark.parametrize(("layers", "millions"), [(0, 123.54), (12, 0.66), (-1, 151.28)])
def test_what_is_left_of_vit_b_32(layers: int, millions: float) -> None:
    """Cross-Modal Adapter, table 4, has 123.52 for the first; the original's rule gives this."""
    model = on_meta(Model())
    freeze(model, Optim(freeze_layers=layers))
    found = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert round(found / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Model(visual=ResNet(), embedding=1024), "counts the blocks of CLIP's two transformers"),
        (Model(visual=ViT(layers=2), text=Text(layers=3)), "have 3 blocks"),
    ],
)
def test_blocks_that_are_not_there_cannot_be_frozen(model: Model, said: str) -> None:
    with pytest.raises(ConfigError, match=f"freeze_layers is 4, .*{said}"):
        freeze(on_meta(model), Optim(freeze_layers=4))


@pytest.mark.parametrize(
    ("field", "value", "least"),
    [
        ("tower_rate", -1e-5, "at least 0"),
        ("module_rate", math.nan, "at least 0"),
        ("weight_decay", math.inf, "at least 0"),
        ("freeze_layers", -2, "at least -1"),
        ("max_norm", 0.0, "above 0"),
        ("epsilon", 0.0, "above 0"),
        ("layer_decay", 0.0, "above 0"),
        ("visual_ratio", -1.0, "above 0"),
    ],
)
def test_numbers_that_train_nothing_are_refused(field: str, value: float, least: str) -> None:
    with pytest.raises(ConfigError, match=f"{field} is {value}; it must be {least}"):
        Optim(**{field: value})


def test_sgd_reads_no_epsilon() -> None:
    with pytest.raises(ConfigError, match="epsilon is 1e-08, but optimizer 'sgd' reads none"):
        Optim(optimizer="sgd", epsilon=1e-8)


# Learning rates.


def rates_of(optim: Optim, steps: int, per_epoch: int | None = None) -> list[float]:
    """The first group's rate at every step."""
    layer = build(head="transformer")
    optimizer, schedule = trainers(layer, optim, steps, per_epoch)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_the_rates_of_clip4clip() -> None:
    found = rates_of(CLIP4CLIP, 1000)
    for step, rate in enumerate(found):
        x = step / 1000
        share = x / 0.1 if x < 0.1 else (1 + math.cos(math.pi * x)) / 2
        assert rate == pytest.approx(1e-3 * share, rel=1e-12), step
    assert found[0] == 0.0
    assert found[99] == pytest.approx(0.99e-3)
    assert found[100] == pytest.approx(0.976e-3, rel=1e-3)  # the seam
    assert 0 < found[-1] < 1e-8


@pytest.mark.parametrize(
    ("epoch", "per_epoch", "rates"),
    [
        (0, 18, (0, 0)),
        (0.5, 18, (5.000e-7, 5.000e-6)),
        (2.5, 18, (2.5e-6, 2.5e-5)),
        (5, 18, (5e-6, 5e-5)),
        (10, 18, (4.849e-6, 4.849e-5)),
        (27.5, 18, (2.5e-6, 2.5e-5)),
        (49.9, 10, (6.09e-11, 6.09e-10)),
    ],
)
def test_the_seven_rates_of_actionclip(
    epoch: float, per_epoch: int, rates: tuple[float, float]
) -> None:
    """The values that its own scheduler gave (action.md 2.5), for CLIP and for the new module."""
    model = build(head="transformer")
    optimizer, schedule = trainers(model, ACTIONCLIP, 50 * per_epoch, per_epoch)
    for _ in range(round(epoch * per_epoch)):
        optimizer.step()
        schedule.step()
    found = optimizer.param_groups[0]["lr"], optimizer.param_groups[-1]["lr"]
    assert found == pytest.approx(rates, rel=1e-3)


def test_actionclip_sets_the_rate_at_the_first_step_of_an_epoch_and_at_every_tenth() -> None:
    found = rates_of(ACTIONCLIP, 50 * 25, per_epoch=25)
    changes = [step for step in range(1, 100) if found[step] != found[step - 1]]
    assert changes == [9, 19, 25, 34, 44, 50, 59, 69, 75, 84, 94]
    assert found[44] == pytest.approx(5e-6 * (44 / 25) / 5)


def test_without_a_number_actionclip_divides_the_steps_among_the_epochs() -> None:
    assert rates_of(ACTIONCLIP, 50 * 12) == rates_of(ACTIONCLIP, 50 * 12, per_epoch=12)


@pytest.mark.parametrize(
    ("schedule", "middle", "last"), [("cosine", 0.5, 0.0), ("constant", 1.0, 1.0)]
)
def test_the_other_schedules(schedule: str, middle: float, last: float) -> None:
    found = rates_of(Optim(tower_rate=1.0, schedule=schedule, warmup=0.2), 1000)
    assert found[:2] == [0.0, 1 / 200]
    assert found[200] == 1.0
    assert found[600] == pytest.approx(middle)
    assert found[-1] == pytest.approx(last, abs=1e-5)


@pytest.mark.parametrize("schedule", ["cosine", "clip4clip", "actionclip", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 1.0])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_schedules_at_their_ends(schedule: str, warmup: float, steps: int) -> None:
    found = rates_of(Optim(schedule=schedule, warmup=warmup), steps)
    assert all(0 <= rate <= 1e-5 for rate in found)


# Optimizers.


def bert_adam_by_hand(
    weights: np.ndarray, gradients: list[np.ndarray], optim: Optim, steps: int
) -> np.ndarray:
    """CLIP4Clip's rule in float64, its schedule inside the step as there."""
    first, second, weights = np.zeros_like(weights), np.zeros_like(weights), weights.copy()
    for step, gradient in enumerate(gradients):
        norm = math.sqrt((gradient**2).sum())
        clipped = gradient * min(1.0, 1.0 / (norm + 1e-6))
        first = 0.9 * first + 0.1 * clipped
        second = 0.98 * second + 0.02 * clipped**2
        x = step / steps
        share = x / optim.warmup if x < optim.warmup else 0.5 * (1 + math.cos(math.pi * x))
        change = first / (np.sqrt(second) + 1e-6) + optim.weight_decay * weights
        weights -= optim.module_rate * share * change
    return weights


@pytest.mark.parametrize("size", [1e-3, 10.0], ids=["small", "clipped"])
def test_bert_adam_is_the_rule_written_out(size: float) -> None:
    """Float64, so that only the rule counts. The bias has no decay; both have their own norm."""
    head = build(head="transformer").double()
    optim = replace(CLIP4CLIP, warmup=0.25)
    optimizer, schedule = trainers(head, optim, 20)
    name = "head.transformer.resblocks.0.mlp.c_fc"
    layer = head.get_submodule(name)
    before = [p.detach().numpy().copy() for p in (layer.weight, layer.bias)]
    gradients: list[list[np.ndarray]] = [[], []]
    random = torch.Generator().manual_seed(0)
    for _ in range(20):
        for kept, parameter in zip(gradients, (layer.weight, layer.bias), strict=True):
            parameter.grad = size * torch.randn(parameter.shape, generator=random).double()
            kept.append(parameter.grad.numpy().copy())
        optimizer.step()
        schedule.step()
    for parameter, start, given, decay in zip(
        (layer.weight, layer.bias), before, gradients, (0.2, 0.0), strict=True
    ):
        expected = bert_adam_by_hand(start, given, replace(optim, weight_decay=decay), 20)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=0, atol=1e-12)
        assert np.abs(expected - start).max() > 1e-2


def test_fused_adamw_is_the_rule_written_out() -> None:
    """Loshchilov and Hutter 2019, algorithm 2, in float64: decay beside the step, not in it."""
    model = build(head="transformer")
    optim = Optim(tower_rate=1e-3, module_rate=1e-2, weight_decay=0.3, layer_decay=0.7, warmup=0.3)
    optimizer, schedule = trainers(model, optim, 6)
    assert all(group["fused"] for group in optimizer.param_groups)
    weights = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    first = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    second = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    decays = names_by(model, optim, "weight_decay")
    steps = take_steps(model, optimizer, schedule, range(6))
    for step, rates in enumerate(steps, 1):  # what it yields is the rates before the step
        by_id = {
            id(p): rate
            for group, rate in zip(optimizer.param_groups, rates, strict=True)
            for p in group["params"]
        }
        for name, parameter in model.named_parameters():
            gradient, rate = parameter.grad.double(), by_id[id(parameter)]
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.98 * second[name] + 0.02 * gradient**2
            step_size = first[name] / (1 - 0.9**step)
            step_size = step_size / ((second[name] / (1 - 0.98**step)).sqrt() + 1e-6)
            weights[name] = weights[name] * (1 - rate * decays[name]) - rate * step_size
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.double(), weights[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "bertadam"])
def test_epsilon_is_clips_or_the_one_that_is_asked_for(optimizer: str) -> None:
    for asked, expected in ((None, 1e-6), (1e-3, 1e-3)):
        found, _ = trainers(build(), Optim(optimizer=optimizer, epsilon=asked), 1)
        assert {group["eps"] for group in found.param_groups} == {expected}


def test_bert_adam_leaves_what_has_no_gradient() -> None:
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer, _ = trainers(model, replace(CLIP4CLIP, warmup=0.0), 3)
    model.clip.visual.proj.grad = torch.ones_like(model.clip.visual.proj)
    optimizer.step()
    changed = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {"clip.visual.proj"}


# To go on, to the bit.


@pytest.mark.parametrize(
    ("optimizer", "precision", "schedule"),
    [
        ("adamw", "fp32", "cosine"),
        ("adamw", "reference-fp16", "actionclip"),
        ("bertadam", "fp32", "constant"),
        ("bertadam", "reference-fp16", "clip4clip"),
        ("sgd", "fp32", "actionclip"),
        ("sgd", "reference-fp16", "cosine"),
    ],
)
def test_going_on_is_not_having_stopped(
    optimizer: str, precision: str, schedule: str, tmp_path
) -> None:
    optim = Optim(
        epochs=2, tower_rate=1e-3, optimizer=optimizer, precision=precision, schedule=schedule
    )
    straight, again = build(head="transformer"), build(head="transformer")
    rules = trainers(straight, optim, 24, 12)
    rates = []
    for step, found in enumerate(take_steps(straight, *rules, range(24))):
        rates.append(found)
        if step == 13:  # before this step changes anything
            state = [straight.state_dict(), *(rule.state_dict() for rule in rules)]
            torch.save(state, tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    others = trainers(again, optim, 24, 12)
    for kept, part in zip((again, *others), state, strict=True):
        kept.load_state_dict(part)
    assert list(take_steps(again, *others, range(13, 24))) == rates[13:]
    for (name, one), other in zip(straight.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other), name


# The recipes.


@pytest.mark.parametrize(
    "name", [found.name for found in pkgutil.iter_modules(experiments.__path__)]
)
def test_every_recipe_has_its_trainers(name: str) -> None:
    base = importlib.import_module(f"experiments.{name}").base
    for optim in [getattr(base, field) for field in ("pretrain", "finetune", "optim")
                  if hasattr(base, field)]:  # fmt: skip
        model = build(head="transformer")
        freeze(model, optim)
        optimizer, schedule = trainers(model, optim, 3 * optim.epochs, 3)
        assert {group["initial_lr"] for group in optimizer.param_groups} == {
            optim.tower_rate, optim.module_rate
        }  # fmt: skip
        before = model.head.transformer.resblocks[0].mlp["c_fc"].weight.detach().clone()
        for _ in take_steps(model, optimizer, schedule, range(5)):
            pass
        after = model.head.transformer.resblocks[0].mlp["c_fc"].weight
        assert after.isfinite().all()
        assert not torch.equal(after, before)


def test_clip4clips_recipe_is_clip4clips() -> None:
    from experiments import msrvtt

    optim = msrvtt.base.finetune
    model = on_meta(replace(msrvtt.base.model, head=Transformer(variant="reference")))
    freeze(model, optim)
    rates, decays = names_by(model, optim, "lr"), names_by(model, optim, "weight_decay")
    assert rates["clip.logit_scale"] == 1e-7
    assert rates["head.transformer.resblocks.0.attn.in_proj_weight"] == 1e-4
    assert decays["clip.logit_scale"] == decays["clip.visual.ln_post.weight"] == 0.2
    assert decays["clip.visual.ln_post.bias"] == 0.0
    assert "clip.visual.conv1.weight" not in rates


def test_actionclips_recipe_is_actionclips() -> None:
    from experiments import kinetics400

    optim = kinetics400.base.finetune
    model = build(head="transformer")
    optimizer, _ = trainers(model, optim, 50, 1)
    assert {g["betas"] for g in optimizer.param_groups} == {(0.9, 0.98)}
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.2}
    rates = names_by(model, optim, "lr")
    assert rates["clip.visual.conv1.weight"] == rates["clip.logit_scale"] == 5e-6
    assert rates["head.positions"] == 5e-5
