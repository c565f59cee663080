"""Temporal shift: a share of the channels of every patch comes from the next or previous frame.

Lin et al. 2019 (TSM), section 4; brought into CLIP's ViT by ActionCLIP (Wang et al. 2021).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from videoclip.layers import ResidualBlock
from videoclip.mixers.base import Mixer


@dataclass(frozen=True, kw_only=True)
class Shift(Mixer):
    """Temporal shift; no parameters."""

    divisor: int = 8
    """1/divisor of the channels comes from the next frame, as many from the previous one."""
    placement: Literal["residual", "block"] = "residual"
    """residual: only what attention reads is shifted, the identity path stays clean (the TSM
    authors' advice). block: the whole block sees shifted tokens, as ActionCLIP released it."""

    def __post_init__(self) -> None:
        """Raises ValueError where more channels would move than there are."""
        if self.divisor < 2:
            raise ValueError(f"divisor is {self.divisor}; 2 already shifts every channel")

    def build(self, width: int) -> nn.Module:
        """The shift around one block."""
        return TemporalShift(self, width)


class TemporalShift(nn.Module):
    """Shifts patch tokens in time; the class token stays where it is."""

    def __init__(self, config: Shift, width: int) -> None:
        super().__init__()
        self.fold = width // config.divisor
        self.placement = config.placement

    def forward(self, tokens: Tensor, mask: Tensor, block: ResidualBlock) -> Tensor:
        """(B, T, N, W) under mask (B, T) -> (B, T, N, W)."""
        shifted = self.shift(tokens, mask)
        if self.placement == "block":
            return block(shifted)
        tokens = tokens + block.attend(shifted)
        return tokens + block.think(tokens)

    def shift(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Moves the channels; zeros come from beyond the clip's ends and from padded frames."""
        real = tokens[:, :, 1:] * mask[:, :, None, None].to(tokens.dtype)
        following, before, rest = real.tensor_split((self.fold, 2 * self.fold), dim=-1)
        zero = torch.zeros_like(real[:, :1])
        moved = [
            torch.cat([following[:, 1:], zero[..., : self.fold]], dim=1),
            torch.cat([zero[..., self.fold : 2 * self.fold], before[:, :-1]], dim=1),
            rest,
        ]
        return torch.cat([tokens[:, :, :1], torch.cat(moved, dim=-1)], dim=2)
