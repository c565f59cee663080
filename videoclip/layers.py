"""The few layers that towers, heads and scorers share, with OpenAI's parameter names."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Activation = Literal["quick_gelu", "gelu"]
FEW_ROWS = 64
"""With fewer, preparing a convolution takes longer than it saves."""


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI CLIP's activation, x * sigmoid(1.702 x). Not GELU: the difference ruins weights.

    Written with torch's x * sigmoid(x), whose gradient is one operation and keeps one tensor.
    """
    return F.silu(1.702 * x) / 1.702


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "quick_gelu": quick_gelu,
    "gelu": F.gelu,
}


def attention_heads(width: int) -> int:
    """The number of attention heads of a width: 64 channels a head, as in every OpenAI model."""
    return max(1, width // 64)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear of (..., W); float32 on x86 processors goes through oneDNN instead of MKL.

    torch offers oneDNN for float32 only as a convolution, here of one pixel. On an AMD EPYC (Zen 5)
    that takes half the time (docs/benchmarks.md).
    """
    rows = x.shape[:-1].numel()
    if (
        torch.compiler.is_compiling()  # which does not know that call
        or rows < FEW_ROWS
        or x.dtype != torch.float32
        or x.device.type != "cpu"
        or torch.is_autocast_enabled("cpu")
        or not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available())
    ):
        return F.linear(x, weight, bias)
    pixels, filters = x.reshape(1, rows, 1, -1).movedim(-1, 1), weight[:, :, None, None]
    found = torch.mkldnn_convolution(pixels, filters, bias, (0, 0), (1, 1), (1, 1), 1)
    return found.movedim(1, -1).reshape(*x.shape[:-1], -1)


def attention(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None = None, *, causal: bool = False
) -> Tensor:
    """Attention of (B, heads, L, W / heads) to the keys where `seen`, (B, 1, 1, L), is True.

    Spelled out for bfloat16 on a CPU, where torch's own takes up to twice the time, and six times
    for the gradients (docs/benchmarks.md).
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, is_causal=causal)
    scores = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)
    if causal:
        seen = torch.ones_like(scores[0, 0], dtype=torch.bool).tril()
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    return scores.softmax(-1) @ value


class Linear(nn.Linear):
    """A linear layer that calls `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., W) -> (..., W')."""
        return linear(x, self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """Layer normalization in float32 whatever the input's type, as OpenAI's CLIP does it."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes the last axis of (..., W)."""
        if x.dtype == self.weight.dtype:  # torch then computes in float32 by itself
            return super().forward(x)
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
        self.out_proj = Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        causal: bool = False,
        queries: Tensor | None = None,
    ) -> Tensor:
        """Attends within each (L, W) of x (..., L, W), to keys where mask (..., L) is True.

        A row whose keys are all unseen would be a softmax over nothing, so callers keep one. Where
        `queries` (..., Q, W) are given, these attend to x instead of its own rows.
        """
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if queries is None:
            query, key, value = self._by_head(linear(x, weight, bias))
        elif queries.shape[-2] == 1:
            return self._read(queries, x, mask)
        else:
            sizes = [x.shape[-1], 2 * x.shape[-1]]
            weights, biases = weight.split(sizes), bias.split(sizes)
            (query,) = self._by_head(linear(queries, weights[0], biases[0]))
            key, value = self._by_head(linear(x, weights[1], biases[1]))
        keys_seen = None if mask is None else mask.flatten(0, -2)[:, None, None, :]
        seen = attention(query, key, value, keys_seen, causal=causal)
        return self.out_proj(seen.transpose(1, 2).flatten(-2).unflatten(0, x.shape[:-2]))

    def _read(self, query: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        """One row (..., 1, W) attends to x (..., L, W) -> (..., 1, W).

        Keys and values are projections of rows that nobody else reads. So the query is projected
        onto x instead of x onto the query, and what it reads is projected after it was weighted:
        two rows of work instead of 2 L. The bias of the keys moves all scores alike: no softmax
        sees it.
        """
        by_head = (self.heads, -1)
        query_weight, key_weight, value_weight = self.in_proj_weight.chunk(3)
        query_bias, _, value_bias = self.in_proj_bias.chunk(3)
        rows = linear(query, query_weight, query_bias).flatten(0, -2).unflatten(-1, by_head)
        onto = torch.einsum("bhd,hdw->bhw", rows, key_weight.unflatten(0, by_head))
        x = x.flatten(0, -3)
        scores = rows.shape[-1] ** -0.5 * onto @ x.transpose(1, 2)
        if mask is not None:
            scores = scores.masked_fill(~mask.flatten(0, -2)[:, None], -torch.inf)
        seen = scores.softmax(-1) @ x
        read = torch.einsum("bhw,hdw->bhd", seen, value_weight.unflatten(0, by_head))
        return self.out_proj((read.flatten(-2) + value_bias).unflatten(0, query.shape[:-1]))

    def _by_head(self, projected: Tensor) -> tuple[Tensor, ...]:
        """(..., L, N * W) -> N of (B, heads, L, W / heads), without a copy."""
        channels = self.out_proj.in_features // self.heads
        parts = projected.flatten(0, -3).unflatten(-1, (-1, self.heads, channels))
        return parts.transpose(1, 3).unbind(2)


def half_block(half: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Half a block as its block is told to run it: computed again for its gradients, left out."""

    @functools.wraps(half)
    def computed(block: "ResidualBlock", *inputs: Tensor | None, **options: object) -> Tensor:
        if block.checkpointing and torch.is_grad_enabled():
            added = checkpoint(half, block, *inputs, use_reentrant=False, **options)
        else:
            added = half(block, *inputs, **options)
        if not (block.training and block.passed_by):
            return added
        # Nothing for samples that pass by, for the others so much more that the mean stays.
        drawn = torch.rand(len(added), *[1] * (added.ndim - 1), device=added.device)
        return added * (drawn >= block.passed_by).to(added.dtype) / (1 - block.passed_by)

    return computed


class ResidualBlock(nn.Module):
    """CLIP's pre-normalized transformer block, in two halves that a mixer may call separately."""

    checkpointing = False
    """Whether gradients are computed from the input again instead of from kept activations."""
    passed_by = 0.0
    """How often, in training, a sample of the first axis passes by each half of the block."""

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
                "c_fc": Linear(width, mlp_width or 4 * width),
                "c_proj": Linear(mlp_width or 4 * width, width),
            }
        )
        self.ln_2 = LayerNorm(width, eps=eps)
        self.activation = ACTIVATIONS[activation]

    @half_block
    def attend(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        causal: bool = False,
        queries: Tensor | None = None,
    ) -> Tensor:
        """What attention adds to x (..., L, W), or to other rows that attend to it."""
        if queries is not None:
            queries = self.ln_1(queries)
        return self.attn(self.ln_1(x), mask, causal=causal, queries=queries)

    @half_block
    def think(self, x: Tensor) -> Tensor:
        """What the multi-layer perceptron adds to x (..., L, W)."""
        return self.mlp["c_proj"](self.activation(self.mlp["c_fc"](self.ln_2(x))))

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        causal: bool = False,
        queries: Tensor | None = None,
    ) -> Tensor:
        """The whole block, (..., L, W) -> (..., L, W).

        Where only a few rows are read afterwards they may be given as `queries` (..., Q, W): the
        result is theirs, and a twelfth of ViT-B's work is not done for the others.
        """
        rows = x if queries is None else queries
        rows = rows + self.attend(x, mask, causal=causal, queries=queries)
        return rows + self.think(rows)


class Blocks(nn.Module):
    """A stack of residual blocks under OpenAI's name `resblocks`."""

    def __init__(self, width: int, layers: int, heads: int, **block: object) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(ResidualBlock(width, heads, **block) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Runs every block on (..., L, W)."""
        for block in self.resblocks:
            x = block(x, mask)
        return x

    def checkpoint(self, on: bool) -> None:
        """Switches gradient checkpointing on or off in every block."""
        for block in self.resblocks:
            block.checkpointing = on

    def pass_by(self, rate: float) -> None:
        """Lets samples pass by the last block so often, and less often by those before it."""
        for number, block in enumerate(self.resblocks, 1):
            block.passed_by = rate * number / len(self.resblocks)

    def read(self, x: Tensor, ends: Tensor) -> Tensor:
        """Runs every block, causally, on (N, L, W); the result (N, W) is what stands at `ends`.

        The last block is run for that row only, which sees what stands before it and itself.
        """
        *blocks, last = self.resblocks
        for block in blocks:
            x = block(x, causal=True)
        seen = torch.arange(x.shape[1], device=x.device) <= ends[:, None]
        row = x[torch.arange(len(x), device=x.device), ends]
        return last(x, seen, queries=row[:, None])[:, 0]

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


def start_linears(module: nn.Module) -> None:
    """Starts the linear layers inside at N(0, 0.02), where CLIP4Clip and ActionCLIP start theirs.

    What attention reads with stays at torch's Xavier start, as it does there.
    """
    for linear in (m for m in module.modules() if isinstance(m, nn.Linear)):
        nn.init.normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)


@torch.no_grad()
def start_positions(table: Tensor, source: Tensor) -> None:
    """Copies the rows of one table of positions (P, D) that another (S, D) has, if widths agree."""
    if table.shape[1] == source.shape[1]:
        rows = min(len(table), len(source))
        table[:rows] = source[:rows]


def moved(x: Tensor, channels: int) -> Tensor:
    """x (B, T, ...): half of what lies along `channels` from frame t + 1, half from t - 1."""
    following, before = x.tensor_split(2, dim=channels)
    zero = torch.zeros_like(following[:, :1])
    parts = [torch.cat([following[:, 1:], zero], 1), torch.cat([zero, before[:, :-1]], 1)]
    return torch.cat(parts, dim=channels)


def moved_maps(maps: Tensor, mask: Tensor, moving: int) -> Tensor:
    """Maps (n, C, H, W) of the real frames of mask (B, T), their first `moving` channels `moved`.

    Zeros come from beyond the clip's ends and from padded frames.
    """
    clips = maps.new_zeros(*mask.shape, moving, *maps.shape[2:])
    clips[mask] = maps[:, :moving]
    return torch.cat([moved(clips, 2)[mask], maps[:, moving:]], dim=1)


def _shapes(module: nn.Module) -> list[torch.Size]:
    return [parameter.shape for parameter in module.parameters()]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A context in which a model is in evaluation mode; then each part is in its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x (B, L, D) over the real entries of mask (B, L) -> (B, D); zero if none."""
    weight = mask.to(x.dtype).unsqueeze(-1)
    return (x * weight).sum(1) / weight.sum(1).clamp(min=1)


def positions(table: Tensor, mask: Tensor, *, spread: bool = False) -> Tensor:
    """A table (P, D) of positions for the frames of mask (B, T) -> (B, T, D).

    Frame t gets row t. A clip of more frames than rows gets the table stretched linearly over its
    frames, its own ones: what else is in the batch changes nothing. With `spread` so does a clip of
    fewer frames; that suits a table which was trained at one length, where rows are shares of the
    clip. Slicing is what the reference projects do; they stop beyond the table's end.
    """
    last = len(table) - 1
    frames = torch.arange(mask.shape[1], device=mask.device)
    ends = (frames * mask).amax(dim=1, keepdim=True)
    stretched = frames * last / ends.clamp(min=1)
    rows = torch.where((ends != last) if spread else (ends > last), stretched, frames)
    rows = rows.clamp(max=last)  # beyond a clip's last frame is padding
    below = rows.long()
    above = (below + 1).clamp(max=last)
    return torch.lerp(table[below], table[above], (rows - below)[..., None].to(table.dtype))
