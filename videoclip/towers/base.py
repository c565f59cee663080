"""What every vision tower is: pixels -> Features."""

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, kw_only=True)
class Visual:
    """Settings of a vision tower. The module that `build` returns turns frames into Features:

        forward(pixels (B, T, 3, H, W), mask (B, T), mixers, keep_layers) -> Features

    Its `widths` say how many channels the tokens have in each block that takes a mixer; a tower
    without such blocks has none.
    """

    image_size: int = 224
    """Pixels a side of a frame."""

    def build(self, embedding: int) -> nn.Module:
        """The tower for an embedding of this width, with random weights."""
        raise NotImplementedError
