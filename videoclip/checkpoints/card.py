"""Model -> model card, the README.md beside saved weights."""

from videoclip.config import SLOTS, kind
from videoclip.model import Model
from videoclip.towers import TSM, Labels, Language, Network, ResNet, Text, Visual, ViT

MARK = (
    "<!-- written by videoclip's save_pretrained, which rewrites it as long as this line stays -->"
)


def model_card(model: Model, parameters: int, *, for_transformers: bool) -> str:
    """What a reader must know of saved weights, in Markdown with the hub's header."""
    visual, text, pixels = model.visual, model.text, model.pixels
    slots = {slot: kind(type(getattr(model, slot))) for slot in SLOTS}
    rows = {
        "parameters": f"{parameters:,}",
        "vision tower": _vision_tower(visual),
        "picture": f"{visual.image_size} x {visual.image_size} pixels, fit by {pixels.fit}",
        **_text_side(text),
        "embedding": model.embedding,
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
    example = text.classes[0] if isinstance(text, Labels) else "a dog jumps"
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
scores = model.similarity(model.tokenize([{example!r}]), video)
```
{also}
| | |
|---|---|
{table}

What the weights were trained on, and how good they are, is not recorded here: add it.
"""


def _vision_tower(visual: Visual) -> str:
    match visual:
        case ViT():
            size = f"{visual.layers} layers, patches of {visual.patch_size} pixels"
            return f"ViT, width {visual.width}, {size}"
        case ResNet():
            return f"modified ResNet, width {visual.width}, stages of {visual.layers} bottlenecks"
        case Network():
            return f"{visual.family} of {visual.frames} frames, {visual.width} of its channels"
        case TSM():
            return f"TSM, {visual.layers} {visual.block} blocks, shift: {visual.placement}"
    raise AssertionError(f"a card must say what {type(visual).__name__} is")


def _text_side(text: Language) -> dict[str, str]:
    if isinstance(text, Labels):
        return {"classes": ", ".join(text.classes)}
    assert isinstance(text, Text)
    return {
        "text tower": f"width {text.width}, {text.layers} layers",
        "context length": f"{text.context_length} tokens of {text.vocabulary:,}",
        "activation": text.activation,
    }
