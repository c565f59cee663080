"""What half precision does to a step: against numpy, the references and the published figures."""

import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from models import build
from test_engine import batch
from test_optim import ACTIONCLIP, resnet, set_gradients, take_steps
from torch import nn

from videoclip.experiment import Optim
from videoclip.training.engine import Engine
from videoclip.training.optim import (
    BertAdam,
    autocast,
    freeze,
    half_parameters,
    keep_half,
    round_to_half,
    trainers,
)

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/precision.md"
TYPES = (torch.float32, torch.half, torch.bfloat16)


def half(value: np.ndarray | float) -> np.ndarray:
    return np.asarray(value, dtype=np.float16)


def bert_adam_in_half(
    weights: np.ndarray, gradients: list[np.ndarray], rates: list[float]
) -> np.ndarray:
    """The rule in numpy's half precision, every operation computed in float32 and rounded."""

    def single(value: np.ndarray) -> np.ndarray:
        return value.astype(np.float32)

    first = second = np.zeros_like(weights)
    for gradient, rate in zip(gradients, rates, strict=True):
        norm = half(np.sqrt((single(gradient) ** 2).sum(dtype=np.float64)))
        factor = min(half(1.0), half(1.0 / np.float32(half(np.float32(norm) + np.float32(1e-6)))))
        gradient = half(single(gradient) * np.float32(factor))
        first = half(single(half(single(first) * np.float32(0.9))) + single(gradient)
                     * np.float32(1 - 0.9))  # fmt: skip
        second = half(single(half(single(second) * np.float32(0.98))) + np.float32(1 - 0.98)
                      * single(gradient) * single(gradient))  # fmt: skip
        root = half(single(half(np.sqrt(single(second)))) + np.float32(1e-6))
        update = half(single(first) / single(root))
        update = half(single(update) + single(half(np.float32(0.2) * single(weights))))
        step = half(np.float32(rate) * single(update))
        weights = half(single(weights) - single(step))
    return weights


@pytest.mark.parametrize("size", [9e-5, 3e-3, 1.0])
def test_half_bert_adam_rounds_every_operation(size: float) -> None:
    """But for the last bit of a few in a thousand, where torch rounds once and numpy twice."""
    random = torch.Generator().manual_seed(0)
    weight = nn.Parameter((0.02 * torch.randn(100, 100, generator=random)).half().float())
    start = weight.detach().half().numpy()
    group = {"params": [weight], "lr": 1e-7, "weight_decay": 0.2, "half": True}
    optimizer = BertAdam([group])
    given, rates = [], [1e-7 * share for share in (0.0, 0.5, 1.0, 0.976, 0.9, 0.8, 0.7, 0.6)]
    for rate in rates:
        weight.grad = size * torch.randn(weight.shape, generator=random)
        given.append(weight.grad.half().numpy())
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    expected = bert_adam_in_half(start, given, rates)
    found = weight.detach().numpy()
    assert np.array_equal(found, found.astype(np.float16).astype(np.float32))
    assert (found == expected).mean() > 0.995
    np.testing.assert_allclose(found, expected.astype(np.float32), rtol=4 * 2**-10, atol=2**-23)
    assert (expected != start).any()


def test_what_is_held_in_half_precision() -> None:
    """OpenAI's convert_weights: no normalization, embedding, temperature; no new module."""
    model = build(mixer="joint", head="transformer", scorer="tight")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(parameter)].removeprefix("clip.") for parameter in half_parameters(model)}
    blocks = {
        f"{tower}transformer.resblocks.{number}.{part}"
        for tower, number, part in product(
            ("", "visual."),
            (0, 1),
            (
                "attn.in_proj_weight", "attn.in_proj_bias",
                *(f"{layer}.{kind}" for layer in ("attn.out_proj", "mlp.c_fc", "mlp.c_proj")
                  for kind in ("weight", "bias")),
            ),
        )
    }  # fmt: skip
    assert found == blocks | {"visual.conv1.weight", "visual.proj", "text_projection"}


def test_of_a_resnet_everything_but_normalization_is_held_in_half_precision() -> None:
    model = resnet()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(parameter)] for parameter in half_parameters(model)}
    visual = {name for name in names.values() if name.startswith("clip.visual.")}
    kept = {n for n in visual if ".bn" in n or "downsample.1" in n or "position" in n}
    assert {name for name in found if name in visual} == visual - kept


def is_half(tensor: torch.Tensor) -> bool:
    return torch.equal(tensor, tensor.half().float())


@pytest.mark.parametrize("optimizer", ["adamw", "bertadam", "sgd"])
def test_weights_stay_in_half_precision(optimizer: str) -> None:
    model = build(head="transformer")
    chosen = {id(parameter) for parameter in half_parameters(model)}
    assert not all(is_half(parameter) for parameter in half_parameters(model))
    optim = Optim(optimizer=optimizer, precision="reference-fp16", tower_rate=1e-3, freeze_layers=1)
    freeze(model, optim)
    optimizer, schedule = trainers(model, optim, 6)
    assert all(is_half(parameter) for parameter in half_parameters(model))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for _ in take_steps(model, optimizer, schedule, range(6)):
        pass
    for parameter, start in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, start) != parameter.requires_grad
        assert is_half(parameter) or id(parameter) not in chosen
        assert not is_half(parameter) or id(parameter) in chosen or not parameter.requires_grad


def test_half_rounded_masters_are_adamw_and_rounding() -> None:
    """ActionCLIP: to float32, AdamW, back to half precision; the rest is plain AdamW."""
    plain, rounded = build(head="transformer"), build(head="transformer")
    chosen = half_parameters(rounded)
    optim = replace(ACTIONCLIP, tower_rate=1e-3, warmup=0.2)
    theirs = trainers(rounded, replace(optim, precision="reference-fp16"), 8)
    twins = dict(zip(plain.parameters(), rounded.parameters(), strict=True))
    halved = [own for own, twin in twins.items() if any(twin is one for one in chosen)]
    for own in halved:
        own.data = own.data.half().float()
    ours = trainers(plain, optim, 8)
    for step in range(8):
        set_gradients(plain, step)
        set_gradients(rounded, step)
        for own in halved:
            own.grad = own.grad.half().float()
        for optimizer, schedule in (ours, theirs):
            optimizer.step()
            schedule.step()
        for own in halved:
            own.data = own.data.half().float()
    for own, twin in twins.items():
        assert torch.equal(own, twin)


def test_at_actionclips_rate_large_weights_never_move() -> None:
    """Action.md 1.1: half the spacing of numbers above 2**-6 is more than the learning rate."""
    model = build()
    weight = model.clip.visual.transformer.resblocks[0].mlp["c_fc"].weight
    with torch.no_grad():
        weight.normal_(std=0.02)
    optimizer, _ = trainers(model, replace(ACTIONCLIP, precision="reference-fp16"), 9)
    start = weight.detach().clone()
    for step in range(30):
        set_gradients(model, step, size=9e-5)
        for group in optimizer.param_groups:
            group["lr"] = 5e-6
        optimizer.step()
    moved, large = weight != start, start.abs() > 2**-6
    assert not moved[large].any()
    assert moved[~large].float().mean() > 0.5
    assert large.float().mean() == pytest.approx(0.43, abs=0.02)


def test_the_second_moment_of_clip4clip_is_lost() -> None:
    """Retrieval.md 1.1: gradients of an overall norm of 1 are too small to be squared."""
    weight = nn.Parameter(torch.zeros(1000))
    optimizer = BertAdam([{"params": [weight], "lr": 1e-7, "half": True}])
    weight.grad = 9e-5 * torch.randn(1000)
    optimizer.step()
    assert not optimizer.state[weight]["second"].any()
    assert optimizer.state[weight]["first"].any()


@pytest.mark.parametrize(
    ("precision", "enabled", "dtype"),
    [
        ("bf16", True, torch.bfloat16),
        ("fp32", False, torch.bfloat16),
        ("reference-fp16", False, torch.float16),
    ],
)
def test_the_arithmetic_on_a_cpu(precision: str, enabled: bool, dtype: torch.dtype) -> None:
    with autocast(torch.device("cpu"), precision):
        assert torch.is_autocast_enabled("cpu") == enabled
        assert torch.get_autocast_dtype("cpu") == dtype


# In the engine.


@pytest.mark.parametrize("precision", ["bf16", "fp32", "reference-fp16"])
@pytest.mark.parametrize("optimizer", ["adamw", "bertadam", "sgd"])
def test_every_arithmetic_trains(optimizer: str, precision: str) -> None:
    rate = 0.03 if optimizer == "sgd" else 1e-3
    optim = Optim(
        optimizer=optimizer,
        precision=precision,
        tower_rate=1e-5 if (optimizer, precision) == ("bertadam", "reference-fp16") else rate,
        module_rate=rate,
        warmup=0.0,
    )
    engine = Engine(build(head="transformer"), optim, steps=30)
    engine.train()
    losses = [engine.step(batch()).loss for _ in range(15)]
    assert losses[-1] < losses[0] / 2


def test_without_a_largest_norm_gradients_stay_as_they_are() -> None:
    norms = {}
    for max_norm in (None, 1e-3):
        engine = Engine(build(), Optim(precision="fp32", max_norm=max_norm), steps=2)
        norms[max_norm] = engine.step(batch()).gradient_norm
        after = nn.utils.get_total_norm([p.grad for p in engine.model.parameters()])
        assert after.item() == pytest.approx(max_norm or norms[None], rel=1e-3)
    assert norms[None] == pytest.approx(norms[1e-3])
    assert norms[None] > 1e-2


@pytest.mark.parametrize("optimizer", ["adamw", "bertadam"])
def test_a_restored_engine_goes_on_in_half_precision(optimizer: str, tmp_path) -> None:
    optim = Optim(optimizer=optimizer, precision="reference-fp16", tower_rate=1e-3, warmup=0.0)
    straight, again = (Engine(build(head="transformer"), optim, steps=6) for _ in range(2))
    for number in range(6):
        if number == 2:
            torch.save(straight.state(), tmp_path / "state")
        straight.step(batch(number))
    again.restore(torch.load(tmp_path / "state", weights_only=True))
    for number in range(2, 6):
        again.step(batch(number))
    for name, expected in straight.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], expected), name


# The figures of docs/precision.md.


def lines(start: str) -> list[list[str]]:
    """The cells of the document's table whose first line starts so, without that line."""
    found = re.search(
        rf"^\| {start}.*\n\|[-:|]+\n((?:\|.*\n)+)", DOCUMENT.read_text(), re.MULTILINE
    )
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found[1].splitlines()]


def value(cell: str) -> float:
    return float(cell.removesuffix(" %")) / (100 if "%" in cell else 1)


def clip_like(count: int) -> torch.Tensor:
    return 0.02 * torch.randn(count, generator=torch.Generator().manual_seed(0))


def lost(weights: torch.Tensor, rate: float, dtype: torch.dtype) -> float:
    """The share of weights that an update of one learning rate, either way, leaves as they are."""
    held = weights.to(dtype).float()
    after = [(held + sign * rate).to(dtype).float() == held for sign in (1, -1)]
    return torch.stack(after).float().mean().item()


def test_the_documents_share_of_lost_updates() -> None:
    weights = clip_like(200_000)
    table = lines("learning rate")
    assert [line[0] for line in table] == ["1e-7", "1e-6", "5e-6", "5e-5"]
    for rate, *shares in table:
        for share, dtype in zip(shares, TYPES, strict=True):
            assert lost(weights, float(rate), dtype) == pytest.approx(value(share), abs=0.003)


def run(recipe: str, gradients: str, steps: int = 300) -> tuple[float, float, float, float]:
    """What the document tells: update / rate, moved by a step, never moved, distance."""
    random = torch.Generator().manual_seed(1)
    weight, half = nn.Parameter(clip_like(20_000)), recipe.endswith("reference-fp16")
    rate = float(re.search(r"\de-\d", recipe)[0])
    group = {"params": [weight], "lr": rate, "weight_decay": 0.2, "half": half}
    if half:
        round_to_half(weight)
    if recipe.startswith("bertadam"):
        optimizer, eps = BertAdam([group]), 1e-6
    else:
        optimizer, eps = torch.optim.AdamW([group], betas=(0.9, 0.98), eps=1e-8), 1e-8
        if half:
            keep_half(optimizer)
    start, steady = weight.detach().clone(), torch.randn(weight.shape, generator=random)
    moved = 0.0
    for _ in range(steps):
        noise = torch.randn(weight.shape, generator=random)
        weight.grad = 9e-5 * (steady if gradients == "steady" else noise)
        before = weight.detach().clone()
        optimizer.step()
        moved += (weight != before).float().mean().item() / steps
    first, second = [part for part in optimizer.state[weight].values() if part.ndim]
    update = first / (second.sqrt() + eps)
    never = (weight == start).float().mean().item()
    distance = (weight - start).square().mean().sqrt().item()
    return update.square().mean().sqrt().item(), moved, never, distance


@pytest.mark.parametrize("line", lines("recipe"), ids=lambda line: f"{line[0]}, {line[1]}")
def test_the_documents_account_of_a_recipe(line: list[str]) -> None:
    recipe, gradients, *told = line
    update, moved, never, distance = run(recipe, gradients)
    assert update == pytest.approx(value(told[0]), rel=0.03)
    assert moved == pytest.approx(value(told[1]), abs=0.01)
    assert never == pytest.approx(value(told[2]), abs=0.01)
    assert distance == pytest.approx(value(told[3]), rel=0.03)
