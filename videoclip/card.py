"""Model -> model card, the README.md beside saved weights."""

from videoclip.config import SLOTS, kind
from videoclip.model import Model
from videoclip.towers import ViT

MARK = (
    "<!-- written by videoclip's save_pretrained, which rewrites it as long as this line stays -->"
)


def model_card(model: Model, parameters: int, *, for_transformers: bool) -> str:
    """What a reader must know of saved weights, in Markdown with the hub's header."""
    visual, text, pixels = model.visual, model.text, model.pixels
    tower = (
        f"ViT, width {visual.width}, {visual.layers} layers, patches of {visual.patch_size} pixels"
        if isinstance(visual, ViT)
        else f"modified ResNet, width {visual.width}, stages of {visual.layers} bottlenecks"
    )
    slots = {slot: kind(type(getattr(model, slot))) for slot in SLOTS}
    rows = {
        "parameters": f"{parameters:,}",
        "vision tower": tower,
        "picture": f"{visual.image_size} x {visual.image_size} pixels, fit by {pixels.fit}",
        "text tower": f"width {text.width}, {text.layers} layers",
        "context length": f"{text.context_length} tokens of {text.vocabulary:,}",
        "embedding": model.embedding,
        "activation": text.activation,
        "pixel mean": ", ".join(map(str, pixels.mean)),
        "pixel standard deviation": ", ".join(map(str, pixels.std)),
        **slots,
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    also = (
        "\nThe image-text part also opens in transformers: `CLIPModel.from_pretrained(folder)`.\n"
        if for_transformers
        else ""
    )
    return f"""---
library_name: videoclip
tags: [clip, {", ".join(name for name in slots.values() if name != "none")}]
---
{MARK}

# A CLIP model with the temporal modules {" + ".join(slots.values())}

```python
import torch, videoclip

model = videoclip.load("this/folder")
video = torch.zeros(1, 8, 3, {visual.image_size}, {visual.image_size}, dtype=torch.uint8)
scores = model.similarity(model.tokenize(["a dog jumps"]), video)
```
{also}
| | |
|---|---|
{table}

What the weights were trained on, and how good they are, is not recorded here: add it.
"""
