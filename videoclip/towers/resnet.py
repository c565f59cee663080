"""Frames -> Features: CLIP's modified ResNet, under OpenAI's parameter names."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from videoclip.layers import Linear, attention_heads
from videoclip.towers.base import Visual
from videoclip.types import Features

DEEP = 23
"""Bottlenecks of the third stage from which on a mixer may pass over every second one (RN101)."""
EXPANSION = 4
"""A bottleneck's output has this many times the channels of its 3x3 convolution."""
STRIDE = 32
"""Pixels a side of a cell of the last feature map."""


@dataclass(frozen=True, kw_only=True)
class ResNet(Visual):
    """A modified ResNet; the defaults are RN50."""

    width: int = 64
    """Channels of the first stage's 3x3 convolutions; the last feature map has 32 times as many."""
    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    """Bottlenecks of the four stages."""

    def __post_init__(self) -> None:
        """Raises ValueError where the cells of the last feature map do not tile the frame."""
        if self.image_size % STRIDE:
            raise ValueError(
                f"a ResNet reduces a frame {STRIDE} times, which does not divide image_size "
                f"{self.image_size}; choose a multiple of {STRIDE}"
            )

    def build(self, embedding: int) -> "ModifiedResNet":
        """The tower, with random weights."""
        return ModifiedResNet(self, embedding)


class Bottleneck(nn.Module):
    """Three convolutions beside a shortcut; a stride is a mean before a convolution of stride 1.

    Averaging first keeps high frequencies from aliasing (Radford et al. 2021, section 2.4).
    """

    def __init__(self, channels: int, width: int, stride: int, *, second: bool = False) -> None:
        super().__init__()
        self.stride = stride
        self.second = second
        """Whether it is one of the blocks of a deep ResNet that TSM leaves alone: every second."""
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, EXPANSION * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(EXPANSION * width)
        self.downsample = None
        if stride > 1 or channels != EXPANSION * width:
            # "0" and "1" are OpenAI's names; their "-1" is a mean without parameters.
            self.downsample = nn.ModuleDict(
                {
                    "0": nn.Conv2d(channels, EXPANSION * width, 1, bias=False),
                    "1": nn.BatchNorm2d(EXPANSION * width),
                }
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 4 * width, H / stride, W / stride)."""
        return F.relu(self.branch(x) + self.shortcut(x))

    def branch(self, x: Tensor) -> Tensor:
        """What the convolutions make of x (B, C, H, W)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return self.bn3(self.conv3(_mean(out, self.stride)))

    def shortcut(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) in the shape of what is added to it."""
        if self.downsample is None:
            return x
        return self.downsample["1"](self.downsample["0"](_mean(x, self.stride)))


class AttentionPool(nn.Module):
    """Attention whose only query is the mean of the feature map."""

    def __init__(self, cells: int, width: int, embedding: int) -> None:
        super().__init__()
        self.heads = attention_heads(width)
        self.positional_embedding = nn.Parameter(width**-0.5 * torch.randn(cells + 1, width))
        self.k_proj = Linear(width, width)
        self.q_proj = Linear(width, width)
        self.v_proj = Linear(width, width)
        self.c_proj = Linear(width, embedding)
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.c_proj):
            nn.init.normal_(linear.weight, std=width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """A feature map (B, C, H, W) -> (B, D)."""
        tokens = rearrange(x, "b c h w -> b (h w) c")
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        tokens = tokens + self.positional_embedding.to(tokens.dtype)
        query, key, value = (
            rearrange(projected, "b l (h c) -> b h l c", h=self.heads)
            for projected in (self.q_proj(tokens[:, :1]), self.k_proj(tokens), self.v_proj(tokens))
        )
        seen = F.scaled_dot_product_attention(query, key, value)
        return self.c_proj(rearrange(seen, "b h 1 c -> b (h c)"))


class ModifiedResNet(nn.Module):
    """CLIP's ResNet (Radford et al. 2021, section 2.4) over clips; an image is a clip of one frame.

    Three convolutions in the stem, averaging before every stride, attention instead of the mean.
    """

    def __init__(self, config: ResNet, embedding: int) -> None:
        super().__init__()
        width, half = config.width, config.width // 2
        self.image_size = config.image_size
        self.conv1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        channels, widths, deep = width, [], config.layers[2] >= DEEP
        for stage, blocks in enumerate(config.layers):
            inner = width * 2**stage
            built = []
            for block in range(blocks):
                stride, second = 2 if stage and not block else 1, deep and block % 2 == 1
                built.append(Bottleneck(channels, inner, stride, second=second))
                widths.append(channels)
                channels = EXPANSION * inner
            setattr(self, f"layer{stage + 1}", nn.Sequential(*built))
        self.widths = tuple(widths)
        cells = (config.image_size // STRIDE) ** 2
        self.attnpool = AttentionPool(cells, channels, embedding)
        for module in self.modules():
            if isinstance(module, Bottleneck):  # every block starts as its shortcut
                nn.init.zeros_(module.bn3.weight)

    def forward(
        self,
        pixels: Tensor,
        mask: Tensor,
        mixers: Sequence[nn.Module],
        keep_layers: int = 0,
    ) -> Features:
        """Encodes pixels (B, T, 3, H, W), normalized, under mask (B, T) -> Features (B, T, D).

        `mixers` holds one module per bottleneck, which works on maps. Padded frames are left out
        and come back as zeros, for in training batch normalization would mix them into the real
        ones.

        Raises ValueError where the frames are not of the tower's size, and for a head that reads
        layers: this tower has no tokens of one size.
        """
        if pixels.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"frames are {tuple(pixels.shape[-2:])} pixels, the tower was made for "
                f"({self.image_size}, {self.image_size}); resize them (videoclip.frames.transforms)"
            )
        if keep_layers:
            raise ValueError(
                f"a ResNet keeps no layers ({keep_layers} asked for by the head); use a ViT"
            )
        real = self._encode(pixels[mask], mask, mixers)
        frames = real.new_zeros(*mask.shape, real.shape[-1])
        frames[mask] = real
        return Features(frames, mask)

    def _encode(self, x: Tensor, mask: Tensor, mixers: Sequence[nn.Module]) -> Tensor:
        """Images (n, 3, H, W), the real frames of mask (B, T) -> (n, D)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        x = F.avg_pool2d(x, 2)
        blocks = chain(self.layer1, self.layer2, self.layer3, self.layer4)
        for block, mixer in zip(blocks, mixers, strict=True):
            x = mixer.on_maps(x, mask, block)
        return self.attnpool(x)


def _mean(x: Tensor, stride: int) -> Tensor:
    """The means of squares of stride x stride."""
    return F.avg_pool2d(x, stride) if stride > 1 else x
