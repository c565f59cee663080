"""Every head and the shift against tensors that the reference code of ActionCLIP computed."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from videoclip.heads import LSTM, ClassToken, Convolution, Mean, Transformer
from videoclip.losses import divergence
from videoclip.mixers import NoMixer, Shift
from videoclip.model import Model, VideoCLIP
from videoclip.towers import Text, ViT
from videoclip.weights import load_exactly

HEADS = {
    "meanP": Mean(average="plain"),
    "Conv_1D": Convolution(average="plain", variant="reference"),
    "LSTM": LSTM(average="plain"),
    "Transf": Transformer(average="plain", layers=6, variant="reference"),
    "Transf_cls": ClassToken(max_frames=4),
}
FILES = [*HEADS, "meanP-tsm", "Transf-tsm"]
NAMES = {
    "Conv_1D": [(r"^shift\.", "head.shift.")],
    "LSTM": [(r"^lstm_visual\.", "head.lstm.")],
    "Transf": [
        (r"^transformer\.", "head.transformer."),
        (r"^frame_position_embeddings\.weight", "head.positions"),
    ],
    "Transf_cls": [
        (r"^transformer\.transformer_enc\.", "head.encoder."),
        (r"^transformer\.cls_token", "head.class_token"),
    ],
}


def reference_model(shared: Path, file: str) -> VideoCLIP:
    name = file.removesuffix("-tsm")
    saved = torch.load(shared / f"golden/actionclip/{file}.pt", weights_only=True)
    weights: dict[str, Tensor] = {}
    for key, value in saved["model_state_dict"].items():
        weights["clip." + key.removeprefix("module.").replace(".net.", ".")] = value.float()
    for key, value in saved.get("fusion_model_state_dict", {}).items():
        key, value = key.removeprefix("module."), value.float()
        if key == "transformer.pos_embed":
            weights["head.class_position"], weights["head.positions"] = value[0, :1], value[0, 1:]
            continue
        if key == "transformer.cls_token":
            value = value[0]
        if key == "frame_position_embeddings.weight" and name != "Transf":
            continue  # the reference creates these positions and never reads them
        for pattern, ours in NAMES.get(name, []):
            key = re.sub(pattern, ours, key)
        weights[key] = value
    config = Model(
        visual=ViT(width=128, layers=2, patch_size=16, image_size=32),
        text=Text(width=128, layers=2, vocabulary=600),
        embedding=128,
        mixer=Shift(placement="block") if file.endswith("-tsm") else NoMixer(),
        head=HEADS[name],
    )
    model = config.build()
    load_exactly(model, weights, file)
    return model.eval()


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
    from videoclip.types import Features

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
    mask[0, -1] = False
    with pytest.raises(ValueError, match="mixes padding into frames"):
        reference(Features(frames, mask))
