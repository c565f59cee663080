"""The few layers that towers, heads and scorers share, with OpenAI's parameter names."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Activation = Literal["quick_gelu", "gelu"]


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI CLIP's activation, x * sigmoid(1.702 x). Not GELU: the difference ruins weights."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "quick_gelu": quick_gelu,
    "gelu": F.gelu,
}


def attention_heads(width: int) -> int:
    """The number of attention heads of a width: 64 channels a head, as in every OpenAI model."""
    return max(1, width // 64)


class LayerNorm(nn.LayerNorm):
    """Layer normalization in float32 whatever the input's type, as OpenAI's CLIP does it."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes the last axis of (..., W)."""
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention with the parameter names of `nn.MultiheadAttention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} cannot be split into {heads} attention heads")
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, causal: bool = False) -> Tensor:
        """Attends within each (L, W) of x (..., L, W), to keys where mask (..., L) is True.

        A row whose keys are all unseen would be a softmax over nothing, so callers keep one.
        """
        lead = x.shape[:-2]
        projected = F.linear(x.flatten(0, -3), self.in_proj_weight, self.in_proj_bias)
        query, key, value = rearrange(projected, "b l (p h w) -> p b h l w", p=3, h=self.heads)
        keys_seen = None if mask is None else mask.flatten(0, -2)[:, None, None, :]
        seen = F.scaled_dot_product_attention(
            query, key, value, attn_mask=keys_seen, is_causal=causal
        )
        return self.out_proj(rearrange(seen, "b h l w -> b l (h w)")).unflatten(0, lead)


class ResidualBlock(nn.Module):
    """CLIP's pre-normalized transformer block, in two halves that a mixer may call separately."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        activation: Activation = "quick_gelu",
        mlp_width: int | None = None,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.ln_1 = LayerNorm(width, eps=eps)
        self.mlp = nn.ModuleDict(
            {
                "c_fc": nn.Linear(width, mlp_width or 4 * width),
                "c_proj": nn.Linear(mlp_width or 4 * width, width),
            }
        )
        self.ln_2 = LayerNorm(width, eps=eps)
        self.activation = ACTIVATIONS[activation]

    def attend(self, x: Tensor, mask: Tensor | None = None, *, causal: bool = False) -> Tensor:
        """What attention adds to x (..., L, W)."""
        return self.attn(self.ln_1(x), mask, causal=causal)

    def think(self, x: Tensor) -> Tensor:
        """What the multi-layer perceptron adds to x (..., L, W)."""
        return self.mlp["c_proj"](self.activation(self.mlp["c_fc"](self.ln_2(x))))

    def forward(self, x: Tensor, mask: Tensor | None = None, *, causal: bool = False) -> Tensor:
        """The whole block, (..., L, W) -> (..., L, W)."""
        x = x + self.attend(x, mask, causal=causal)
        return x + self.think(x)


class Blocks(nn.Module):
    """A stack of residual blocks under OpenAI's name `resblocks`."""

    def __init__(self, width: int, layers: int, heads: int, **block: object) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(ResidualBlock(width, heads, **block) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None, *, causal: bool = False) -> Tensor:
        """Runs every block on (..., L, W)."""
        for block in self.resblocks:
            x = block(x, mask, causal=causal)
        return x

    def start_from(self, other: "Blocks") -> bool:
        """Copies the first blocks of another stack; False, and nothing changed, if sizes differ.

        CLIP4Clip starts its temporal blocks from the text tower's; where widths differ there is
        nothing to copy and the random start stays.
        """
        pairs = list(zip(self.resblocks, other.resblocks, strict=False))
        if not pairs or any(_shapes(new) != _shapes(old) for new, old in pairs):
            return False
        for new, old in pairs:
            new.load_state_dict(old.state_dict())
        return True


@torch.no_grad()
def start_positions(table: Tensor, source: Tensor) -> None:
    """Copies the rows of one table of positions (P, D) that another (S, D) has, if widths agree."""
    if table.shape[1] == source.shape[1]:
        rows = min(len(table), len(source))
        table[:rows] = source[:rows]


def _shapes(module: nn.Module) -> list[torch.Size]:
    return [parameter.shape for parameter in module.parameters()]


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x (B, L, D) over the real entries of mask (B, L) -> (B, D); zero if none."""
    weight = mask.to(x.dtype).unsqueeze(-1)
    return (x * weight).sum(1) / weight.sum(1).clamp(min=1)


def positions(table: Tensor, length: int) -> Tensor:
    """The first `length` rows of a table (P, D) of positions; stretched linearly if it is shorter.

    Slicing is what the reference projects do; they stop with an error beyond the table's end.
    """
    if length <= len(table):
        return table[:length]
    stretched = F.interpolate(table.T[None], size=length, mode="linear", align_corners=True)
    return stretched[0].T
