"""What every mixer is: the slot inside the tower."""

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, kw_only=True)
class Mixer:
    """Settings of a mixer. `build` is called once per block of the tower.

    The module it returns stands around one block and decides how it is run:

        forward(tokens (B, T, N, W), mask (B, T), block) -> (B, T, N, W)

    It may change the tokens and call `block(tokens)`, or run the block's two halves
    (`block.attend`, `block.think`) by itself. Tokens of padded frames (mask False) must never
    reach real ones.
    """

    def build(self, width: int) -> nn.Module:
        """The mixer for one block of a tower of this width."""
        raise NotImplementedError
