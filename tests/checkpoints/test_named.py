"""OpenAI's nine models: exact sizes, and the published addresses."""

import open_clip.pretrained
import pytest
import torch

from videoclip.checkpoints import named
from videoclip.checkpoints.named import ARCHITECTURES, CHECKSUMS, architecture
from videoclip.errors import WeightsError

COUNTS = {
    "RN50": (102_007_137, 38_316_896, 489, 224, 1024),
    "RN101": (119_688_033, 56_259_936, 795, 224, 512),
    "RN50x4": (178_300_601, 87_137_080, 669, 288, 640),
    "RN50x16": (290_979_217, 167_328_912, 921, 384, 768),
    "RN50x64": (623_258_305, 420_380_352, 1353, 448, 1024),
    "ViT-B/32": (151_277_313, 87_849_216, 302, 224, 512),
    "ViT-B/16": (149_620_737, 86_192_640, 302, 224, 512),
    "ViT-L/14": (427_616_513, 303_966_208, 446, 224, 768),
    "ViT-L/14@336px": (427_944_193, 304_293_888, 446, 336, 768),
}
"""Parameters of all and of the vision tower, keys, pixels a side, embedding: OpenAI's models."""


@pytest.mark.parametrize("name", COUNTS)
def test_the_exact_counts(name: str) -> None:
    with torch.device("meta"):
        clip = architecture(name).build().clip
    parameters, visual, keys, size, embedding = COUNTS[name]
    assert sum(p.numel() for p in clip.parameters()) == parameters
    assert sum(p.numel() for p in clip.visual.parameters()) == visual
    assert len(clip.state_dict()) == keys
    assert clip.visual.image_size == size
    assert clip.text_projection.shape[1] == embedding
    assert clip.positional_embedding.shape[0] == 77
    assert len(clip.token_embedding.weight) == 49408


def test_all_are_here() -> None:
    assert ARCHITECTURES.keys() == CHECKSUMS.keys() == COUNTS.keys()
    assert {model.text.activation for model in ARCHITECTURES.values()} == {"quick_gelu"}


@pytest.mark.parametrize("name", COUNTS)
def test_addresses_are_those_that_open_clip_knows(name: str) -> None:
    theirs = name.replace("/", "-").replace("@336px", "-336")
    address = f"{named.HOST}/{CHECKSUMS[name]}/{named.file_name(name)}"
    assert open_clip.pretrained.get_pretrained_url(theirs, "openai") == address


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(WeightsError, match=r"no model 'ViT-B-32'; did you mean 'ViT-B/32'\?"):
        architecture("ViT-B-32")


def test_the_cache_can_be_moved(monkeypatch, tmp_path) -> None:
    for variable in ("VIDEOCLIP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert named.cache() == tmp_path / ".cache/videoclip"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert named.cache() == tmp_path / "xdg/videoclip"
    monkeypatch.setenv("VIDEOCLIP_CACHE", str(tmp_path / "chosen"))
    assert named.cache() == tmp_path / "chosen"
