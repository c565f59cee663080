"""Every head against tensors that the reference code of CLIP4Clip computed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from references import SLOTS, Clip4Clip, Sizes, from_clip4clip, our_model, ready, words
from safetensors.torch import load_file

from videoclip.checkpoints.weights import load_exactly
from videoclip.heads import Transformer
from videoclip.model import Model, VideoCLIP
from videoclip.scorers import Cosine
from videoclip.types import Features

OTHERS = [
    (Sizes(width=192, layers=3, patch=8, image=24, text_layers=4, context=30), 5, 9, 1),
    (Sizes(width=64, text_width=192, embedding=192), 9, 24, 3),
    (Sizes(layers=1, text_layers=1), 1, 4, 2),
]
"""Sizes, frames, words and the head's layers; the second one starts deeper than its text tower."""


def reference_model(shared: Path, name: str, patches: str = "2d") -> VideoCLIP:
    weights = torch.load(shared / f"golden/clip4clip/{name}-{patches}.bin", weights_only=True)
    model = our_model(Sizes(), patch_frames=3 if patches == "3d" else 1, **SLOTS[name])
    load_exactly(model, from_clip4clip(weights, name), name)
    return model


@pytest.mark.parametrize(("name", "patches"), [*((n, "2d") for n in SLOTS), ("meanP", "3d")])
@torch.no_grad()
def test_same_numbers_as_the_reference_code(shared: Path, name: str, patches: str) -> None:
    model = reference_model(shared, name, patches)
    golden = load_file(shared / f"golden/clip4clip/{name}-{patches}.expected.safetensors")
    ids, video, mask = golden["ids"].long(), golden["video"], golden["mask"]
    text = model.encode_text(ids)
    frames = model.encode_frames(video, mask)
    similarity = model.similarity(ids, video, mask)
    torch.testing.assert_close(text, golden["text_features"], atol=1e-5, rtol=0)
    torch.testing.assert_close(frames, golden["frame_features"], atol=1e-5, rtol=0)
    torch.testing.assert_close(similarity, golden["similarity"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_the_variance_floor_is_seen(shared: Path) -> None:
    """The golden tensors must catch the wrong epsilon, or the test above proves less."""
    model = reference_model(shared, "seqTransf")
    golden = load_file(shared / "golden/clip4clip/seqTransf-2d.expected.safetensors")
    tiny = golden["video"] * 0 + 1e-4 * torch.randn_like(golden["video"])
    frames = model.encode_frames(tiny) * 1e-4
    head = model.head
    features = Features(frames, torch.ones(frames.shape[:2], dtype=torch.bool))
    reference = head(features).tokens
    fixed = Model(
        visual=model.config.visual,
        text=model.config.text,
        embedding=128,
        head=Transformer(layers=2),
        scorer=Cosine(),
    ).build()
    fixed.load_state_dict(model.state_dict())
    assert (fixed.head(features).tokens - reference).abs().max() > 1e-3


@pytest.mark.parametrize(("name", "patches"), [*((n, "2d") for n in SLOTS), ("meanP", "3d")])
@torch.no_grad()
def test_the_plain_version_is_the_reference_code_s(shared: Path, name: str, patches: str) -> None:
    """What other sizes are compared with, at the sizes of the golden tensors."""
    weights = torch.load(shared / f"golden/clip4clip/{name}-{patches}.bin", weights_only=True)
    golden = load_file(shared / f"golden/clip4clip/{name}-{patches}.expected.safetensors")
    plain = Clip4Clip(Sizes(), name, 2, patches == "3d").eval()
    plain.load_state_dict({key: value.float() for key, value in weights.items()})
    found = plain.similarity(golden["ids"].long(), golden["video"], golden["mask"].bool())
    torch.testing.assert_close(found, golden["similarity"], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("sizes", "frames", "length", "layers"), OTHERS)
@pytest.mark.parametrize("name", SLOTS)
@pytest.mark.parametrize("threefold", [False, True])
@torch.no_grad()
def test_same_numbers_in_other_sizes(
    name: str, threefold: bool, sizes: Sizes, frames: int, length: int, layers: int
) -> None:
    """Other widths, depths, frames and words than the golden tensors', every pair by itself."""
    plain = ready(Clip4Clip(sizes, name, layers, threefold))
    slots = dict(SLOTS[name])
    if name == "seqTransf":
        slots["head"] = replace(slots["head"], layers=layers, max_frames=sizes.context)
    if name == "tightTransf":
        slots["scorer"] = replace(slots["scorer"], layers=layers, max_tokens=sizes.context)
    model = our_model(sizes, patch_frames=3 if threefold else 1, **slots)
    load_exactly(model, from_clip4clip(plain.state_dict(), name), name)
    ids, video = words(5, length), torch.randn(4, frames, 3, sizes.image, sizes.image)
    mask = torch.arange(frames) < torch.tensor([frames, 1, frames // 2 + 1, frames])[:, None]
    video *= mask[:, :, None, None, None]  # as the reference pads
    wanted = plain.similarity(ids, video, mask)
    assert wanted.std() > 0.01, "scores that are all alike would prove nothing"
    torch.testing.assert_close(
        model.encode_frames(video, mask), plain.frames(video), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(model.similarity(ids, video, mask), wanted, atol=1e-4, rtol=0)


def test_heads_start_from_the_first_blocks_of_the_text_tower() -> None:
    """As many as both have; what the text tower has none of starts at N(0, 0.02)."""
    sizes = Sizes(text_layers=3)
    base = our_model(sizes).clip
    for slots in ({"head": Transformer(layers=2)}, {"head": Transformer(layers=5)}):
        model = our_model(sizes, **slots)
        model.start_from(base)
        blocks = model.head.transformer.resblocks
        for ours, theirs in zip(blocks, base.transformer.resblocks, strict=False):
            for name, value in theirs.state_dict().items():
                assert torch.equal(ours.state_dict()[name], value), name
        for block in blocks[3:]:
            assert block.mlp["c_fc"].weight.std().item() == pytest.approx(0.02, rel=0.02)
            assert not block.mlp["c_fc"].bias.any()
        assert torch.equal(model.head.positions, base.positional_embedding)
