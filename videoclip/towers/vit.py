"""Frames -> Features: CLIP's vision transformer, with a place for a mixer around every block."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from videoclip.layers import Activation, Blocks, LayerNorm, attention_heads
from videoclip.towers.base import Visual
from videoclip.types import Features


@dataclass(frozen=True, kw_only=True)
class ViT(Visual):
    """A vision transformer; the defaults are ViT-B/32."""

    width: int = 768
    """Channels of a token."""
    layers: int = 12
    """Residual blocks."""
    patch_size: int = 32
    """Pixels a side of a patch."""
    patch_frames: Literal[1, 3] = 1
    """Frames that a patch covers. 3: with the one before and the one after (CLIP4Clip's
    `linear_patch 3d`); a 2D model's patches start it, and it then computes the same."""
    activation: Activation = "quick_gelu"
    """OpenAI's weights need quick_gelu; most of open_clip's need gelu."""
    attention_heads: int | None = None
    """Attention heads of a block; None: one for every 64 channels, as in every OpenAI model."""
    mlp_width: int | None = None
    """Hidden channels of a block's multi-layer perceptron; None: four times the width."""

    def __post_init__(self) -> None:
        """Raises ValueError where the patches do not tile the frame."""
        if self.image_size % self.patch_size:
            raise ValueError(
                f"patches of {self.patch_size} pixels do not tile a frame of {self.image_size}; "
                "choose an image_size that patch_size divides"
            )

    def build(self, embedding: int) -> "VisionTransformer":
        """The tower, with random weights."""
        return VisionTransformer(self, embedding)


class VisionTransformer(nn.Module):
    """CLIP's ViT (Radford et al. 2021) over clips; an image is a clip of one frame."""

    def __init__(self, config: ViT, embedding: int) -> None:
        super().__init__()
        width, scale = config.width, config.width**-0.5
        patches = (config.image_size // config.patch_size) ** 2
        self.image_size = config.image_size
        self.conv1 = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size, bias=False)
        self.conv2: nn.Conv3d | None = None
        if config.patch_frames == 3:
            size = config.patch_size
            self.conv2 = nn.Conv3d(
                3, width, (3, size, size), stride=(1, size, size), padding=(1, 0, 0), bias=False
            )
            self.inflate(self.conv1.weight)
            self.conv1.requires_grad_(False)  # not read; reference checkpoints hold it too
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(patches + 1, width))
        self.ln_pre = LayerNorm(width)
        self.transformer = Blocks(
            width,
            config.layers,
            config.attention_heads or attention_heads(width),
            activation=config.activation,
            mlp_width=config.mlp_width,
        )
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, embedding))
        self.widths = (width,) * config.layers

    @torch.no_grad()
    def inflate(self, patches: Tensor) -> None:
        """Starts 3D patches from 2D ones (W, 3, P, P): the neighbors count nothing at first."""
        self.conv2.weight.zero_()
        self.conv2.weight[:, :, 1] = patches

    def forward(
        self,
        pixels: Tensor,
        mask: Tensor,
        mixers: Sequence[nn.Module],
        keep_layers: int = 0,
    ) -> Features:
        """Encodes pixels (B, T, 3, H, W), normalized, under mask (B, T) -> Features (B, T, D).

        `mixers` holds one module per block. The tokens after the last `keep_layers` blocks travel
        with the result, for heads that read inside the tower. A mixer that makes one feature of a
        clip makes T = 1 of it; where layers are kept the feature is repeated for every frame, so
        that frames, mask and layers agree.

        Raises ValueError where the frames are not of the tower's size.
        """
        if pixels.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"frames are {tuple(pixels.shape[-2:])} pixels, the tower was made for "
                f"({self.image_size}, {self.image_size}); resize them (videoclip.frames.transforms)"
            )
        clips = len(pixels)
        if self.conv2 is None:
            found = self.conv1(pixels.flatten(0, 1))
            patches = rearrange(found, "(b t) w y x -> b t (y x) w", b=clips)
        else:  # what is no frame is black in the middle of the scale, as beyond a clip's ends
            real = pixels * mask[:, :, None, None, None].to(pixels.dtype)
            patches = rearrange(self.conv2(real.transpose(1, 2)), "b w t y x -> b t (y x) w")
        first = self.class_embedding.to(patches.dtype).expand(*patches.shape[:2], 1, -1)
        tokens = torch.cat([first, patches], dim=2)
        tokens = tokens + self.positional_embedding.to(tokens.dtype)
        if hasattr(mixers[0], "enter"):
            tokens = mixers[0].enter(tokens, mask)
        tokens = self.ln_pre(tokens)
        kept: list[Tensor] = []
        last = len(self.widths) - 1
        for index, (block, mixer) in enumerate(
            zip(self.transformer.resblocks, mixers, strict=True)
        ):
            if index == last and not keep_layers and hasattr(mixer, "read"):
                classes, mask = mixer.read(tokens, mask, block)
                break
            tokens = mixer(tokens, mask, block)
            classes = tokens[:, :, 0]
            if index > last - keep_layers:
                kept.append(tokens)
        return Features(self.ln_post(classes) @ self.proj, mask, tuple(kept))
