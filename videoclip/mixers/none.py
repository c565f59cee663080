"""No mixing: every frame goes through the tower by itself, as in CLIP."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from videoclip.layers import ResidualBlock
from videoclip.mixers.base import Mixer


@dataclass(frozen=True, kw_only=True)
class NoMixer(Mixer):
    """Frames do not see each other inside the tower."""

    takes_maps: ClassVar[bool] = True

    def build(self, width: int, index: int) -> nn.Module:
        """One module without parameters."""
        return Alone()


class Alone(nn.Module):
    """Runs the block on every frame by itself."""

    def forward(self, tokens: Tensor, mask: Tensor, block: ResidualBlock) -> Tensor:
        """(B, T, N, W) -> (B, T, N, W)."""
        return block(tokens)

    def read(self, tokens: Tensor, mask: Tensor, block: ResidualBlock) -> tuple[Tensor, Tensor]:
        """(B, T, N, W) -> the class tokens (B, T, W), and the mask."""
        return block(tokens, queries=tokens[:, :, :1])[:, :, 0], mask

    def on_maps(self, maps: Tensor, mask: Tensor, block: nn.Module) -> Tensor:
        """Feature maps (n, C, H, W) -> (n, C', H', W')."""
        return block(maps)
