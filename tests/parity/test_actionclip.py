"""Every head and the shift against tensors that the reference code of ActionCLIP computed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from references import HEADS, ActionClip, Sizes, from_actionclip, our_model, ready, words
from safetensors.torch import load_file

from videoclip.checkpoints.weights import load_exactly
from videoclip.heads import ClassToken, Convolution, Transformer
from videoclip.mixers import Shift
from videoclip.model import VideoCLIP
from videoclip.training.losses import divergence
from videoclip.types import Features

FILES = [*HEADS, "meanP-tsm", "Transf-tsm"]
OTHERS = [
    (Sizes(width=192, layers=3, patch=8, image=24, embedding=192), 7),
    (Sizes(width=64, text_layers=3, embedding=64), 3),
    (Sizes(), 1),
]
"""Sizes and frames. The heads of Transf are as many as the text tower's, whatever its width."""


def reference_model(shared: Path, file: str) -> VideoCLIP:
    name = file.removesuffix("-tsm")
    saved = torch.load(shared / f"golden/actionclip/{file}.pt", weights_only=True)
    fusion = saved.get("fusion_model_state_dict", {})
    shift = Shift(placement="block") if file.endswith("-tsm") else None
    model = our_model(Sizes(), HEADS[name], mixer=shift)
    load_exactly(model, from_actionclip(saved["model_state_dict"], fusion, name), file)
    return model


@pytest.mark.parametrize("file", FILES)
@torch.no_grad()
def test_same_numbers_as_the_reference_code(shared: Path, file: str) -> None:
    model = reference_model(shared, file)
    golden = load_file(shared / f"golden/actionclip/{file}.expected.safetensors")
    ids, video, labels = golden["ids"].long(), golden["video"], golden["labels"].long()
    text, frames = model.encode_text(ids), model.encode_frames(video)
    torch.testing.assert_close(text, golden["text_features"], atol=1e-5, rtol=0)
    torch.testing.assert_close(frames, golden["frame_features"], atol=1e-5, rtol=0)
    vector = model.encode_video(video)
    torch.testing.assert_close(vector, golden["video_features"], atol=1e-5, rtol=0)
    logits = model.similarity(ids, video).T
    torch.testing.assert_close(logits, golden["logits"], atol=1e-4, rtol=0)
    first = logits[:, :3][:, labels].T  # each video against the first template of its class
    loss = divergence(first, labels[:, None] == labels)
    torch.testing.assert_close(loss, golden["loss"][0], atol=1e-4, rtol=0)


def test_the_target_of_the_loss_is_softmax_of_ten() -> None:
    """A class that stands twice in a batch of four: .49998 and 2.3e-5 (closed form)."""
    matches = torch.eye(4, dtype=torch.bool)
    matches[0, 1] = matches[1, 0] = True
    target = (10.0 * matches).softmax(1)
    assert target[0].tolist() == pytest.approx([0.49998, 0.49998, 2.27e-5, 2.27e-5], rel=1e-2)
    scores = torch.log(target)
    assert float(divergence(scores, matches)) == pytest.approx(0, abs=1e-4)
    other = torch.randn(4, 4)
    wanted = torch.nn.functional.kl_div(other.log_softmax(1), target, reduction="sum") / 4
    wanted += torch.nn.functional.kl_div(other.T.log_softmax(1), target.T, reduction="sum") / 4
    torch.testing.assert_close(divergence(other, matches), wanted / 2)


def test_the_fixed_convolution_starts_as_a_shift() -> None:
    head = Convolution(average="plain").build(8)
    frames = torch.randn(2, 5, 8)
    mask = torch.ones(2, 5, dtype=torch.bool)
    read = head(Features(frames, mask)).tokens - frames
    torch.testing.assert_close(read[:, 1:, :2], frames[:, :-1, :2])
    torch.testing.assert_close(read[..., 2:6], frames[..., 2:6])
    torch.testing.assert_close(read[:, :-1, 6:], frames[:, 1:, 6:])
    reference = Convolution(average="plain", variant="reference").build(8)
    assert not torch.allclose(
        reference(Features(frames, mask)).vector, read.mean(1) + frames.mean(1)
    )


@pytest.mark.parametrize("file", FILES)
@torch.no_grad()
def test_the_plain_version_is_the_reference_code_s(shared: Path, file: str) -> None:
    """What other sizes are compared with, at the sizes of the golden tensors."""
    saved = torch.load(shared / f"golden/actionclip/{file}.pt", weights_only=True)
    golden = load_file(shared / f"golden/actionclip/{file}.expected.safetensors")
    plain = ActionClip(Sizes(), file.removesuffix("-tsm"), 4, file.endswith("-tsm")).eval()
    for module, part in ((plain.model, "model"), (plain.fusion, "fusion_model")):
        weights = {
            key.removeprefix("module.").replace(".net.", "."): value.float()
            for key, value in saved[f"{part}_state_dict"].items()
        }
        module.load_state_dict(weights)
    found = plain.logits(golden["ids"].long(), golden["video"])
    torch.testing.assert_close(found, golden["logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("sizes", "frames"), OTHERS)
@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("shift", [False, True])
@torch.no_grad()
def test_same_numbers_in_other_sizes(name: str, shift: bool, sizes: Sizes, frames: int) -> None:
    plain = ready(ActionClip(sizes, name, frames, shift))
    head = HEADS[name]
    if name == "Transf":
        head = replace(head, attention_heads=sizes.text_width // 64)
    if name == "Transf_cls":
        head = replace(head, max_frames=frames)
    model = our_model(sizes, head, mixer=Shift(placement="block") if shift else None)
    weights = from_actionclip(plain.model.state_dict(), plain.fusion.state_dict(), name)
    load_exactly(model, weights, name)
    ids, video = words(5, 20), torch.randn(4, frames, 3, sizes.image, sizes.image)
    torch.testing.assert_close(model.encode_video(video), plain.videos(video), atol=1e-5, rtol=0)
    logits = plain.logits(ids, video)
    torch.testing.assert_close(model.similarity(ids, video).T, logits, atol=1e-4, rtol=0)


def test_heads_start_as_the_reference_does() -> None:
    """Transf at N(0, 0.02) and not from the text tower; Transf_cls cut off at two deviations."""
    base = our_model(Sizes()).clip
    model = our_model(Sizes(), Transformer(layers=6, start="random"))
    before = {name: value.clone() for name, value in model.head.state_dict().items()}
    model.start_from(base)
    assert all(torch.equal(model.head.state_dict()[name], value) for name, value in before.items())
    block = model.head.transformer.resblocks[0]
    for weight in (model.head.positions, block.mlp["c_fc"].weight, block.attn.out_proj.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert block.attn.in_proj_weight.abs().max().item() == pytest.approx((6 / 512) ** 0.5, rel=0.01)
    head = ClassToken().build(128)
    for name, parameter in head.named_parameters():
        if "norm" in name or name.endswith("bias"):
            assert (parameter == float(name.endswith("weight"))).all(), name
        elif "in_proj" not in name:
            assert parameter.abs().max() <= 0.04, name
            assert parameter.std().item() == pytest.approx(0.0176, rel=0.15), name


@torch.no_grad()
def test_a_class_token_reads_other_frame_counts_by_stretching_its_table() -> None:
    """Its rows are shares of the clip: the last frame has the last row, whatever its number."""
    head = ready(ClassToken(max_frames=5).build(64))
    for frames, rows in ((2, [0, 4]), (3, [0, 2, 4]), (5, range(5))):
        short = ready(ClassToken(max_frames=frames).build(64))
        table = head.positions[list(rows)]
        short.load_state_dict({**head.state_dict(), "positions": table})
        clips = torch.randn(2, frames, 64)
        features = Features(clips, torch.ones(2, frames, dtype=torch.bool))
        torch.testing.assert_close(head(features).vector, short(features).vector)
