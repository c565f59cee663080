"""No mixing: every frame goes through the tower by itself, as in CLIP."""

from dataclasses import dataclass

from torch import Tensor, nn

from videoclip.layers import ResidualBlock
from videoclip.mixers.base import Mixer


@dataclass(frozen=True, kw_only=True)
class NoMixer(Mixer):
    """Frames do not see each other inside the tower."""

    def build(self, width: int) -> nn.Module:
        """One module without parameters."""
        return Alone()


class Alone(nn.Module):
    """Runs the block on every frame by itself."""

    alone = True
    """The tower may run its last block for the class token only."""

    def forward(self, tokens: Tensor, mask: Tensor, block: ResidualBlock) -> Tensor:
        """(B, T, N, W) -> (B, T, N, W)."""
        return block(tokens)
