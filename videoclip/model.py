"""Frames and token ids -> scores: the towers and the three slots put together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor, nn

from videoclip.frames.transforms import Pixels, image_pixels, normalize
from videoclip.heads import Head, Mean
from videoclip.mixers import Mixer, NoMixer
from videoclip.scorers import Cosine, Dot, Scorer
from videoclip.towers import (
    CLIP,
    TSM,
    Labels,
    Language,
    Network,
    ResNet,
    Text,
    Visual,
    ViT,
    two_sides,
)
from videoclip.types import Embedding, Features, Frames

if TYPE_CHECKING:
    from videoclip.checkpoints.origin import Origin


@dataclass(frozen=True, kw_only=True)
class Model:
    """Everything that a checkpoint must know to be built again; the defaults are ViT-B/32."""

    visual: Visual = field(default_factory=ViT)
    """Frames -> features: a ViT, a ResNet, or a video network that knows no text."""
    text: Language = field(default_factory=Text)
    """Token ids -> embedding."""
    embedding: int = 512
    """Channels of the space that texts and frames share."""
    pixels: Pixels = field(default_factory=Pixels)
    """How pixels are prepared."""
    frames: int | None = None
    """Frames a clip that the weights were trained with; None: they do not say. Other numbers work
    too."""
    templates: tuple[str, ...] = ()
    """The sentences with {} that name an action to these weights, or the name of a published
    set."""
    logit_bias: float | None = None
    """Where a bias of all logits starts, which the SigLIP loss needs; None: there is none."""
    mixer: Mixer = field(default_factory=NoMixer)
    """The slot inside the tower."""
    head: Head = field(default_factory=Mean)
    """The slot over time."""
    scorer: Scorer = field(default_factory=Cosine)
    """The slot with the text."""

    def __post_init__(self) -> None:
        """Raises ValueError where the parts do not fit each other."""
        if isinstance(self.visual, ResNet) and not self.mixer.takes_maps:
            raise ValueError(
                f"a ResNet has no tokens for the mixer {self.mixer}; use a ViT, the mixer Shift "
                "(TSM), or put the sense of time into the head or the scorer"
            )
        if isinstance(self.visual, Network | TSM) and self.mixer != NoMixer():
            raise ValueError(
                f"a video network has no place for the mixer {self.mixer}; it mixes frames itself"
            )
        if isinstance(self.text, Labels) and self.text.bias and not isinstance(self.scorer, Dot):
            raise ValueError(
                f"classes with a bias need the scorer Dot, and this is {self.scorer}; leave the "
                "bias out, or take that scorer"
            )

    def build(self) -> "VideoCLIP":
        """The model, with random weights."""
        return VideoCLIP(self)

    def tokenizer(self, words: int | None = None) -> Callable[[str | Sequence[str]], Tensor]:
        """The tokenizer of the text side, for captions of up to `words` tokens.

        Raises VocabularyError where the text tower has another vocabulary than CLIP's.
        """
        return self.text.tokenizer(words)


class VideoCLIP(nn.Module):
    """CLIP with a sense of time. Every public method takes and returns plain tensors.

    Pixels may be uint8, which are normalized here with the constants that belong to the weights,
    or float that is normalized already.
    """

    origin: "Origin | None" = None
    """How the weights stood in another project's file; `videoclip convert` writes them back so."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.config = config
        self.clip = two_sides(config.visual, config.text, config.embedding, config.logit_bias)
        widths = self.clip.visual.widths
        self.mixers = nn.ModuleList(config.mixer.build(w, i) for i, w in enumerate(widths))
        self.head = config.head.build(config.embedding)
        self.scorer = config.scorer.build(config.embedding)
        # Made on the CPU even where `load` builds the rest without memory, on the meta device.
        for name, values in (("mean", config.pixels.mean), ("std", config.pixels.std)):
            constants = torch.tensor(values, device="cpu")
            self.register_buffer(f"pixel_{name}", constants, persistent=False)

    def start_from(self, clip: CLIP) -> None:
        """Takes over the weights of a pretrained CLIP; new modules start from them where they can.

        Raises RuntimeError, listing them, where the towers have different parameters.
        """
        weights = clip.state_dict()
        inflated = getattr(self.clip.visual, "conv2", None) is not None
        if inflated and "visual.conv2.weight" not in weights:
            self.clip.visual.inflate(weights["visual.conv1.weight"])
            weights["visual.conv2.weight"] = self.clip.visual.conv2.weight
        self.clip.load_state_dict(weights)
        for module in (*self.mixers, self.head, self.scorer):
            if hasattr(module, "start_from"):
                module.start_from(clip)

    def new_parameters(self) -> list[nn.Parameter]:
        """The parameters that plain CLIP does not have."""
        parts = [self.mixers, self.head, self.scorer]
        if not self.config.visual.pretrained:
            parts.append(self.clip.visual)
        if not isinstance(self.config.text, Text):
            parts.append(self.clip.label_embedding)
        bias = getattr(self.clip, "label_bias", None)
        return [p for part in parts for p in part.parameters()] + ([] if bias is None else [bias])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.clip.logit_scale.device

    # The public surface: plain tensors in, plain tensors out.

    def preprocess(self, image: Image.Image) -> Tensor:
        """A picture -> (3, S, S) uint8 as these weights expect it, S the tower's image size."""
        return image_pixels(image, self.config.visual.image_size, fit=self.config.pixels.fit)

    def tokenize(self, texts: str | Sequence[str], words: int | None = None) -> Tensor:
        """N texts -> token ids (N, L) on the model's device; L is `words`, at most the context.

        Raises VocabularyError where these weights have another vocabulary than CLIP's.
        """
        return self.tokenizer(words)(texts).to(self.device)

    def tokenizer(self, words: int | None = None) -> Callable[[str | Sequence[str]], Tensor]:
        """The tokenizer of the configuration, for captions of up to `words` tokens."""
        return self.config.tokenizer(words)

    def encode_text(self, ids: Tensor) -> Tensor:
        """Token ids (N, L) -> text features (N, D), not normalized."""
        return self.clip.encode_text(ids)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> image features (B, D), not normalized."""
        _require(pixels, 4, "images (B, 3, H, W)")
        return self.encode_frames(pixels[:, None])[:, 0]

    def encode_frames(self, video: Tensor, mask: Tensor | None = None) -> Tensor:
        """Clips (M, T, 3, H, W) -> frame features before the head (M, T, D), not normalized.

        T is 1 where the mixer makes one feature of a clip (Joint).
        """
        return self.features(self._frames(video, mask)).frames

    def encode_video(self, video: Tensor, mask: Tensor | None = None) -> Tensor:
        """Clips (M, T, 3, H, W), mask (M, T) True where a frame is real -> (M, D), not normalized.

        Without a mask every frame is real.
        """
        return self.embed_video(self._frames(video, mask)).vector

    def similarity(self, ids: Tensor, video: Tensor, mask: Tensor | None = None) -> Tensor:
        """Token ids (N, L) and clips (M, T, 3, H, W) under mask (M, T) -> logits (N, M)."""
        return self.score(self.embed_text(ids), self.embed_video(self._frames(video, mask)))

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes weights (safetensors) and configuration; `videoclip.load(folder)` opens them."""
        from videoclip.checkpoints.weights import save

        save(self, Path(folder))

    # The way of the data, in records.

    def features(self, frames: Frames) -> Features:
        """Frames -> Features: the tower, with a mixer around each block."""
        keep_layers = getattr(self.head, "reads_layers", 0)
        return self.clip.visual(self.normalized(frames), frames.mask, self.mixers, keep_layers)

    def normalized(self, frames: Frames) -> Tensor:
        """The pixels (B, T, 3, H, W) as the tower takes them; float pixels are so already."""
        if frames.pixels.dtype != torch.uint8:
            return frames.pixels
        return normalize(frames.pixels, self.pixel_mean, self.pixel_std)

    def embed_video(self, clips: Frames | Features) -> Embedding:
        """Frames -> Embedding: the tower, then the head. Features skip the tower."""
        return self.head(clips if isinstance(clips, Features) else self.features(clips))

    def embed_text(self, ids: Tensor) -> Embedding:
        """Token ids (N, L) -> Embedding with one token, the text's feature.

        What is float already, (N, D), is what the tower has made of texts, and skips it.
        """
        vector = ids if ids.is_floating_point() else self.clip.encode_text(ids)
        one = torch.ones(len(vector), 1, dtype=torch.bool, device=vector.device)
        return Embedding(vector, vector[:, None], one)

    def score(self, text: Embedding, video: Embedding) -> Tensor:
        """Embeddings of Q texts and V videos -> logits (Q, V)."""
        scores = self.scorer(text, video, self.clip.logit_scale)
        return scores if self.clip.logit_bias is None else scores + self.clip.logit_bias

    def forward(self, frames: Frames, ids: Tensor) -> Tensor:
        """What training calls: Frames of B clips and ids (B, L) -> logits (B, B)."""
        return self.score(self.embed_text(ids), self.embed_video(frames))

    def _frames(self, video: Tensor, mask: Tensor | None) -> Frames:
        _require(video, 5, "clips (M, T, 3, H, W)")
        if mask is None:
            mask = torch.ones(video.shape[:2], dtype=torch.bool, device=video.device)
        if mask.shape != video.shape[:2]:
            raise ValueError(
                f"the mask has shape {tuple(mask.shape)}, the clips {tuple(video.shape)}; "
                "a mask is (M, T), True where a frame is real"
            )
        mask = mask.bool()
        if not bool(mask.any(dim=1).all()):
            empty = (~mask.any(dim=1)).nonzero().flatten().tolist()
            raise ValueError(f"clips {empty} have no real frame in the mask; leave them out")
        return Frames(video, mask)


def _require(pixels: Tensor, dimensions: int, shape: str) -> None:
    if pixels.ndim != dimensions or pixels.shape[-3] != 3:
        raise ValueError(f"pixels have shape {tuple(pixels.shape)}; expected {shape}")


def count_parameters(parameters: Sequence[nn.Parameter]) -> int:
    """How many numbers are trained."""
    return sum(parameter.numel() for parameter in parameters)
