"""OpenAI's nine models: their sizes, and where their weights are published.

Sizes and addresses: openai/CLIP, `clip/clip.py` and the released weights. An address holds the
SHA-256 of its file.
"""

import os
from pathlib import Path

from videoclip.checkpoints.downloads import download, sha256
from videoclip.errors import WeightsError, nearest
from videoclip.model import Model
from videoclip.towers import ResNet, Text, Visual, ViT


def _model(visual: Visual, *, embedding: int, text_width: int) -> Model:
    return Model(visual=visual, text=Text(width=text_width), embedding=embedding)


_L14 = {"width": 1024, "layers": 24, "patch_size": 14}
ARCHITECTURES: dict[str, Model] = {
    "RN50": _model(ResNet(), embedding=1024, text_width=512),
    "RN101": _model(ResNet(layers=(3, 4, 23, 3)), embedding=512, text_width=512),
    "RN50x4": _model(
        ResNet(width=80, layers=(4, 6, 10, 6), image_size=288), embedding=640, text_width=640
    ),
    "RN50x16": _model(
        ResNet(width=96, layers=(6, 8, 18, 8), image_size=384), embedding=768, text_width=768
    ),
    "RN50x64": _model(
        ResNet(width=128, layers=(3, 15, 36, 10), image_size=448), embedding=1024, text_width=1024
    ),
    "ViT-B/32": _model(ViT(), embedding=512, text_width=512),
    "ViT-B/16": _model(ViT(patch_size=16), embedding=512, text_width=512),
    "ViT-L/14": _model(ViT(**_L14), embedding=768, text_width=768),
    "ViT-L/14@336px": _model(ViT(**_L14, image_size=336), embedding=768, text_width=768),
}
"""The configuration of each model."""

HOST = "https://openaipublic.azureedge.net/clip/models"
CHECKSUMS = {
    "RN50": "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
    "RN101": "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599",
    "RN50x4": "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd",
    "RN50x16": "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa",
    "RN50x64": "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c",
    "ViT-B/32": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    "ViT-B/16": "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
    "ViT-L/14": "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
    "ViT-L/14@336px": "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
}
"""SHA-256 of each file of weights."""


def architecture(name: str) -> Model:
    """The configuration of one of OpenAI's models, such as ViT-B/32, to be trained or loaded into.

    Raises WeightsError for another name.
    """
    if name not in ARCHITECTURES:
        raise WeightsError(f"OpenAI has no model {name!r}; {nearest(name, ARCHITECTURES)}")
    return ARCHITECTURES[name]


def cache() -> Path:
    """Where downloads are kept: VIDEOCLIP_CACHE, or videoclip/ in XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("VIDEOCLIP_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "videoclip"


def file_name(name: str) -> str:
    """What OpenAI calls the file of a model: ViT-L/14@336px is ViT-L-14-336px.pt."""
    return name.replace("/", "-").replace("@", "-") + ".pt"


def fetch(name: str) -> Path:
    """The verified file of one of OpenAI's models, downloaded into the cache where it is not there.

    A file that openai/CLIP has downloaded into ~/.cache/clip is used too. Raises WeightsError
    where the file cannot be had or is not what was published.
    """
    file, checksum = file_name(name), CHECKSUMS[name]
    path = cache() / file
    for found in (path, Path.home() / ".cache" / "clip" / file):
        if found.is_file():
            if (actual := sha256(found)) == checksum:
                return found
            if found == path:
                raise WeightsError(
                    f"{path} is not the published {name}: its SHA-256 is {actual}, expected "
                    f"{checksum}; delete it, and it is downloaded again"
                )
    download(f"{HOST}/{checksum}/{file}", path, checksum)
    return path
