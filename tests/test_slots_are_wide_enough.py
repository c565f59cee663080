"""Two modules that might have bent the slots, tried as a user would add them.

X-CLIP's cross-frame messages work inside the blocks and STAN's branch reads several layers of the
tower. Neither is part of the package yet; here they only show that the interfaces carry them.
"""

import copy
from dataclasses import dataclass

import torch
from models import build, clips
from torch import Tensor, nn
from transformers import XCLIPVisionConfig
from transformers.models.x_clip.modeling_x_clip import XCLIPVisionEncoderLayer

from videoclip.layers import Attention, LayerNorm, ResidualBlock
from videoclip.types import Embedding, Features, Frames


class CrossFrame(nn.Module):
    """A message per frame, from the class tokens of all frames, joins the block's attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.message_fc = nn.Linear(width, width)
        self.message_ln = LayerNorm(width)
        self.message_attn = Attention(width, heads)

    def forward(self, tokens: Tensor, mask: Tensor, block: ResidualBlock) -> Tensor:
        message = self.message_fc(tokens[:, :, 0])
        message = message + self.message_attn(self.message_ln(message), mask)
        tokens = torch.cat([tokens, message[:, :, None]], dim=2)
        tokens = (tokens + block.attend(tokens))[:, :, :-1]
        return tokens + block.think(tokens)


def copy_attention(ours: Attention, theirs: nn.Module) -> None:
    parts = (theirs.q_proj, theirs.k_proj, theirs.v_proj)
    ours.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
    ours.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
    ours.out_proj.load_state_dict(theirs.out_proj.state_dict())


@torch.no_grad()
def test_cross_frame_messages_are_a_mixer() -> None:
    """The same numbers as the layer in transformers, random weights."""
    config = XCLIPVisionConfig(
        hidden_size=64, intermediate_size=256, num_attention_heads=2, num_frames=4,
        drop_path_rate=0.0,
    )  # fmt: skip
    theirs = XCLIPVisionEncoderLayer(config).eval()
    for parameter in theirs.parameters():
        parameter.normal_(std=0.1)
    block, mixer = ResidualBlock(64, 2), CrossFrame(64, 2)
    copy_attention(block.attn, theirs.self_attn)
    copy_attention(mixer.message_attn, theirs.message_attn)
    for ours, other in (
        (block.ln_1, theirs.layer_norm1), (block.ln_2, theirs.layer_norm2),
        (block.mlp["c_fc"], theirs.mlp.fc1), (block.mlp["c_proj"], theirs.mlp.fc2),
        (mixer.message_ln, theirs.message_ln), (mixer.message_fc, theirs.message_fc),
    ):  # fmt: skip
        ours.load_state_dict(other.state_dict())
    tokens = torch.randn(3, 4, 5, 64)
    expected = theirs(tokens.flatten(0, 1), attention_mask=None)
    expected = expected[0] if isinstance(expected, tuple) else expected
    found = mixer(tokens, torch.ones(3, 4, dtype=torch.bool), block)
    torch.testing.assert_close(found.flatten(0, 1), expected, atol=1e-5, rtol=0)


@dataclass(frozen=True, kw_only=True)
class BranchSettings:
    """What the spike's head needs."""

    layers: int = 2


class Branch(nn.Module):
    """A branch beside the last blocks: over time per patch, then the copied block over space."""

    def __init__(self, config: BranchSettings, clip: nn.Module) -> None:
        super().__init__()
        visual = clip.visual
        width = visual.proj.shape[0]
        self.reads_layers = config.layers
        self.over_time = nn.ModuleList(Attention(width, 1) for _ in range(config.layers))
        self.temporal_fc = nn.ModuleList(nn.Linear(width, width) for _ in range(config.layers))
        for linear in self.temporal_fc:  # STAN starts without any influence over time
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        # The tower's last layers, as start_from(clip) would copy them.
        self.over_space = copy.deepcopy(visual.transformer.resblocks[-config.layers :])
        self.ln_post = copy.deepcopy(visual.ln_post)
        self.proj = copy.deepcopy(visual.proj)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, features: Features) -> Embedding:
        tokens = torch.zeros_like(features.layers[0])
        for layer, attend, out, block in zip(
            features.layers, self.over_time, self.temporal_fc, self.over_space, strict=True
        ):
            tokens = tokens + layer
            patches = tokens[:, :, 1:].transpose(1, 2)  # (B, N - 1, T, W)
            mask = features.mask[:, None].expand(-1, patches.shape[1], -1)
            moved = patches + out(attend(patches, mask))
            tokens = block(torch.cat([tokens[:, :, :1], moved.transpose(1, 2)], dim=2))
        classes = features.layers[-1][:, :, 0] + self.gate * tokens[:, :, 0]
        frames = self.ln_post(classes) @ self.proj
        weight = features.mask[..., None].float()
        return Embedding((frames * weight).sum(1) / weight.sum(1), frames, features.mask)


def test_a_side_branch_is_a_head_that_asks_for_layers() -> None:
    model = build()
    frames = Frames(clips(2, 4), torch.tensor([[True] * 4, [True, True, False, False]]))
    plain = model.features(frames).frames
    model.head = Branch(BranchSettings(), model.clip)
    closed = model.embed_video(frames)
    torch.testing.assert_close(closed.tokens, plain)
    nn.init.ones_(model.head.gate)
    nn.init.normal_(model.head.temporal_fc[0].weight)
    opened = model.embed_video(frames)
    assert (opened.vector - closed.vector).abs().max() > 1e-3
    padded = frames._replace(pixels=frames.pixels.clone())
    padded.pixels[1, 2:] = 50.0
    torch.testing.assert_close(model.embed_video(padded).vector, opened.vector)
    opened.vector.sum().backward()
    assert model.head.over_time[0].in_proj_weight.grad.abs().sum() > 0
