"""The modified ResNet: its start, its frames, and what it does not take."""

import pytest
import torch
from foreign import randomized
from models import HEADS, MIXERS, SCORERS, captions
from torch.nn import functional as F

import videoclip
from videoclip.checkpoints.named import architecture
from videoclip.config import from_json, to_json
from videoclip.mixers import Joint, Mixer, NoMixer, Shift
from videoclip.model import Model
from videoclip.towers import ResNet, Text, ViT
from videoclip.types import Frames

SMALL = Model(
    visual=ResNet(width=8, layers=(1, 2, 1, 1), image_size=32),
    text=Text(width=32, layers=2, context_length=12, vocabulary=100),
    embedding=32,
)


def build(**slots) -> videoclip.VideoCLIP:
    return randomized(Model(**(vars(SMALL) | slots)).build()).eval()


def clips(count: int = 2, frames: int = 4) -> torch.Tensor:
    return torch.randn(count, frames, 3, 32, 32)


MASK = torch.tensor([[True] * 4, [True, False, True, False]])


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("mixer", [NoMixer(), Shift(), Shift(placement="block")], ids=str)
def test_padding_reaches_neither_frames_nor_statistics(mode: str, mixer: Mixer) -> None:
    """In training batch normalization would mix padded frames into the real ones."""
    first, second = (build(mixer=mixer).train(mode == "train") for _ in range(2))
    second.load_state_dict(first.state_dict())
    video = clips()
    other = torch.where(MASK[:, :, None, None, None], video, 100 * torch.randn_like(video))
    ours, again = first.features(Frames(video, MASK)), second.features(Frames(other, MASK))
    assert torch.equal(ours.frames, again.frames)
    assert (ours.frames[~MASK] == 0).all()
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name
    counters = [v.item() for k, v in first.state_dict().items() if "num_batches" in k]
    assert set(counters) == {1 if mode == "train" else 0}


@torch.no_grad()
def test_a_clip_is_encoded_frame_by_frame() -> None:
    model, video = build(), clips()
    frames = model.encode_frames(video)
    for index in range(4):
        torch.testing.assert_close(frames[:, index], model.encode_image(video[:, index]))


@pytest.mark.parametrize("mixer", [name for name, member in MIXERS.items() if member.takes_maps])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("scorer", SCORERS)
def test_every_module_works_on_it(tmp_path, mixer: str, head: str, scorer: str) -> None:
    model = build(mixer=MIXERS[mixer](), head=HEADS[head](), scorer=SCORERS[scorer]()).train()
    frames = Frames(clips(3), torch.ones(3, 4, dtype=torch.bool))
    scores = model(frames, captions(3))
    (scores * torch.randn_like(scores)).sum().backward()  # a softmax would not see a bias of all
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert set(without) <= {"clip.logit_scale"}
    model.eval().save_pretrained(tmp_path)
    again = videoclip.load(tmp_path)
    assert again.config == model.config
    video, ids = clips(), captions()
    assert torch.equal(again.similarity(ids, video), model.similarity(ids, video))


def test_blocks_start_as_their_shortcuts() -> None:
    visual = ResNet(width=16, layers=(2, 2, 2, 2), image_size=64).build(32).eval()
    x = torch.randn(2, 64, 8, 8)
    torch.testing.assert_close(visual.layer1[1](x), F.relu(x))
    assert (visual.bn3.weight == 1).all(), "the stem's is not a block's"
    for name in "qkvc":
        weight = getattr(visual.attnpool, f"{name}_proj").weight
        assert weight.std().item() == pytest.approx(512**-0.5, rel=0.05)
    positions = visual.attnpool.positional_embedding
    assert positions.std().item() == pytest.approx(512**-0.5, rel=0.1)
    stem = visual.conv1.weight  # torch's own start: uniform within 1 / sqrt(inputs)
    assert stem.abs().max().item() == pytest.approx(27**-0.5, rel=0.05)


def test_what_it_does_not_take_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has no tokens for the mixer Joint\("):
        Model(visual=ResNet(), mixer=Joint())
    with pytest.raises(ValueError, match="image_size 100; choose a multiple of 32"):
        ResNet(image_size=100)
    model = build()
    with pytest.raises(ValueError, match=r"\(16, 16\) pixels, the tower was made for \(32, 32\)"):
        model.encode_video(torch.zeros(1, 2, 3, 16, 16))
    model.head.reads_layers = 2
    with pytest.raises(ValueError, match=r"keeps no layers \(2 asked for by the head\)"):
        model.encode_video(clips())


def test_its_configuration_is_told_apart_in_json() -> None:
    for model in (SMALL, Model(visual=ViT(layers=3)), architecture("RN50x4")):
        assert from_json(Model, to_json(model)) == model
    assert to_json(SMALL)["visual"]["kind"] == "resnet"
    # Written before there was a second tower.
    assert from_json(Model, {"visual": {"layers": 3}}) == Model(visual=ViT(layers=3))
