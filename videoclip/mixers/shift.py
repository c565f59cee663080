"""Temporal shift: a share of the channels of every patch comes from the next or previous frame.

Lin et al. 2019 (TSM), section 4, for CLIP's ResNets; brought into CLIP's ViT by ActionCLIP (Wang et
al. 2021).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videoclip.layers import ResidualBlock, moved, moved_maps
from videoclip.mixers.base import Mixer
from videoclip.towers.resnet import Bottleneck


@dataclass(frozen=True, kw_only=True)
class Shift(Mixer):
    """Temporal shift; no parameters, and any number of frames."""

    takes_maps: ClassVar[bool] = True

    divisor: int = 8
    """1/divisor of the channels comes from the next frame, as many from the previous one."""
    placement: Literal["residual", "block"] = "residual"
    """residual: only what the block adds is computed from shifted tokens, the identity path stays
    clean (TSM's `blockres`; its authors found the other harmful). block: the identity path is
    shifted too, the fault that ActionCLIP's released models were trained with."""

    def __post_init__(self) -> None:
        """Raises ValueError where more channels would move than there are."""
        if self.divisor < 2:
            raise ValueError(f"divisor is {self.divisor}; 2 already shifts every channel")

    def build(self, width: int, index: int) -> nn.Module:
        """The shift around one block. Raises ValueError where it would shift no channel."""
        if width < self.divisor:
            raise ValueError(
                f"divisor {self.divisor} moves no channel of {width}; lower it, or widen the tower"
            )
        return TemporalShift(self, width)


class TemporalShift(nn.Module):
    """Shifts patch tokens in time; the class token stays where it is."""

    def __init__(self, config: Shift, width: int) -> None:
        super().__init__()
        self.moving = 2 * (width // config.divisor)
        self.placement = config.placement

    def forward(self, tokens: Tensor, mask: Tensor, block: ResidualBlock) -> Tensor:
        """(B, T, N, W) under mask (B, T) -> (B, T, N, W)."""
        shifted = self.shift(tokens, mask)
        if self.placement == "block":
            return block(shifted)
        tokens = tokens + block.attend(shifted)
        return tokens + block.think(tokens)

    def read(self, tokens: Tensor, mask: Tensor, block: ResidualBlock) -> tuple[Tensor, Tensor]:
        """(B, T, N, W) under mask (B, T) -> the class tokens (B, T, W), and the mask.

        The shift leaves class tokens alone, so the two placements are one here.
        """
        shifted = self.shift(tokens, mask)
        return block(shifted, queries=shifted[:, :, :1])[:, :, 0], mask

    def on_maps(self, maps: Tensor, mask: Tensor, block: Bottleneck) -> Tensor:
        """Feature maps (n, C, H, W) of the real frames of mask (B, T) -> (n, C', H', W').

        In the residual placement every second block of a deep ResNet is left alone, as in TSM.
        """
        if self.placement == "residual" and block.second:
            return block(maps)
        shifted = moved_maps(maps, mask, self.moving)
        if self.placement == "block":
            return block(shifted)
        return F.relu(block.branch(shifted) + block.shortcut(maps))

    def shift(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Moves the channels; zeros come from beyond the clip's ends and from padded frames."""
        classes, patches = tokens[:, :, :1], tokens[:, :, 1:]
        moving = patches[..., : self.moving] * mask[:, :, None, None].to(tokens.dtype)
        shifted = torch.cat([moved(moving, -1), patches[..., self.moving :]], dim=-1)
        return torch.cat([classes, shifted], dim=2)
