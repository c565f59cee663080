"""What every mixer is: the slot inside the tower."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn


@dataclass(frozen=True, kw_only=True)
class Mixer:
    """Settings of a mixer. `build` is called once per block of the tower.

    The module it returns stands around one block and decides how it is run:

        forward(tokens (B, T, N, W), mask (B, T), block) -> (B, T, N, W)

    It may change the tokens and call `block(tokens)`, or run the block's two halves
    (`block.attend`, `block.think`) by itself. Tokens of padded frames (mask False) must never
    reach real ones. Three optional methods:

        enter(tokens, mask) -> tokens: of the first block's mixer, runs once before `ln_pre`.
        read(tokens, mask, block) -> (class tokens (B, T, W), mask (B, T)): of the last block's
            mixer, instead of `forward` where nothing else is read; T may become 1.
        on_maps(maps (n, C, H, W), mask (B, T), block) -> maps: what `forward` is in a ResNet,
            where the maps are those of the n real frames, clip by clip.
    """

    takes_maps: ClassVar[bool] = False
    """Whether its module has `on_maps`, so that it may stand in a ResNet."""

    def build(self, width: int, index: int) -> nn.Module:
        """The mixer for block `index` of a tower, whose tokens have `width` channels there."""
        raise NotImplementedError
