"""A batch in chunks gives every parameter the gradient of the whole batch."""

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from models import build, captions, clips
from torch import nn

from videoclip.layers import Blocks
from videoclip.towers import ResNet
from videoclip.training import grad_cache
from videoclip.training.contrast import Contrast
from videoclip.training.losses import contrastive, siglip
from videoclip.types import Batch, Frames, joined

BATCH = 7
MATCHES = torch.eye(BATCH, dtype=torch.bool)
MATCHES[0, 1] = MATCHES[1, 0] = True  # the same caption twice
CASES = {
    "images, clip loss": ({}, 1, contrastive),
    "images, siglip loss": ({"logit_bias": -10.0}, 1, siglip),
    "clips, lstm": ({"head": "lstm"}, 4, contrastive),
    "clips, transformer, tight": ({"head": "transformer", "scorer": "tight"}, 4, contrastive),
    "clips, shift, siglip": ({"mixer": "shift", "logit_bias": -5.0}, 4, siglip),
}


def with_dropout(model: nn.Module) -> nn.Module:
    """The model in training, with dropout in both towers and the head, which CLIP has not."""

    def drop(module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        return F.dropout(output, 0.3, module.training)

    model.clip.ln_final.register_forward_hook(drop)
    for block in model.clip.visual.transformer.resblocks:
        block.attn.register_forward_hook(drop)
    return model.train()


def batch(frames: int, dtype: torch.dtype) -> tuple[Frames, torch.Tensor]:
    """Clips of ragged length, and captions of which later chunks hold shorter ones."""
    mask = torch.arange(frames) < torch.randint(1, frames + 1, (BATCH, 1))
    mask[0] = True
    return Frames(clips(BATCH, frames).to(dtype), mask), captions(BATCH).flip(0)


def whole(model, frames, ids, matches, loss, *, chunk_size, autocast=nullcontext):
    """One graph over the whole batch. It embeds in chunks only to draw the same random numbers."""
    with autocast():
        text = joined([model.embed_text(part) for part in ids.split(chunk_size)])
        parts = zip(*(tensor.split(chunk_size) for tensor in frames), strict=True)
        video = joined([model.embed_video(Frames(*part)) for part in parts])
        scores = model.score(text, video)
    value = loss(scores.to(model.clip.logit_scale.dtype), matches)
    value.backward()
    return value.detach()


def cached(model, frames, ids, matches, loss, *, chunk_size, autocast=nullcontext):
    """What is tested: the same in chunks."""
    made = Batch(frames, ids, matches, ("",) * len(frames.mask))
    contrast = Contrast(model, made, loss, scores="whole", autocast=autocast)
    return grad_cache.backward(
        model, frames, ids, contrast, chunk_size=chunk_size, autocast=autocast
    )


def gradients(model: nn.Module, backward, seed: int = 3) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    torch.manual_seed(seed)
    loss = backward(model).item()
    return loss, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_same(found: dict, expected: dict, tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = max(1.0, gradient.abs().max().item())
        assert (found[name] - gradient).abs().max().item() <= tolerance * scale, name


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("case", CASES)
def test_every_gradient_is_the_whole_batchs(case: str, chunk_size: int) -> None:
    """In float64 to 1e-12, dropout included; the number of chunks plays no part."""
    slots, frames, loss = CASES[case]
    model = with_dropout(build(**slots)).double()
    frames, ids = batch(frames, torch.float64)
    run = partial(_run, frames, ids, loss, chunk_size)
    expected_loss, expected = gradients(model, partial(run, whole))
    found_loss, found = gradients(model, partial(run, cached))
    assert found_loss == pytest.approx(expected_loss, abs=1e-12)
    assert_same(found, expected, 1e-12)
    # A tight scorer has no temperature; everything else is trained by every loss.
    unused = {"clip.logit_scale"} if slots.get("scorer") == "tight" else set()
    assert found.keys() == {n for n, _ in model.named_parameters()} - unused
    assert any(found["clip.visual.proj"].flatten() != 0)


def _run(frames, ids, loss, chunk_size, backward, model, **options):
    return backward(model, frames, ids, MATCHES, loss, chunk_size=chunk_size, **options)


@pytest.mark.parametrize("case", CASES)
def test_float32_agrees_to_1e_6(case: str) -> None:
    slots, frames, loss = CASES[case]
    model = with_dropout(build(**slots))
    frames, ids = batch(frames, torch.float32)
    run = partial(_run, frames, ids, loss, 3)
    assert_same(
        gradients(model, partial(run, cached))[1],
        gradients(model, partial(run, whole))[1],
        1e-6,
    )


def test_without_dropout_it_is_the_models_own_forward() -> None:
    model = build(head="transformer").double().train()
    frames, ids = batch(4, torch.float64)

    def plain(model):
        loss = contrastive(model(frames, ids), MATCHES)
        loss.backward()
        return loss

    expected_loss, expected = gradients(model, plain)
    loss, found = gradients(model, partial(_run, frames, ids, contrastive, 2, cached), seed=4)
    assert loss == pytest.approx(expected_loss, abs=1e-12)
    assert_same(found, expected, 1e-12)


def test_the_temperature_is_counted_once() -> None:
    """open_clip multiplies its gradient by the number of chunks."""
    model = build(logit_bias=-10.0).double()
    frames, ids = batch(1, torch.float64)
    _, one = gradients(model, partial(_run, frames, ids, siglip, 7, cached))
    _, many = gradients(model, partial(_run, frames, ids, siglip, 1, cached))
    for name in ("clip.logit_scale", "clip.logit_bias"):
        assert one[name].abs() > 0
        torch.testing.assert_close(many[name], one[name], atol=1e-12, rtol=1e-12)


def test_gradients_add_to_those_that_are_there() -> None:
    model = build().double()
    frames, ids = batch(1, torch.float64)
    run = partial(_run, frames, ids, contrastive, 2, cached)
    _, once = gradients(model, run)
    once = {name: gradient.clone() for name, gradient in once.items()}
    run(model)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, 2 * once[name], atol=1e-12, rtol=1e-9)


def test_the_random_numbers_afterwards_are_those_of_the_whole_batch() -> None:
    model = with_dropout(build(scorer="tight"))
    frames, ids = batch(2, torch.float32)
    after = []
    for backward in (whole, cached):
        gradients(model, partial(_run, frames, ids, contrastive, 3, backward))
        after.append(torch.rand(4))
    assert torch.equal(*after)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_under_bfloat16_autocast(checkpointing: bool) -> None:
    model = with_dropout(build(head="transformer"))
    set_checkpointing(model, checkpointing)
    frames, ids = batch(4, torch.float32)
    autocast = partial(torch.autocast, "cpu", torch.bfloat16)
    run = partial(_run, frames, ids, contrastive, 3)
    _, expected = gradients(model, partial(run, whole, autocast=autocast))
    _, found = gradients(model, partial(run, cached, autocast=autocast))
    for name, gradient in expected.items():
        # bfloat16 has 8 bits. Of chunks the gradients of a weight are summed in float32.
        difference = (found[name] - gradient).abs().max()
        assert difference <= 0.01 * gradient.abs().max(), name
    assert found["clip.visual.proj"].dtype == torch.float32
    assert all(gradient.isfinite().all() for gradient in found.values())


@pytest.mark.parametrize("case", CASES)
def test_gradient_checkpointing_changes_no_gradient(case: str) -> None:
    slots, frames, loss = CASES[case]
    model = with_dropout(build(**slots)).double()
    frames, ids = batch(frames, torch.float64)
    run = partial(_run, frames, ids, loss, 3)
    _, expected = gradients(model, partial(run, whole))
    expected = {name: gradient.clone() for name, gradient in expected.items()}
    set_checkpointing(model, True)
    for backward in (whole, cached):
        assert_same(gradients(model, partial(run, backward))[1], expected, 1e-12)


def set_checkpointing(model: nn.Module, on: bool) -> None:
    for blocks in (m for m in model.modules() if isinstance(m, Blocks)):
        blocks.checkpoint(on)


def test_gradient_checkpointing_keeps_less() -> None:
    model = build(head="transformer")
    frames, ids = batch(4, torch.float32)
    kept = {}
    for on in (False, True):
        set_checkpointing(model, on)
        sizes = []

        def pack(tensor: torch.Tensor, sizes: list = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(frames, ids)
        kept[on] = sum(sizes)
    assert kept[True] < kept[False] / 3


@pytest.mark.parametrize("locked", ["visual", "text"])
def test_a_locked_tower_gets_no_gradient_and_is_not_embedded_in_vain(locked: str) -> None:
    model = build().double()
    frames, ids = batch(1, torch.float64)
    run = partial(_run, frames, ids, contrastive, 2)
    _, expected = gradients(model, partial(run, whole))
    expected = {name: gradient.clone() for name, gradient in expected.items()}
    visual = [n for n, _ in model.named_parameters() if n.startswith("clip.visual.")]
    frozen = {n for n, _ in model.named_parameters() if (n in visual) == (locked == "visual")}
    frozen -= {"clip.logit_scale"}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
        parameter.grad = None
    calls = []
    tower = model.clip.visual if locked == "visual" else model.clip.ln_final
    tower.register_forward_hook(lambda *_: calls.append(1))
    _, found = gradients(model, partial(run, cached))
    assert_same(found, {n: g for n, g in expected.items() if n not in frozen}, 1e-12)
    assert len(calls) == 4 + 1  # four chunks, and one to see that there is nothing to take back


def resnet() -> nn.Module:
    visual = ResNet(width=16, layers=(1, 1, 1, 1), image_size=32)
    return build(visual=visual, embedding=32).double().train()


def test_a_resnet_updates_its_running_averages_once_a_chunk() -> None:
    model, frames = resnet(), Frames(torch.randn(6, 1, 3, 32, 32).double(), torch.ones(6, 1).bool())
    twin = copy.deepcopy(model)
    ids, matches = captions(6), torch.eye(6, dtype=torch.bool)
    cached(model, frames, ids, matches, contrastive, chunk_size=3)
    with torch.no_grad():
        for part in frames.pixels.split(3):
            twin.embed_video(Frames(part, torch.ones(3, 1, dtype=torch.bool)))
    norm, expected = model.clip.visual.bn1, twin.clip.visual.bn1
    assert norm.num_batches_tracked == 2
    assert norm.track_running_stats
    torch.testing.assert_close(norm.running_mean, expected.running_mean)
    torch.testing.assert_close(norm.running_var, expected.running_var)


def test_a_resnet_in_evaluation_mode_is_the_whole_batchs() -> None:
    model = resnet().eval()
    frames = Frames(torch.randn(6, 1, 3, 32, 32).double(), torch.ones(6, 1).bool())
    found = {}
    for name, backward in (("whole", whole), ("chunks", cached)):
        _, gradient = gradients(
            model,
            lambda model, backward=backward: backward(
                model, frames, captions(6), torch.eye(6).bool(), contrastive, chunk_size=4
            ),
        )
        found[name] = {n: g.clone() for n, g in gradient.items()}
    assert_same(found["chunks"], found["whole"], 1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("case", CASES)
def test_dropout_is_replayed_on_a_gpu(case: str) -> None:
    slots, frames, loss = CASES[case]
    model = with_dropout(build(**slots)).double().cuda()
    frames, ids = batch(frames, torch.float64)
    frames, ids = Frames(*(part.cuda() for part in frames)), ids.cuda()
    matches = MATCHES.cuda()

    def run(backward, model):
        return backward(model, frames, ids, matches, loss, chunk_size=3)

    _, expected = gradients(model, partial(run, whole))
    expected = {name: gradient.clone() for name, gradient in expected.items()}
    assert_same(gradients(model, partial(run, cached))[1], expected, 1e-12)
