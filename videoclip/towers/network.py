"""Frames -> Features: pytorchvideo's video networks, from scratch and without any text.

The row of a recognition table that says what CLIP's pre-training is worth: these networks see
space and time at once and know nothing before they are trained.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from videoclip.towers.base import Visual
from videoclip.types import Features

STRIDE = 32
"""Pixels a side of a cell of the last feature map."""
SLOW = 4
"""SlowFast's slow pathway sees one frame of so many (Feichtenhofer et al. 2019, section 3.1)."""
MVIT = {
    "embed_dim_mul": [[1, 2.0], [3, 2.0], [14, 2.0]],
    "atten_head_mul": [[1, 2.0], [3, 2.0], [14, 2.0]],
    "pool_q_stride_size": [[1, 1, 2, 2], [3, 1, 2, 2], [14, 1, 2, 2]],
    "pool_kv_stride_adaptive": [1, 8, 8],
    "pool_kvq_kernel": [3, 3, 3],
}
"""MViT-B (Fan et al. 2021, table 3): where channels and heads double and the grid halves."""


@dataclass(frozen=True, kw_only=True)
class Network(Visual):
    """A video network of pytorchvideo with random weights; one feature of a clip comes out."""

    pretrained: ClassVar[bool] = False

    family: Literal["x3d", "slowfast", "mvit"] = "x3d"
    """x3d: X3D-M, 3.8 million parameters. slowfast: SlowFast-R50. mvit: MViT-B."""
    frames: int = 16
    """Frames that the network is built for, a multiple of 4 for slowfast and of 2 for mvit. Of
    clips with another number they are taken at even distances, some twice where there are fewer."""
    width: float = 1.0
    """Channels as a share of the published network's."""

    def __post_init__(self) -> None:
        """Raises ValueError where the network cannot be built for this size."""
        step = {"x3d": 1, "slowfast": SLOW, "mvit": 2}[self.family]
        if self.frames < step or self.frames % step:
            raise ValueError(
                f"{self.family} is built for a multiple of {step} frames, not {self.frames}"
            )
        if self.image_size % STRIDE:
            raise ValueError(
                f"{self.family} reduces a frame {STRIDE} times, which does not divide image_size "
                f"{self.image_size}; choose a multiple of {STRIDE}"
            )

    def build(self, embedding: int) -> "VideoNetwork":
        """The tower, with random weights."""
        return VideoNetwork(self, embedding)


class VideoNetwork(nn.Module):
    """A network of pytorchvideo whose last layer makes the feature instead of class scores."""

    widths: tuple[int, ...] = ()

    def __init__(self, config: Network, embedding: int) -> None:
        super().__init__()
        self.frames = config.frames
        self.two_pathways = config.family == "slowfast"
        with warnings.catch_warnings(), torch.device("cpu"):  # MViT reads numbers while it is made
            warnings.simplefilter("ignore")  # importing it compiles two functions in an old way
            network = MAKERS[config.family](config, embedding)
        self.network = network.to(torch.get_default_device())

    def forward(
        self,
        pixels: Tensor,
        mask: Tensor,
        mixers: Sequence[nn.Module] = (),
        keep_layers: int = 0,
    ) -> Features:
        """Pixels (B, T, 3, H, W) under mask (B, T) -> Features with one frame, (B, 1, D).

        Raises ValueError for a head that asks for the layers of the tower: there are none to read.
        """
        if keep_layers:
            raise ValueError(
                "a video network has no layers that a head could read; take the head mean"
            )
        real = mask.sum(1)
        # The middles of equal parts of the real frames, as segment sampling takes them.
        middles = (torch.arange(self.frames, device=mask.device) + 0.5) / self.frames
        taken = (middles * real[:, None]).long()
        clips = torch.arange(len(pixels), device=mask.device)[:, None]
        x = rearrange(pixels[clips, taken], "b t c h w -> b c t h w")
        out = self.network([x[:, :, ::SLOW].clone(), x] if self.two_pathways else x)
        return Features(out[:, None], mask.new_ones(len(out), 1))


def _x3d(config: Network, embedding: int) -> nn.Module:
    from pytorchvideo.models.x3d import create_x3d

    return create_x3d(
        input_clip_length=config.frames, input_crop_size=config.image_size,
        width_factor=2.0 * config.width, head_dim_out=_channels(2048, config),
        model_num_class=embedding, head_activation=None,
        inner_act=nn.SiLU,  # the same function as the default, whose gradient warns in new PyTorch
    )  # fmt: skip


def _slowfast(config: Network, embedding: int) -> nn.Module:
    from pytorchvideo.models.slowfast import create_slowfast

    side = config.image_size // STRIDE
    return create_slowfast(
        stem_dim_outs=(_channels(64, config), _channels(64, config) // 8),
        head_pool_kernel_sizes=((config.frames // SLOW, side, side), (config.frames, side, side)),
        model_num_class=embedding,
    )  # fmt: skip


def _mvit(config: Network, embedding: int) -> nn.Module:
    from pytorchvideo.models.vision_transformers import create_multiscale_vision_transformers

    return create_multiscale_vision_transformers(
        spatial_size=config.image_size, temporal_size=config.frames,
        patch_embed_dim=_channels(96, config), head_num_classes=embedding, **MVIT,
    )  # fmt: skip


MAKERS = {"x3d": _x3d, "slowfast": _slowfast, "mvit": _mvit}


def _channels(published: int, config: Network) -> int:
    return 8 * max(1, math.ceil(published * config.width / 8))
