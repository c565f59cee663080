"""The temporal shift: its slices, its ends, its gradient, and where it stands in a block."""

import pytest
import torch
from references import Sizes, our_model, plain_clip, ready, shifted, shifted_maps, with_shift
from torch import Tensor, nn

from videoclip.checkpoints.weights import load_exactly
from videoclip.layers import ResidualBlock
from videoclip.mixers import NoMixer, Shift
from videoclip.mixers.shift import TemporalShift


class Same(nn.Module):
    """A block that shows what comes into it."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens


def shift_of(tokens: Tensor, mask: Tensor | None = None, divisor: int = 8) -> Tensor:
    mixer = TemporalShift(Shift(placement="block", divisor=divisor), tokens.shape[-1])
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask
    return mixer(tokens, mask, Same())


def test_an_eighth_comes_from_the_next_frame_and_one_from_the_last() -> None:
    """The three slices, zeros at both ends, and a class token that stays (action.md, section 3)."""
    tokens = torch.randn(2, 5, 4, 16)
    found = shift_of(tokens)
    patches, moved = tokens[:, :, 1:], found[:, :, 1:]
    assert torch.equal(found[:, :, 0], tokens[:, :, 0])
    assert torch.equal(moved[:, :-1, :, :2], patches[:, 1:, :, :2])
    assert torch.equal(moved[:, 1:, :, 2:4], patches[:, :-1, :, 2:4])
    assert torch.equal(moved[..., 4:], patches[..., 4:])
    assert not moved[:, -1, :, :2].any()
    assert not moved[:, 0, :, 2:4].any()
    plainly = shifted(tokens.flatten(0, 1), 5).unflatten(0, (2, 5))
    assert torch.equal(found, plainly)
    assert torch.equal(shift_of(tokens, divisor=3)[..., 10:], tokens[..., 10:])


def test_the_gradient_is_the_shift_backwards() -> None:
    tokens = torch.randn(2, 5, 4, 16, requires_grad=True)
    weight = torch.randn(2, 5, 4, 16)
    (found,) = torch.autograd.grad((shift_of(tokens) * weight).sum(), tokens)
    swapped = torch.cat([weight[..., 2:4], weight[..., :2], weight[..., 4:]], -1)
    back = shift_of(swapped)  # what came from the next frame goes back to it
    back = torch.cat([back[..., 2:4], back[..., :2], back[..., 4:]], -1)
    assert torch.equal(found[:, :, 1:], back[:, :, 1:])
    assert torch.equal(found[:, :, 0], weight[:, :, 0])


def test_a_clip_s_last_real_frame_is_its_end() -> None:
    tokens, mask = torch.randn(1, 5, 4, 16), torch.tensor([[True] * 3 + [False] * 2])
    assert torch.equal(shift_of(tokens, mask)[:, :3], shift_of(tokens[:, :3]))


def test_too_few_channels_to_shift_are_refused() -> None:
    with pytest.raises(ValueError, match="divisor 8 moves no channel of 4"):
        Shift().build(4, 0)
    with pytest.raises(ValueError, match="divisor is 1; 2 already shifts every channel"):
        Shift(divisor=1)


@torch.no_grad()
def test_where_the_identity_path_runs() -> None:
    """Residual: only what the block adds sees the shift; block: the identity path as well."""
    tokens, mask = torch.randn(2, 5, 4, 64), torch.ones(2, 5, dtype=torch.bool)
    block = ready(ResidualBlock(64, 1))
    moved = shifted(tokens.flatten(0, 1), 5).unflatten(0, (2, 5))
    residual, whole = (TemporalShift(Shift(placement=p), 64) for p in ("residual", "block"))
    torch.testing.assert_close(whole(tokens, mask, block), block(moved))
    middle = tokens + block.attend(moved)
    torch.testing.assert_close(residual(tokens, mask, block), middle + block.think(middle))
    nn.init.zeros_(block.attn.out_proj.weight)
    nn.init.zeros_(block.attn.out_proj.bias)
    nn.init.zeros_(block.mlp["c_proj"].weight)
    nn.init.zeros_(block.mlp["c_proj"].bias)
    assert torch.equal(residual(tokens, mask, block), tokens)
    assert torch.equal(whole(tokens, mask, block), moved)


@pytest.mark.parametrize("placement", ["residual", "block"])
@pytest.mark.parametrize("layers", [(1, 2, 1, 2), (1, 2, 23, 1)])
@pytest.mark.parametrize("frames", [1, 4])
@torch.no_grad()
def test_a_resnet_with_it_gives_tsm_s_numbers(
    placement: str, layers: tuple[int, int, int, int], frames: int
) -> None:
    """open_clip's ResNet, its blocks or their first convolutions wrapped as TSM wraps them."""
    sizes = Sizes(width=8, image=64, resnet=layers)
    plain = ready(plain_clip(sizes))
    model = our_model(sizes, mixer=Shift(placement=placement))
    weights = {f"clip.{key}": value for key, value in plain.state_dict().items()}
    load_exactly(model, weights, "plain")
    video = torch.randn(2, frames, 3, 64, 64)
    with_shift(plain.visual, frames, placement)
    wanted = plain.visual(video.flatten(0, 1)).unflatten(0, (2, frames))
    torch.testing.assert_close(model.encode_frames(video), wanted, atol=1e-5, rtol=1e-4)
    other = our_model(sizes, mixer=NoMixer())
    other.load_state_dict(model.state_dict())
    assert (other.encode_frames(video) - wanted).abs().max() > 1e-4


def test_maps_are_shifted_as_tokens_are_and_padding_stays_out() -> None:
    """The maps are those of real frames alone; a frame's neighbor may be padding, which is zero."""
    mask = torch.tensor([[True, True, False, True], [True, True, True, True]])
    maps = torch.randn(7, 16, 3, 3, requires_grad=True)
    mixer = TemporalShift(Shift(placement="block"), 16)
    found = mixer.on_maps(maps, mask, Same())
    whole = torch.zeros(2, 4, 16, 3, 3)
    whole[mask] = maps.detach()
    wanted = shifted_maps(whole.flatten(0, 1), 4).unflatten(0, (2, 4))[mask]
    assert torch.equal(found, wanted)
    found[2].sum().backward()  # the frame behind the hole: nothing comes from before it
    reached = maps.grad.flatten(1).abs().sum(1) > 0
    assert reached.tolist() == [False, False, True, False, False, False, False]
