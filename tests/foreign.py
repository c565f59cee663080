"""Small CLIPs of other projects with random weights, and the files that they write."""

import copy
import json
import warnings
from pathlib import Path
from typing import Literal

import open_clip
import torch
import transformers
from torch import Tensor, nn

from videoclip.layers import Activation

SIZE, WORDS, VOCABULARY, EMBEDDING = 64, 77, 1000, 32
VISUALS = {
    "vit": {"width": 128, "layers": 3, "patch_size": 16, "image_size": SIZE},
    "deep": {"width": 128, "layers": 24, "patch_size": 14, "image_size": 56},
    "resnet": {"width": 16, "layers": [1, 2, 1, 2], "image_size": SIZE},
}
Visual = Literal["vit", "deep", "resnet"]


def open_clip_config(visual: Visual, activation: Activation, **text: object) -> dict:
    """A model's configuration as open_clip writes it."""
    return {
        "embed_dim": EMBEDDING,
        "quick_gelu": activation == "quick_gelu",
        "vision_cfg": VISUALS[visual],
        "text_cfg": {
            "width": 64, "layers": 3, "heads": 1, "vocab_size": VOCABULARY,
            "context_length": WORDS, **text,
        },
    }  # fmt: skip


def open_clip_model(
    visual: Visual = "vit", activation: Activation = "quick_gelu", custom: bool = False, **more
) -> nn.Module:
    kind = open_clip.CustomTextCLIP if custom else open_clip.model.CLIP
    return randomized(kind(**open_clip_config(visual, activation), **more)).eval()


def transformers_config(
    activation: Activation = "quick_gelu", layers: int = 3, **text: object
) -> transformers.CLIPConfig:
    shared = {"hidden_act": activation, "num_attention_heads": 2, "hidden_size": 128}
    return transformers.CLIPConfig(
        text_config={
            **shared, "intermediate_size": 512, "num_hidden_layers": 3, "vocab_size": VOCABULARY,
            "bos_token_id": 998, "eos_token_id": 999, "pad_token_id": 0, **text,
        },
        vision_config={
            **shared, "intermediate_size": 512, "num_hidden_layers": layers,
            "image_size": 56, "patch_size": 14,
        },
        projection_dim=EMBEDDING,
    )  # fmt: skip


@torch.no_grad()
def randomized(model: nn.Module) -> nn.Module:
    """Moves every weight and statistic away from a start that would hide that it is never read."""
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.is_floating_point() and "mask" not in name:
            value.add_(0.02 * torch.randn_like(value))
            if name.endswith("bn3.weight"):  # zero: the block would be its shortcut
                value.add_(0.3)
    return model


def images(count: int = 3, size: int = SIZE) -> Tensor:
    return torch.randn(count, 3, size, size)


def captions(count: int = 4, end: int = VOCABULARY - 1) -> Tensor:
    """Token ids (count, WORDS) of different lengths."""
    ids = torch.zeros(count, WORDS, dtype=torch.long)
    for row in range(count):
        length = 3 + 2 * row
        ids[row, :length] = torch.randint(1, 900, (length,))
        ids[row, length] = end
    return ids


@torch.no_grad()
def halve(model: nn.Module) -> None:
    """Rounds weights to float16 where OpenAI did: convolutions, linear layers, projections."""
    keep = ("ln_", "bn", "embedding", "logit", "downsample.1", "attn_mask")
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.is_floating_point() and not any(part in name for part in keep):
            value.data = value.data.half()


def write_archive(model: nn.Module, path: Path, size: int = SIZE) -> dict[str, Tensor]:
    """Writes a TorchScript archive as OpenAI's are, in half precision; returns its state dict."""
    model = copy.deepcopy(model)
    numbers = {"input_resolution": size, "context_length": WORDS, "vocab_size": VOCABULARY}
    mask = model._buffers.pop("attn_mask")
    model.attn_mask = mask  # a constant of the program, as in OpenAI's
    for name, number in numbers.items():
        vars(model).pop(name, None)
        model.register_buffer(name, torch.tensor(number))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and a tracer complains much
        traced = torch.jit.trace(model, (images(2, size), captions(2)), check_trace=False)
        halve(traced)
        traced.save(str(path))
    return traced.state_dict()


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))
