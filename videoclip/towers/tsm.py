"""Frames -> Features: TSM on torchvision's ResNet, as its authors release it.

A classifier without a text tower: its classes are the table of `labels.py`, and the scorer Dot
makes that the last linear layer. For TSM in the ResNets of CLIP see the mixer Shift.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.resnet import ResNet as Trunk

from videoclip.layers import moved_maps
from videoclip.towers.base import Visual
from videoclip.towers.resnet import DEEP
from videoclip.types import Features

BLOCKS = {"bottleneck": Bottleneck, "basic": BasicBlock}
FIRST, LAST = 64, 512
"""Channels that come into the first block, and inside those of the last stage."""


@dataclass(frozen=True, kw_only=True)
class TSM(Visual):
    """A ResNet whose blocks see the neighboring frames; the defaults are ResNet-50.

    Lin et al. 2019, sections 3 and 4. Any number of frames, and frames of any size.
    """

    pretrained: ClassVar[bool] = False

    block: Literal["bottleneck", "basic"] = "bottleneck"
    """bottleneck: three convolutions (ResNet-50, -101). basic: two (ResNet-18, -34)."""
    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    """Blocks of the four stages."""
    placement: Literal["residual", "block", "none"] = "residual"
    """residual: before the first convolution of a block, its shortcut stays clean (`blockres`), and
    in every second block where the third stage has 23. block: before all blocks, shortcuts
    included. none: frames stay alone (TSN)."""
    divisor: int = 8
    """1/divisor of the channels comes from the next frame, as many from the previous one."""

    def __post_init__(self) -> None:
        """Raises ValueError where more channels would move than there are, or none."""
        if not 2 <= self.divisor <= FIRST:
            raise ValueError(
                f"divisor is {self.divisor}; 2 already shifts every channel, and over {FIRST} none "
                "of the first block moves"
            )

    @property
    def channels(self) -> int:
        """Those of a frame's feature."""
        return LAST * BLOCKS[self.block].expansion

    def build(self, embedding: int) -> "ShiftedResNet":
        """The tower, with random weights. Raises ValueError for another width than its own."""
        if embedding != self.channels:
            raise ValueError(
                f"the features of {self.block} blocks have {self.channels} channels, and the "
                f"embedding is {embedding}; make it {self.channels}"
            )
        return ShiftedResNet(self)


class ShiftedResNet(Trunk):
    """torchvision's ResNet over clips, without its classifier."""

    widths: tuple[int, ...] = ()

    def __init__(self, config: TSM) -> None:
        super().__init__(BLOCKS[config.block], list(config.layers), num_classes=1)
        self.fc = nn.Identity()
        self.config = config
        self.every = 2 if config.placement == "residual" and config.layers[2] >= DEEP else 1

    def forward(
        self,
        pixels: Tensor,
        mask: Tensor,
        mixers: Sequence[nn.Module] = (),
        keep_layers: int = 0,
    ) -> Features:
        """Encodes pixels (B, T, 3, H, W), normalized, under mask (B, T) -> Features (B, T, D).

        Padded frames are left out and come back as zeros: neither the shift nor, in training, batch
        normalization brings anything of them into the real ones.

        Raises ValueError for a head that asks for the layers of the tower: there are no tokens.
        """
        if keep_layers:
            raise ValueError(
                f"TSM keeps no layers ({keep_layers} asked for by the head); take the head mean"
            )
        x = self.maxpool(self.relu(self.bn1(self.conv1(pixels[mask]))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for number, block in enumerate(stage):
                x = self._through(block, x, mask, shifts=number % self.every == 0)
        real = self.avgpool(x).flatten(1)
        frames = real.new_zeros(*mask.shape, real.shape[1])
        frames[mask] = real
        return Features(frames, mask)

    def _through(
        self, block: BasicBlock | Bottleneck, x: Tensor, mask: Tensor, *, shifts: bool
    ) -> Tensor:
        """Runs a block on the maps (n, C, H, W) of the real frames of mask (B, T)."""
        shifted = x
        if shifts and self.config.placement != "none":
            shifted = moved_maps(x, mask, 2 * (x.shape[1] // self.config.divisor))
        if self.config.placement == "block":
            x = shifted
        out = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(shifted)))))
        if isinstance(block, Bottleneck):
            out = block.bn3(block.conv3(block.relu(out)))
        return block.relu(out + (x if block.downsample is None else block.downsample(x)))
