"""Two processes that share a batch are the one process that has the whole of it."""

import copy
import math
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from models import build, captions, clips
from processes import run
from torch import Tensor, nn

from videoclip import distributed
from videoclip.errors import OtherProcessError, VideoclipError
from videoclip.experiment import Optim
from videoclip.towers import ResNet
from videoclip.training.engine import Engine
from videoclip.types import Batch, Frames, Keys

SIZES = (13, 5, 1)
"""Samples of a batch: 7 for one process and 6 for the other, 3 and 2, 1 and none."""


class Case(NamedTuple):
    """A kind of training."""

    slots: dict[str, Any]
    frames: int
    loss: str
    texts: str = "captions"
    """captions: some twice. labels: of four classes. classes: all of them, in every process."""


CASES = {
    "pictures, clip": Case({}, 1, "clip"),
    "pictures, siglip": Case({"logit_bias": -10.0}, 1, "siglip"),
    "clips, loose": Case({"mixer": "shift", "head": "transformer"}, 4, "clip"),
    "clips, lstm": Case({"head": "lstm"}, 4, "clip"),
    "clips, tight": Case({"scorer": "tight"}, 4, "clip"),
    "actions, kl": Case({"head": "transformer"}, 4, "kl", "labels"),
    "actions, kl, mixed": Case({}, 4, "kl", "mixed"),
    "actions, ce": Case({}, 4, "ce", "classes"),
    "actions, ce, tight": Case({"scorer": "tight"}, 4, "ce", "classes"),
}
WAYS = {
    "whole": {},
    "own": {"scores": "own"},
    "whole, chunks": {"chunk_size": 6},
    "own, chunks": {"scores": "own", "chunk_size": 2},
}
EXACT, SINGLE = torch.float64, torch.float32
RUNS = [(way, SIZES[0], EXACT) for way in WAYS]
RUNS += [(way, size, EXACT) for way in ("whole", "own, chunks") for size in SIZES[1:]]
RUNS += [("whole", SIZES[0], SINGLE)]
OPTIM = Optim(tower_rate=1e-4, module_rate=1e-4, warmup=0.2, max_norm=None, precision="fp32")


def optim_of(case: Case, **changes: Any) -> Optim:
    return replace(OPTIM, loss=case.loss, **changes)


def model_of(case: Case, dtype: torch.dtype) -> nn.Module:
    """Without dropout, which draws for the rows that a process has."""
    model = build(**case.slots).to(dtype)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def whole(case: Case, number: int, dtype: torch.dtype, size: int = SIZES[0]) -> Batch:
    """Clips of ragged length with their texts: the batch that processes share."""
    torch.manual_seed(1000 + number)
    mask = torch.arange(case.frames) < torch.randint(1, case.frames + 1, (size, 1))
    frames = Frames(clips(size, case.frames).to(dtype), mask)
    labels = [f"class {n}" for n in torch.randint(4, (size,)).tolist()]
    names = tuple(f"v{number}-{i}" for i in range(size))
    if case.texts == "classes":
        keys = Keys.of([f"class {n}" for n in range(4)], labels, shared=True)
    elif case.texts == "captions":
        texts = [f"caption {i // 2 if i < 4 else i}" for i in range(size)]
        keys = Keys.of(texts, texts)
    else:
        keys = Keys.of(labels, labels)
    if case.texts == "mixed":
        weight = torch.rand(size, 1).to(torch.float64)
        clip = torch.cat([keys.clip, keys.clip.flip(0)], dim=1)
        keys = keys._replace(clip=clip, weight=torch.cat([weight, 1 - weight], dim=1))
    return Batch(frames, captions(len(keys.text)), keys.matches(), names, keys)


def part(batch: Batch) -> Batch:
    """This process's share of a batch, padded to its own longest clip."""
    rows = distributed.share(range(len(batch.names)))
    rows = slice(rows.start, rows.stop)
    mask = batch.frames.mask[rows]
    longest = int(mask.sum(1).max()) if len(mask) else 1
    keys, texts = batch.keys, slice(None) if batch.keys.shared else rows
    keys = Keys(keys.text[texts], keys.clip[rows], keys.weight[rows], keys.shared)
    frames = Frames(batch.frames.pixels[rows, :longest], mask[:, :longest])
    return Batch(frames, batch.ids[texts], keys.matches(), batch.names[rows], keys)


def gradients(
    case: Case, dtype: torch.dtype, size: int, **changes: Any
) -> tuple[Any, dict[str, Tensor]]:
    """What a step says of itself, and every gradient."""
    model = model_of(case, dtype)
    engine = Engine(model, optim_of(case, **changes), steps=10)
    engine.train()
    step = engine.step(part(whole(case, 0, dtype, size)))
    return step, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def trained(case: Case, dtype: torch.dtype, **changes: Any) -> dict[str, Tensor]:
    """The weights after ten steps, of which the third has no sample."""
    model = model_of(case, dtype)
    engine = Engine(model, optim_of(case, max_norm=1.0, **changes), steps=10)
    engine.train()
    for number in range(10):
        made = engine.step(part(whole(case, number, dtype, 0 if number == 2 else SIZES[0])))
        assert (made is None) == (number == 2)
    return model.state_dict()


def everything(_: None) -> dict[Any, Any]:
    """What the processes find; one start of them serves all tests."""
    found: dict[Any, Any] = {}
    for name, case in CASES.items():
        for way, size, dtype in RUNS:
            found[name, way, size, dtype] = gradients(case, dtype, size, **WAYS[way])
        for dtype in (EXACT, SINGLE):
            found[name, dtype] = trained(case, dtype)
    return found | {"bad step": bad_step(), "statistics": statistics()}


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict[Any, Any]]:
    return run(everything, None, tmp_path_factory.mktemp("two"))


def assert_same(found: dict, expected: dict, dtype: torch.dtype) -> None:
    """In float64 to 1e-10 of a tensor's largest value; in float32 to 1e-5 of the largest of all.

    What is small beside others is there a difference of sums, which two processes round otherwise.
    """
    assert found.keys() == expected.keys()
    largest = max(value.abs().max().item() for value in expected.values())
    for name, value in expected.items():
        scale = max(value.abs().max().item(), 1e-3 * largest)
        bound = 1e-10 * scale if dtype == EXACT else 1e-5 * largest
        assert (found[name] - value).abs().max().item() <= bound, name


@pytest.mark.parametrize(("way", "size", "dtype"), RUNS)
@pytest.mark.parametrize("name", CASES)
def test_loss_and_every_gradient_are_those_of_one_process(
    found, name: str, way: str, size: int, dtype: torch.dtype
) -> None:
    step, expected = gradients(CASES[name], dtype, size)
    tolerance = 1e-10 if dtype == EXACT else 1e-6
    near = partial(pytest.approx, rel=tolerance, abs=tolerance)
    for two in found:
        other, gradient = two[name, way, size, dtype]
        assert other.loss == near(step.loss)
        assert other.gradient_norm == near(step.gradient_norm)
        assert other.learning_rate == step.learning_rate
        assert other.samples == size
        assert_same(gradient, expected, dtype)


@pytest.mark.parametrize("dtype", [EXACT, SINGLE])
@pytest.mark.parametrize("name", CASES)
def test_ten_steps_lead_to_the_same_weights(found, name: str, dtype: torch.dtype) -> None:
    expected = trained(CASES[name], dtype)
    for two in found:
        assert_same(two[name, dtype], expected, dtype)


def basics(_: None) -> dict[str, Any]:
    """What the helpers give in this process, of three."""
    rank = distributed.rank()
    rows = torch.arange(2.0 * rank).view(rank, 2) + 10 * rank  # none, one and two rows
    leaf = rows.clone().requires_grad_()
    gathered = distributed.gather(leaf)
    ((rank + 1) * gathered.square()).sum().backward()
    nothing = torch.zeros(0, 1, dtype=torch.bool) if rank == 0 else rows.int()
    torch.manual_seed(7)
    with distributed.own_random_numbers(torch.device("cpu")):
        own = torch.rand(2)
    return {
        "who": (rank, distributed.world_size(), distributed.main_process()),
        "share": [list(distributed.share(range(n))) for n in range(9)],
        "gathered": gathered.detach(),
        "gradient": leaf.grad,
        "rows": rows,
        "gather_rows": distributed.gather_rows(nothing),
        "objects": distributed.gather_objects({"rank": rank}),
        "agree": (distributed.agree(rank == 1), distributed.agree(False)),
        "numbers": (distributed.largest(3 * rank), distributed.mean(rank)),
        "not a number": distributed.mean(math.nan if rank == 2 else 1.0),
        "own": own,
        "together": torch.rand(2),
        "on_main": distributed.on_main(distributed.rank),
        "failed": outcome(distributed.on_main, fail),
        "alike": type(distributed.alike("")),
        "afterwards": distributed.gather_objects(rank),
    }


def fail() -> None:
    raise VideoclipError("the disk is full")


def outcome(function: Any, *arguments: Any) -> tuple[type, str]:
    """The error that a call ends with."""
    try:
        function(*arguments)
    except Exception as error:
        return type(error), str(error)
    return type(None), ""


def test_the_helpers_of_three_processes(tmp_path) -> None:
    told = run(basics, None, tmp_path, count=3)
    assert [one["who"] for one in told] == [(0, 3, True), (1, 3, False), (2, 3, False)]
    for number in range(9):
        shares = [one["share"][number] for one in told]
        assert [item for one in shares for item in one] == list(range(number))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    rows = torch.cat([one["rows"] for one in told])
    for one in told:
        assert torch.equal(one["gathered"], rows)
        assert torch.equal(one["gather_rows"], rows.int())
        torch.testing.assert_close(one["gradient"], (1 + 2 + 3) * 2 * one["rows"])
        assert one["objects"] == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
        assert one["agree"] == (True, False)
        assert one["numbers"] == (6, 1.0)
        assert math.isnan(one["not a number"])
        assert torch.equal(one["together"], told[0]["together"])
        assert one["on_main"] == 0
        assert one["afterwards"] == [0, 1, 2]
    assert not torch.equal(told[0]["own"], told[1]["own"])
    silent = (OtherProcessError, "the disk is full")
    assert [one["failed"] for one in told] == [(VideoclipError, "the disk is full"), silent, silent]
    assert [one["alike"] for one in told] == [VideoclipError, OtherProcessError, OtherProcessError]


def bad_step() -> dict[str, Any]:
    """A sample of the other process that is no number, and weights that started differently."""
    case = CASES["pictures, clip"]
    model = model_of(case, SINGLE)
    with torch.no_grad():
        model.clip.visual.proj.add_(distributed.rank())
    engine = Engine(model, optim_of(case), steps=10)
    engine.train()
    started = copy.deepcopy(model.state_dict())
    batch = whole(case, 0, SINGLE)
    batch.frames.pixels[SIZES[0] - 1] = math.nan
    fault = engine.step(part(batch)).fault
    unchanged = all(torch.equal(v, started[n]) for n, v in model.state_dict().items())
    return {"started": started, "fault": fault, "unchanged": unchanged}


def test_a_bad_step_is_refused_by_all(found) -> None:
    one, two = (one["bad step"] for one in found)
    assert one["unchanged"]
    assert two["unchanged"]
    assert one["fault"] == two["fault"] == "the loss is nan"
    for name, value in one["started"].items():
        assert torch.equal(value, two["started"][name]), name


def statistics() -> dict[str, Tensor]:
    """The running averages of a ResNet after a step."""
    visual = ResNet(width=16, layers=(1, 1, 1, 1), image_size=32)
    model = build(visual=visual)
    engine = Engine(model, OPTIM, steps=10)
    engine.train()
    batch = whole(CASES["pictures, clip"], 0, SINGLE)
    pixels = batch.frames.pixels.repeat(1, 1, 1, 2, 2)
    mine = part(batch._replace(frames=batch.frames._replace(pixels=pixels)))
    alone = build(visual=visual).train()
    alone.embed_video(mine.frames)
    engine.step(mine)
    norms = {"shared": model.clip.visual.bn1, "alone": alone.clip.visual.bn1}
    return {name: norm.running_mean for name, norm in norms.items()}


def test_running_averages_are_the_mean_of_all_processes(found) -> None:
    one, two = (one["statistics"] for one in found)
    assert not torch.equal(one["alone"], two["alone"])
    assert torch.equal(one["shared"], two["shared"])
    torch.testing.assert_close(one["shared"], (one["alone"] + two["alone"]) / 2)
