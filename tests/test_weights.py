"""A model's folder: complete or refused, and every wrong key is listed."""

import json

import pytest
import torch
from models import build
from safetensors.torch import load_file, save_file

import videoclip
from videoclip.weights import CONFIG, WEIGHTS, WeightsError


def test_a_folder_without_a_model_is_refused(tmp_path) -> None:
    with pytest.raises(WeightsError, match="is not a folder"):
        videoclip.load(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match="holds no complete model"):
        videoclip.load(tmp_path)


def test_every_wrong_key_is_listed_with_the_nearest(tmp_path) -> None:
    build().save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    weights["clip.ln_finall.weight"] = weights.pop("clip.ln_final.weight")
    weights["clip.visual.proj"] = torch.zeros(3, 4)
    del weights["clip.logit_scale"]
    save_file(weights, tmp_path / WEIGHTS)
    with pytest.raises(WeightsError) as error:
        videoclip.load(tmp_path)
    message = str(error.value)
    assert "missing: clip.logit_scale" in message
    assert "missing: clip.ln_final.weight" in message
    assert "unexpected: clip.ln_finall.weight; did you mean 'clip.ln_final.weight'?" in message
    assert "misshapen: clip.visual.proj is (3, 4), expected (64, 32)" in message


def test_a_damaged_folder_is_named(tmp_path) -> None:
    build().save_pretrained(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"no")
    with pytest.raises(WeightsError, match="damaged"):
        videoclip.load(tmp_path)
    build().save_pretrained(tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps({"format": 99, "model": {}}))
    with pytest.raises(WeightsError, match="format 99"):
        videoclip.load(tmp_path)
