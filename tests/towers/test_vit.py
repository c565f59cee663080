"""The vision transformer: its last block is run for what is read, and only for that."""

from dataclasses import replace

import pytest
import torch
from models import MIXERS, build, clips

import videoclip
from videoclip.types import Frames


@torch.no_grad()
@pytest.mark.parametrize("mixer", MIXERS)
def test_the_last_block_is_run_for_what_is_read(mixer: str) -> None:
    model = build(mixer)
    rows = []
    blocks = model.clip.visual.transformer.resblocks
    for block in blocks:
        block.mlp["c_fc"].register_forward_hook(lambda *call: rows.append(call[1][0].shape[-2]))
    frames = Frames(clips(2, 3), torch.ones(2, 3, dtype=torch.bool))
    short = model.clip.visual(*frames, model.mixers)
    whole = model.clip.visual(*frames, model.mixers, keep_layers=1)
    assert whole.layers[0].shape == (2, 3, 5, 64)
    tokens = 5 if mixer != "joint" else 1 + 3 * 4
    assert rows == [tokens, 1, tokens, tokens]
    torch.testing.assert_close(
        short.frames.expand_as(whole.frames), whole.frames, atol=1e-5, rtol=0
    )


@torch.no_grad()
def test_patches_over_three_frames_start_as_patches_of_one() -> None:
    flat = build()
    deep = build(visual=replace(flat.config.visual, patch_frames=3))
    deep.start_from(flat.clip)
    video = clips(2, 4)
    torch.testing.assert_close(deep.encode_frames(video), flat.encode_frames(video))
    deep.clip.visual.conv2.weight[:, :, 0] += 0.1 * flat.clip.visual.conv1.weight
    later = video.clone()
    later[:, 2] += 1
    moved = (deep.encode_frames(later) - deep.encode_frames(video)).abs().amax((0, 2))
    assert (moved > 1e-4).tolist() == [False, False, True, True]  # a frame and the next one
    again = build(visual=deep.config.visual)
    again.start_from(deep.clip)
    assert torch.equal(again.encode_frames(video), deep.encode_frames(video))


@torch.no_grad()
def test_padding_does_not_reach_patches_over_three_frames() -> None:
    model = build(visual=replace(build().config.visual, patch_frames=3))
    torch.nn.init.normal_(model.clip.visual.conv2.weight, std=0.05)
    video, mask = clips(2, 5), torch.ones(2, 5, dtype=torch.bool)
    mask[0, 3:] = False
    noisy = video.clone()
    noisy[0, 3:] = torch.randn(2, 3, 16, 16)
    wanted = model.encode_frames(video[:1, :3])
    for padded in (video, noisy):
        torch.testing.assert_close(model.encode_frames(padded, mask)[:1, :3], wanted)
    assert not model.clip.visual.conv1.weight.requires_grad


@torch.no_grad()
def test_patches_over_three_frames_are_kept_and_are_no_model_of_transformers(tmp_path) -> None:
    model = build(visual=replace(build().config.visual, patch_frames=3))
    torch.nn.init.normal_(model.clip.visual.conv2.weight, std=0.05)
    model.save_pretrained(tmp_path / "deep")
    again = videoclip.load(tmp_path / "deep")
    video = clips(1, 3)
    assert torch.equal(again.encode_frames(video), model.encode_frames(video))
    assert not again.clip.visual.conv1.weight.requires_grad
    assert not (tmp_path / "deep" / "config.json").exists()
