"""A folder in the form of transformers' `CLIPModel` <-> our configuration and weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from videoclip.checkpoints.archives import read
from videoclip.checkpoints.clip_checkpoints import Checkpoint, agreed, cleaned, with_scalars
from videoclip.checkpoints.layouts import inside, transformers
from videoclip.errors import WeightsError, explained
from videoclip.frames.transforms import Pixels
from videoclip.layers import Activation, attention_heads
from videoclip.model import Model
from videoclip.towers import Text, ViT

CONFIG = "config.json"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
WEIGHTS = "model.safetensors"
NAMES = (
    WEIGHTS, WEIGHTS + ".index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
"""File names of weights, the better first; large ones are cut up, with an index."""
TEXT = {
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5, "eos_token_id": 49407,
}  # fmt: skip
VISION = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "num_channels": 3, "image_size": 224, "patch_size": 32,
    "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
"""What transformers takes where its configuration says nothing."""


def is_clip(path: Path) -> bool:
    """Whether a config.json describes a CLIP in transformers' sense."""
    try:
        return json.loads(path.read_text()).get("model_type") == "clip"
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def weights_of(folder: Path) -> Path | None:
    """The file of weights in a folder, or its index, or None."""
    return next((folder / name for name in NAMES if (folder / name).is_file()), None)


def from_folder(folder: Path, stated: Activation | None = None) -> Checkpoint:
    """A folder that transformers wrote. Raises WeightsError for what our towers do not compute."""
    path = folder / CONFIG
    with explained(f"{path} cannot be used", "get it again"):
        model = _model(json.loads(path.read_text()), _pixels(folder), path)
    for tower in (model.text, model.visual):
        agreed(stated, tower.activation, folder)
    weights = with_scalars(cleaned(read_all(weights_of(folder))))
    return Checkpoint(model, weights, inside(transformers))


def read_all(path: Path) -> dict[str, Any]:
    """Reads a file of weights, or all files that an index lists."""
    if not path.name.endswith(".index.json"):
        return read(path)
    found: dict[str, Any] = {}
    for part in parts(path):
        if not part.is_file():
            raise WeightsError(f"{path} lists {part.name}, which is not there; get all parts")
        found |= read(part)
    return found


def parts(index: Path) -> list[Path]:
    """The files that an index lists, beside it."""
    with explained(f"{index} is no index of weights", "get it again"):
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        return [index.parent / Path(name).name for name in names]  # never outside the folder


def _model(config: Mapping[str, Any], pixels: Pixels, path: Path) -> Model:
    # In the older form the second of the two counts.
    text, vision = (
        {**usual, **(config.get(f"{name}_dict") or config.get(name) or {})}
        for name, usual in (("text_config", TEXT), ("vision_config", VISION))
    )
    for name, section in (("text_config", text), ("vision_config", vision)):
        if section["layer_norm_eps"] != 1e-5 or section["hidden_act"] not in ("quick_gelu", "gelu"):
            raise WeightsError(
                f"{path} asks in {name} for layer_norm_eps {section['layer_norm_eps']} and "
                f"hidden_act {section['hidden_act']!r}; built here are 1e-05 and quick_gelu or gelu"
            )
    if vision["num_channels"] != 3:
        raise WeightsError(f"{path} asks for {vision['num_channels']} channels; built here are 3")
    # 2 is what older files say, and transformers then takes the highest id, as OpenAI does.
    end = text["eos_token_id"]
    usual_end = end in (None, 2, text["vocab_size"] - 1)
    return Model(
        visual=ViT(
            patch_size=_side(vision["patch_size"]), image_size=_side(vision["image_size"]),
            **_sizes(vision),
        ),
        text=Text(
            context_length=text["max_position_embeddings"], vocabulary=text["vocab_size"],
            end_of_text=None if usual_end else end, **_sizes(text),
        ),
        embedding=config.get("projection_dim", 512),
        pixels=pixels,
    )  # fmt: skip


def _sizes(section: Mapping[str, Any]) -> dict[str, Any]:
    width, heads = section["hidden_size"], section["num_attention_heads"]
    hidden = section["intermediate_size"]
    return {
        "width": width,
        "layers": section["num_hidden_layers"],
        "activation": section["hidden_act"],
        "attention_heads": None if heads == attention_heads(width) else heads,
        "mlp_width": None if hidden == 4 * width else hidden,
    }


def _side(size: int | list[int]) -> int:
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) > 1:
        raise ValueError(f"{size} is no square")
    return sides.pop()


def _pixels(folder: Path) -> Pixels:
    """What the folder's image processor does, or OpenAI's where it has none."""
    for name in PROCESSORS:
        path = folder / name
        if path.is_file():
            with explained(f"{path} cannot be used", "get it again"):
                written = json.loads(path.read_text())
                return _processor(written.get("image_processor", written), path)
    return Pixels()


def _processor(config: Mapping[str, Any], path: Path) -> Pixels:
    """The pixels that an image processor makes; the size itself is the tower's."""
    size = config.get("size", 224)
    squashed = isinstance(size, Mapping) and "height" in size
    sides = set(size.values()) if isinstance(size, Mapping) else {size}
    crop = config.get("crop_size", size)
    usual = {
        "do_resize": True, "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "do_center_crop": True,
    }  # fmt: skip
    others = {k: config[k] for k in usual if config.get(k, usual[k]) != usual[k]}
    if squashed and not others.pop("do_center_crop", True):
        crop = size
    # What is cut away later is not what is kept here, and what is no square is not either.
    if len(sides) > 1 or sides != (set(crop.values()) if isinstance(crop, Mapping) else {crop}):
        others |= {"size": size, "crop_size": crop}
    if others:
        raise WeightsError(
            f"{path} asks for {others}; here pictures are resized with bicubic interpolation (3) "
            "until they fill a square or are squashed into it, scaled to 0..1 and normalized; "
            "change the file if that is meant"
        )
    constants = {"mean": config.get("image_mean"), "std": config.get("image_std")}
    known = {name: tuple(value) for name, value in constants.items() if value is not None}
    return Pixels(**known, fit="squash" if squashed else "crop")


def files(model: Model) -> dict[str, dict[str, Any]] | None:
    """What transformers needs beside the weights, by file name; None where its CLIP is another."""
    visual, text = model.visual, model.text
    if not (isinstance(visual, ViT) and isinstance(text, Text)) or visual.patch_frames > 1:
        return None
    # An end of text of 2 means the highest id there.
    if model.logit_bias is not None or text.end_of_text == 2:
        return None
    last = text.vocabulary - 1
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "dtype": "float32",
        "projection_dim": model.embedding,
        "text_config": {
            "model_type": "clip_text_model",
            "vocab_size": text.vocabulary,
            "max_position_embeddings": text.context_length,
            "bos_token_id": last - 1,
            "eos_token_id": last if text.end_of_text is None else text.end_of_text,
            "pad_token_id": 0,
            **_section(text, model.embedding),
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "image_size": visual.image_size,
            "patch_size": visual.patch_size,
            **_section(visual, model.embedding),
        },
    }
    size, squashed = visual.image_size, model.pixels.fit == "squash"
    square = {"height": size, "width": size}
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": square if squashed else {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": not squashed,
        "crop_size": square,
        "do_convert_rgb": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(model.pixels.mean),
        "image_std": list(model.pixels.std),
    }
    return {CONFIG: config, PROCESSORS[0]: processor}


def _section(tower: ViT | Text, embedding: int) -> dict[str, Any]:
    return {
        "hidden_size": tower.width,
        "intermediate_size": tower.mlp_width or 4 * tower.width,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.attention_heads or attention_heads(tower.width),
        "hidden_act": tower.activation,
        "layer_norm_eps": 1e-5,
        "projection_dim": embedding,
    }
