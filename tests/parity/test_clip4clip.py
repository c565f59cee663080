"""Every head against tensors that the reference code of CLIP4Clip computed."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from videoclip.heads import LSTM, Mean, Transformer
from videoclip.model import Model, VideoCLIP
from videoclip.scorers import Cosine, Tight
from videoclip.towers import Text, ViT
from videoclip.weights import load_exactly

SLOTS = {
    "meanP": {"head": Mean()},
    "seqLSTM": {"head": LSTM()},
    "seqTransf": {"head": Transformer(layers=2, variant="reference")},
    "tightTransf": {"scorer": Tight(layers=2, variant="reference")},
}
NAMES = [
    (r"^lstm_visual\.", "head.lstm."),
    (r"^transformerClip\.", "head.transformer."),
    (r"^cross\.transformer\.", "scorer.transformer."),
    (r"^cross\.embeddings\.position_embeddings\.weight", "scorer.positions"),
    (r"^cross\.pooler\.", "scorer."),
    (r"^similarity_dense\.", "scorer.similarity."),
    (r"^frame_position_embeddings\.weight", "head.positions"),
]


def reference_model(shared: Path, name: str, patches: str = "2d") -> VideoCLIP:
    weights = torch.load(shared / f"golden/clip4clip/{name}-{patches}.bin", weights_only=True)
    renamed: dict[str, Tensor] = {}
    for key, value in weights.items():
        for pattern, ours in NAMES:
            key = re.sub(pattern, ours, key)
        renamed[key] = value.float()
    if name == "seqLSTM":  # the reference creates these positions and never reads them
        del renamed["head.positions"]
    config = Model(
        visual=ViT(
            width=128,
            layers=2,
            patch_size=16,
            image_size=32,
            patch_frames=3 if patches == "3d" else 1,
        ),
        text=Text(width=128, layers=2, vocabulary=600),
        embedding=128,
        **SLOTS[name],
    )
    model = config.build()
    load_exactly(model, renamed, name)
    return model.eval()


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
    from videoclip.types import Features

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
