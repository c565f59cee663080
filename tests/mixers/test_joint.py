"""Joint space-time attention against one long sequence through open_clip's blocks."""

import pytest
import torch
from models import build, clips
from references import Sizes, our_model, plain_clip, read, ready, tokens_of, words
from torch import Tensor, nn

from videoclip.checkpoints.weights import load_exactly
from videoclip.mixers import Joint

DEEP = Sizes(width=192, layers=3, patch=8, image=24)


def plainly(visual: nn.Module, time: Tensor, video: Tensor) -> Tensor:
    """Clips (V, T, 3, H, W) -> (V, D): patches get the time of their frame before ln_pre."""
    norm, visual.ln_pre = visual.ln_pre, nn.Identity()
    tokens = tokens_of(visual, video.flatten(0, 1)).unflatten(0, video.shape[:2])
    visual.ln_pre = norm
    patches = tokens[:, :, 1:] + time[:, None]
    x = norm(torch.cat([tokens[:, 0, :1], patches.flatten(1, 2)], dim=1))
    for block in visual.transformer.resblocks:
        x = block(x)
    return read(visual, x[:, 0])


@pytest.mark.parametrize(("sizes", "frames"), [(Sizes(), 4), (DEEP, 7), (DEEP, 1)])
@torch.no_grad()
def test_same_numbers_as_one_long_sequence(sizes: Sizes, frames: int) -> None:
    plain = ready(plain_clip(sizes))
    model = our_model(sizes, mixer=Joint(max_frames=frames))
    time = torch.randn(frames, sizes.width)
    weights = {f"clip.{key}": value for key, value in plain.state_dict().items()}
    load_exactly(model, {**weights, "mixers.0.time_embedding": time}, "plain")
    video = torch.randn(3, frames, 3, sizes.image, sizes.image)
    wanted = plainly(plain.visual, time, video)
    torch.testing.assert_close(model.encode_video(video), wanted / wanted.norm(dim=1)[:, None])
    torch.testing.assert_close(model.encode_frames(video)[:, 0], wanted, atol=1e-5, rtol=0)
    assert model.similarity(words(2, 9), video).shape == (2, 3)


@torch.no_grad()
def test_other_frame_counts_stretch_the_table_of_times() -> None:
    model = build("joint")
    entered = []
    model.clip.visual.ln_pre.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    table = model.mixers[0].time_embedding
    for frames in (1, 5, 8, 15):
        model.encode_video(torch.zeros(1, frames, 3, 16, 16))
        patch = model.clip.visual.positional_embedding[1]  # of a black frame nothing else is left
        times = entered.pop()[0, :, 1] - patch
        torch.testing.assert_close(times[0], table[0])
        if frames > 1:
            torch.testing.assert_close(times[-1], table[-1])
        if frames == 15:
            torch.testing.assert_close(times[::2], table)
            torch.testing.assert_close(times[1], (table[0] + table[1]) / 2)


@torch.no_grad()
def test_every_patch_sees_the_patches_of_all_frames() -> None:
    model, video = build("joint"), clips(1, 4)
    before = model.encode_video(video)
    for frame in range(4):
        other = video.clone()
        other[:, frame, :, 8:] += 1
        assert (model.encode_video(other) - before).abs().max() > 1e-4
    assert (model.encode_video(video[:, [1, 0, 2, 3]]) - before).abs().max() > 1e-4
