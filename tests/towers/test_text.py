"""The text tower: where a caption ends, and what is cut away."""

import pytest
import torch
from models import captions

from videoclip.towers import CLIP, Text, ViT

SMALL = {"width": 64, "layers": 2, "context_length": 12, "vocabulary": 100}


def build(**fields) -> CLIP:
    torch.manual_seed(0)
    return CLIP(ViT(width=64, layers=1, image_size=32), Text(**(SMALL | fields)), 32).eval()


@torch.no_grad()
def test_what_follows_the_longest_caption_is_cut_without_effect() -> None:
    tower, ids = build(), captions(6)
    assert ids.shape[1] == 12
    whole = []  # by the full length, as the reference projects compute it
    first = tower.transformer.resblocks[0]
    first.register_forward_hook(lambda *call: whole.append(call[2].shape[1]))
    expected = torch.cat([tower.encode_text(row[None]) for row in ids])
    torch.testing.assert_close(tower.encode_text(ids), expected, atol=1e-5, rtol=0)
    assert whole == [4, 5, 6, 7, 8, 9, 9]


@torch.no_grad()
def test_the_end_is_the_highest_id_or_the_one_named() -> None:
    highest, named = build(), build(end_of_text=99)
    ids = captions(4)
    assert torch.equal(highest.encode_text(ids), named.encode_text(ids))
    ids[:, 0], ids[:, 1] = 1, 50  # in a vocabulary with tokens after the end of text
    fifty = build(end_of_text=50)
    cut = ids.clone()
    cut[:, 2:] = 0
    torch.testing.assert_close(fifty.encode_text(ids), highest.encode_text(cut), atol=1e-6, rtol=0)


def test_captions_that_never_end_are_refused() -> None:
    ids = torch.tensor([[98, 99, 0], [98, 5, 6]])
    with pytest.raises(
        ValueError, match=r"captions \[1\] hold no end of text, which has the id 99"
    ):
        build(end_of_text=99).encode_text(ids)


def test_heads_and_hidden_width_may_be_given() -> None:
    block = build(attention_heads=4, mlp_width=100).transformer.resblocks[0]
    assert block.attn.heads == 4
    assert block.mlp["c_fc"].weight.shape == (100, 64)
    assert build().transformer.resblocks[0].attn.heads == 1


def test_the_temperature_is_clamped() -> None:
    clip = build()
    with torch.no_grad():
        clip.logit_scale.fill_(7.0)
    clip.clamp_logit_scale()
    assert clip.logit_scale.exp().item() == pytest.approx(100, rel=1e-6)
    with torch.no_grad():
        clip.logit_scale.fill_(1.0)
    clip.clamp_logit_scale()
    assert clip.logit_scale.item() == 1.0
