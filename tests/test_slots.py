"""What every temporal module must do; a new file in a slot's folder is tested by being there."""

import copy
import inspect

import pytest
import torch
from models import COMBINATIONS, HEADS, MIXERS, SCORERS, SIZE, build, captions, clips

from videoclip.config import SLOTS, from_json, kind, members, to_json
from videoclip.heads import LSTM, ClassToken, Convolution, Mean, Transformer
from videoclip.mixers import Shift
from videoclip.scorers import Tight
from videoclip.training.losses import contrastive
from videoclip.types import Frames

EACH = [("mixer", m) for m in MIXERS] + [("head", h) for h in HEADS]
EACH += [("scorer", s) for s in SCORERS]
VARIANTS = [
    Shift(placement="block"),
    Mean(average="plain"),
    LSTM(average="plain", layers=2),
    Convolution(average="plain", variant="reference"),
    Convolution(variant="reference"),
    Transformer(average="plain", start="random", variant="reference"),
    Tight(variant="reference"),
]
"""What released models have, and what modules do not have by themselves."""


def similarity(model, video, mask):
    torch.manual_seed(1)
    return model.similarity(captions(), video, mask)


@pytest.mark.parametrize(("mixer", "head", "scorer"), COMBINATIONS)
@torch.no_grad()
def test_all_combinations_score_texts_with_videos(mixer: str, head: str, scorer: str) -> None:
    model = build(mixer, head, scorer)
    video, mask = clips(3), torch.ones(3, 5, dtype=torch.bool)
    assert model.encode_video(video, mask).shape == (3, 32)
    assert model.encode_frames(video).shape == (3, 1 if mixer == "joint" else 5, 32)
    scores = similarity(model, video, mask)
    assert scores.shape == (4, 3)
    assert scores.isfinite().all()


@pytest.mark.parametrize(("mixer", "head", "scorer"), COMBINATIONS)
@torch.no_grad()
def test_padding_and_neighbors_in_the_batch_never_leak(mixer: str, head: str, scorer: str) -> None:
    model = build(mixer, head, scorer)
    video = clips(3, 6)
    lengths = [6, 3, 1]
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    scores = similarity(model, video, mask)
    other = torch.where(mask[:, :, None, None, None], video, 100 * torch.randn_like(video))
    torch.testing.assert_close(similarity(model, other, mask), scores, atol=1e-5, rtol=1e-5)
    for row, length in enumerate(lengths):
        alone = similarity(model, video[row : row + 1, :length], mask[row : row + 1, :length])
        torch.testing.assert_close(alone, scores[:, row : row + 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("member", VARIANTS, ids=str)
@pytest.mark.parametrize("lengths", [(6, 3, 1), (6, 3, 3)])
@torch.no_grad()
def test_padding_never_leaks_in_other_variants(member: object, lengths: tuple[int, ...]) -> None:
    slot = next(slot for slot, base in SLOTS.items() if isinstance(member, base))
    model, video = build(**{slot: member}), clips(3, 6)
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    scores = similarity(model, video, mask)
    other = torch.where(mask[:, :, None, None, None], video, 100 * torch.randn_like(video))
    torch.testing.assert_close(similarity(model, other, mask), scores, atol=1e-5, rtol=1e-5)
    for row, length in enumerate(lengths):
        alone = similarity(model, video[row : row + 1, :length], None)
        torch.testing.assert_close(alone, scores[:, row : row + 1], atol=1e-5, rtol=1e-5)


COMBINED = [dict(zip(SLOTS, names, strict=True)) for names in COMBINATIONS]
ALONE = [{next(s for s, b in SLOTS.items() if isinstance(one, b)): one} for one in VARIANTS]


@pytest.mark.parametrize("members", COMBINED + ALONE, ids=lambda m: "-".join(map(str, m.values())))
def test_an_empty_clip_gives_no_nan_and_changes_no_neighbor(members: dict) -> None:
    """Neither scores nor gradients: loaders give none, and one must not spoil a step."""
    model, video = build(**members), clips(4, 6)
    mask = torch.arange(6) < torch.tensor([6, 0, 1, 3])[:, None]

    def scored(rows: list[int]) -> torch.Tensor:
        torch.manual_seed(1)
        return model(Frames(video[rows], mask[rows]), captions())

    with torch.no_grad():
        whole = scored([0, 1, 2, 3])
        torch.testing.assert_close(whole[:, [0, 2, 3]], scored([0, 2, 3]), atol=1e-5, rtol=1e-5)
    model.train()
    loss = contrastive(scored([0, 1, 2, 3]), torch.eye(4, dtype=torch.bool))
    loss.backward()
    assert loss.isfinite()
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert found
    assert all(gradient.isfinite().all() for gradient in found)


@pytest.mark.parametrize(("slot", "name"), EACH)
@torch.no_grad()
def test_a_hole_in_the_mask_hides_its_frame(slot: str, name: str) -> None:
    model = build(**{slot: name})
    video = clips(2, 5)
    mask = torch.tensor([[True, False, True, True, False], [True, True, False, False, True]])
    other = torch.where(mask[:, :, None, None, None], video, 100 * torch.randn_like(video))
    scores, again = similarity(model, video, mask), similarity(model, other, mask)
    torch.testing.assert_close(again, scores, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("slot", "name"), EACH)
def test_gradients_reach_every_parameter(slot: str, name: str) -> None:
    model = build(**{slot: name}).train()
    frames = Frames(clips(4), torch.ones(4, 5, dtype=torch.bool))
    contrastive(model(frames, captions(4)), torch.eye(4, dtype=torch.bool)).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    # Tight fusion has no temperature, as in the reference, nor has the plain product.
    assert set(without) <= ({"clip.logit_scale"} if name in ("tight", "dot") else set())


@pytest.mark.parametrize(("slot", "name"), EACH)
@pytest.mark.parametrize("frames", [1, 2, 90])
@torch.no_grad()
def test_any_number_of_frames(slot: str, name: str, frames: int) -> None:
    model = build(**{slot: name})
    assert similarity(model, clips(1, frames), None).isfinite().all()


@pytest.mark.parametrize(("slot", "name"), EACH)
def test_configuration_and_weights_survive_a_folder(tmp_path, slot: str, name: str) -> None:
    import videoclip

    model = build(**{slot: name})
    model.save_pretrained(tmp_path)
    again = videoclip.load(tmp_path)
    assert again.config == model.config
    assert not again.training
    video, mask = clips(), None
    assert torch.equal(similarity(again, video, mask), similarity(model, video, mask))


@pytest.mark.parametrize(("slot", "name"), EACH)
def test_every_member_is_documented_and_survives_json(slot: str, name: str) -> None:
    member = members(SLOTS[slot])[name]
    assert inspect.getdoc(member)
    assert inspect.getmodule(member).__doc__
    assert from_json(SLOTS[slot], to_json(member())) == member()


def test_names_are_unique_over_all_slots() -> None:
    names = [kind(member) for slot in SLOTS.values() for member in members(slot).values()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("slot", "name", "sees_order"),
    [
        ("mixer", "none", False),
        ("head", "mean", False),
        ("scorer", "cosine", False),
        ("scorer", "dot", False),
        ("head", "lstm", True),
        ("head", "transformer", True),
        ("head", "convolution", True),
        ("head", "class_token", True),
        ("scorer", "tight", True),
        ("mixer", "shift", True),
        ("mixer", "joint", True),
    ],
)
@torch.no_grad()
def test_which_modules_see_the_order_of_frames(slot: str, name: str, sees_order: bool) -> None:
    model = build(**{slot: name})
    video = clips(2, 6)
    scores, turned = similarity(model, video, None), similarity(model, video.flip(1), None)
    assert torch.allclose(scores, turned, atol=1e-5) != sees_order


@pytest.mark.parametrize(("mixer", "head", "scorer"), COMBINATIONS)
@torch.no_grad()
def test_bfloat16_is_near_and_scores_are_never_rounded(mixer: str, head: str, scorer: str) -> None:
    model, video = build(mixer, head, scorer), clips(4, 5)
    scores = similarity(model, video, None)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = similarity(model, video, None)
    assert rounded.dtype == torch.float32
    assert (rounded - scores).abs().max() < 0.2 * scores.std()


@pytest.mark.parametrize(("slot", "name"), EACH)
def test_a_seed_gives_the_same_new_module(slot: str, name: str) -> None:
    first, second = build(**{slot: name}), build(**{slot: name})
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key])


@torch.no_grad()
def test_pixels_may_be_uint8() -> None:
    model = build()
    video = torch.randint(0, 256, (2, 3, 3, SIZE, SIZE), dtype=torch.uint8)
    mean, std = (
        torch.tensor(x).view(3, 1, 1) for x in (model.config.pixels.mean, model.config.pixels.std)
    )
    normalized = (video / 255 - mean) / std
    torch.testing.assert_close(model.encode_video(video), model.encode_video(normalized))
    image = model.encode_image(video[:, 0])
    torch.testing.assert_close(image, model.encode_frames(video)[:, 0])


def test_wrong_shapes_are_refused_with_both_values() -> None:
    model = build()
    with pytest.raises(ValueError, match=r"\(2, 3, 16, 16\).*\(M, T, 3, H, W\)"):
        model.encode_video(torch.zeros(2, 3, 16, 16))
    with pytest.raises(ValueError, match="no real frame"):
        model.encode_video(clips(2, 3), torch.tensor([[True] * 3, [False] * 3]))
    with pytest.raises(ValueError, match=r"\(2, 4\)"):
        model.encode_video(clips(2, 3), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"\(8, 8\) pixels"):
        model.encode_video(torch.zeros(1, 2, 3, 8, 8))
    with pytest.raises(ValueError, match="12"):
        model.encode_text(torch.zeros(1, 40, dtype=torch.long))


def test_settings_that_cannot_be_built_are_refused_with_both_values() -> None:
    with pytest.raises(ValueError, match="layers is 0 and max_tokens 77"):
        Tight(layers=0)
    with pytest.raises(ValueError, match="a width of 36 cannot be split into 8 attention heads"):
        ClassToken().build(36)
    with pytest.raises(ValueError, match="a width of 32 cannot be split into 5 attention heads"):
        Transformer(attention_heads=5).build(32)


def test_new_modules_start_from_the_text_tower() -> None:
    base = build().clip
    for slot, name in (("head", "transformer"), ("scorer", "tight")):
        model = build(**{slot: name})
        module = getattr(model, slot)
        before = copy.deepcopy(module.state_dict())
        model.start_from(base)
        torch.testing.assert_close(
            module.transformer.resblocks[0].attn.in_proj_weight,
            base.transformer.resblocks[0].attn.in_proj_weight,
        )
        torch.testing.assert_close(module.positions[:12], base.positional_embedding)
        assert torch.equal(module.positions[12:], before["positions"][12:])
