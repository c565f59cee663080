"""Joint space-time attention: in every block each patch sees the patches of all frames.

ActionCLIP's pre-network prompt (Wang et al. 2021, section 3.3), whose released code stops with an
error; laid out as Text4Vis (Wu et al. 2023) has it, where it runs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from videoclip.layers import ResidualBlock, positions
from videoclip.mixers.base import Mixer


@dataclass(frozen=True, kw_only=True)
class Joint(Mixer):
    """One sequence of all frames' patches with one class token a clip: one feature a clip.

    The head sees a clip of one frame, so that `mean` leaves the feature as it is. Attention costs
    the square of the number of frames.
    """

    max_frames: int = 8
    """Rows of the table of time positions. A clip with more or fewer frames stretches it linearly
    over its own frames; a clip of one frame reads the first row. The references take clips of
    exactly this length."""

    def build(self, width: int, index: int) -> nn.Module:
        """The attention around one block; the first one also tells the frames their time."""
        return TimedJointAttention(self, width) if index == 0 else JointAttention()


class JointAttention(nn.Module):
    """Runs the block on the patches of all real frames together.

    Between the blocks a clip's class token stands in each of its frames, so that tokens keep their
    shape for what else may read them.
    """

    def forward(self, tokens: Tensor, mask: Tensor, block: ResidualBlock) -> Tensor:
        """(B, T, N, W) under mask (B, T) -> (B, T, N, W)."""
        sequence, seen = self.sequence(tokens, mask)
        sequence = block(sequence, seen)
        patches = sequence[:, 1:].unflatten(1, (mask.shape[1], -1))
        first = sequence[:, None, :1].expand(-1, mask.shape[1], -1, -1)
        return torch.cat([first, patches], dim=2)

    def read(self, tokens: Tensor, mask: Tensor, block: ResidualBlock) -> tuple[Tensor, Tensor]:
        """(B, T, N, W) under mask (B, T) -> the class token (B, 1, W), which is real: (B, 1)."""
        sequence, seen = self.sequence(tokens, mask)
        return block(sequence, seen, queries=sequence[:, :1]), seen[:, :1]

    def sequence(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, T, N, W) -> (B, 1 + T (N - 1), W), and which of them are real."""
        patches = tokens[:, :, 1:]
        real = mask[:, :, None].expand(patches.shape[:3]).flatten(1)
        seen = torch.cat([mask.new_ones(len(mask), 1), real], dim=1)
        return torch.cat([tokens[:, 0, :1], patches.flatten(1, 2)], dim=1), seen


class TimedJointAttention(JointAttention):
    """The first block's, with the time of the frames."""

    def __init__(self, config: Joint, width: int) -> None:
        super().__init__()
        self.time_embedding = nn.Parameter(width**-0.5 * torch.randn(config.max_frames, width))

    def enter(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Adds the time of its frame to every patch; the class token has none."""
        time = positions(self.time_embedding, mask, spread=True).to(tokens.dtype)
        return torch.cat([tokens[:, :, :1], tokens[:, :, 1:] + time[:, :, None]], dim=2)
