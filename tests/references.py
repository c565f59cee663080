"""CLIP4Clip, ActionCLIP and TSM once more, plainly: one pair at a time, on open_clip's towers.

Written down from their description, with torch's own attention and under the reference projects'
parameter names, so that any width, depth and length can be compared, not only the golden tensors'.
"""

import re
from typing import NamedTuple

import open_clip
import torch
import torch.nn.functional as F
from foreign import randomized
from torch import Tensor, nn

from videoclip.heads import LSTM, ClassToken, Convolution, Head, Mean, Transformer
from videoclip.mixers import Mixer, NoMixer
from videoclip.model import Model, VideoCLIP
from videoclip.scorers import Cosine, Scorer, Tight
from videoclip.towers import ResNet, Text, ViT


class Sizes(NamedTuple):
    """The sizes of a CLIP, of which both projects read the rest off the weights."""

    width: int = 128
    layers: int = 2
    patch: int = 16
    image: int = 32
    text_width: int = 128
    text_layers: int = 2
    embedding: int = 128
    context: int = 77
    resnet: tuple[int, int, int, int] | None = None


VOCABULARY = 600


def plain_clip(sizes: Sizes) -> nn.Module:
    vision = {"layers": sizes.layers, "patch_size": sizes.patch}
    if sizes.resnet:
        vision = {"layers": list(sizes.resnet)}
    return open_clip.model.CLIP(
        embed_dim=sizes.embedding,
        vision_cfg={"width": sizes.width, "image_size": sizes.image, **vision},
        text_cfg={
            "width": sizes.text_width, "heads": sizes.text_width // 64, "vocab_size": VOCABULARY,
            "layers": sizes.text_layers, "context_length": sizes.context,
        },
        quick_gelu=True,
    )  # fmt: skip


def our_model(
    sizes: Sizes,
    head: Head | None = None,
    scorer: Scorer | None = None,
    mixer: Mixer | None = None,
    patch_frames: int = 1,
) -> VideoCLIP:
    """Our model of the same sizes."""
    visual = ViT(
        width=sizes.width, layers=sizes.layers, patch_size=sizes.patch, image_size=sizes.image,
        patch_frames=patch_frames,
    )  # fmt: skip
    if sizes.resnet:
        visual = ResNet(width=sizes.width, layers=sizes.resnet, image_size=sizes.image)
    return Model(
        visual=visual,
        text=Text(
            width=sizes.text_width, layers=sizes.text_layers, vocabulary=VOCABULARY,
            context_length=sizes.context,
        ),
        embedding=sizes.embedding,
        mixer=mixer or NoMixer(),
        head=head or Mean(),
        scorer=scorer or Cosine(),
    ).build().eval()  # fmt: skip


class Norm(nn.Module):
    """Layer normalization as both projects have it in their heads: 1e-12, step by step."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        centered = x - x.mean(-1, keepdim=True)
        variance = centered.pow(2).mean(-1, keepdim=True)
        return self.weight * (centered / torch.sqrt(variance + 1e-12)) + self.bias


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1, self.ln_2 = Norm(width), Norm(width)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)}
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, L, D); keys where mask (B, L) is False get -1e6."""
        bias = ((1 - mask.float()) * -1e6)[:, None].expand(-1, x.shape[1], -1)
        y = self.ln_1(x)
        bias = bias.repeat_interleave(self.attn.num_heads, 0)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=bias)[0]
        hidden = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](hidden * torch.sigmoid(1.702 * hidden))


def stack(width: int, heads: int, layers: int) -> nn.ModuleDict:
    return nn.ModuleDict({"resblocks": nn.ModuleList(Block(width, heads) for _ in range(layers))})


class Clip4Clip(nn.Module):
    """CLIP4Clip with one of its four heads; attributes are named as in its checkpoints."""

    def __init__(self, sizes: Sizes, name: str, layers: int = 2, threefold: bool = False) -> None:
        super().__init__()
        self.sizes, self.name = sizes, name
        self.clip = plain_clip(sizes)
        width, heads, patch = sizes.text_width, sizes.text_width // 64, sizes.patch
        if threefold:
            self.clip.visual.conv2 = nn.Conv3d(
                3, sizes.width, (3, patch, patch), (1, patch, patch), (1, 0, 0), bias=False
            )
        if name in ("seqLSTM", "seqTransf"):
            self.frame_position_embeddings = nn.Embedding(sizes.context, width)
        if name == "seqLSTM":
            self.lstm_visual = nn.LSTM(width, width, batch_first=True)
        if name == "seqTransf":
            self.transformerClip = stack(width, heads, layers)
        if name == "tightTransf":
            self.cross = nn.ModuleDict(
                {
                    "embeddings": nn.ModuleDict(
                        {"position_embeddings": nn.Embedding(sizes.context, width)}
                    ),
                    "transformer": stack(width, heads, layers),
                    "pooler": nn.ModuleDict(
                        {"ln_pool": Norm(width), "dense": nn.Linear(width, width)}
                    ),
                }
            )
            self.similarity_dense = nn.Linear(width, 1)

    def frames(self, video: Tensor) -> Tensor:
        """Clips (V, T, 3, H, W) -> (V, T, D)."""
        patches = None
        if hasattr(self.clip.visual, "conv2"):
            patches = self.clip.visual.conv2(video.transpose(1, 2)).transpose(1, 2).flatten(0, 1)
        tokens = tokens_of(self.clip.visual, video.flatten(0, 1), patches)
        for block in self.clip.visual.transformer.resblocks:
            tokens = block(tokens)
        return read(self.clip.visual, tokens[:, 0]).unflatten(0, video.shape[:2])

    def similarity(self, ids: Tensor, video: Tensor, mask: Tensor) -> Tensor:
        """(Q, V), every pair by itself."""
        text, frames = text_of(self.clip, ids), self.frames(video)
        pairs = [[self.score(t, f, m) for f, m in zip(frames, mask, strict=True)] for t in text]
        return torch.stack([torch.stack(row) for row in pairs])

    def score(self, text: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
        """Text (D,) and clip (T, D) under mask (T,) -> a number."""
        if self.name == "tightTransf":
            x = torch.cat([text[None], frames])
            x = x + self.cross["embeddings"]["position_embeddings"].weight[: len(x)]
            seen = torch.cat([torch.ones(1, dtype=torch.bool), mask])
            for block in self.cross["transformer"]["resblocks"]:
                x = block(x[None], seen[None])[0]
            x = self.cross["pooler"]["dense"](self.cross["pooler"]["ln_pool"](x)[0])
            return self.similarity_dense(x * torch.sigmoid(1.702 * x))[0]
        frames = self.over_time(frames, mask)
        frames = frames / frames.norm(dim=-1, keepdim=True)
        pooled = (frames * mask[:, None]).sum(0) / mask.sum()
        cosine = text / text.norm() @ (pooled / pooled.norm())
        return self.clip.logit_scale.exp() * cosine

    def over_time(self, frames: Tensor, mask: Tensor) -> Tensor:
        if self.name == "seqLSTM":
            real = int(mask.sum())
            found, _ = self.lstm_visual(frames[:real])
            return frames + torch.cat([found, frames[real:]])
        if self.name == "seqTransf":
            x = (frames + self.frame_position_embeddings.weight[: len(frames)])[None]
            for block in self.transformerClip["resblocks"]:
                x = block(x, mask[None])
            return frames + x[0]
        return frames


class ActionClip(nn.Module):
    """ActionCLIP: `model` and `fusion` are its two state dicts."""

    def __init__(self, sizes: Sizes, name: str, frames: int, shift: bool = False) -> None:
        super().__init__()
        self.name, self.shift = name, shift
        self.model, self.fusion = plain_clip(sizes), nn.Module()
        width, heads = sizes.embedding, sizes.text_width // 64
        if name != "meanP":
            self.fusion.frame_position_embeddings = nn.Embedding(sizes.context, width)
        if name == "Conv_1D":
            self.fusion.shift = nn.Conv1d(width, width, 3, padding=1, groups=width, bias=False)
        if name == "LSTM":
            self.fusion.lstm_visual = nn.LSTM(width, width, batch_first=True)
        if name == "Transf":
            self.fusion.transformer = stack(width, heads, 6)
        if name == "Transf_cls":
            layer = nn.TransformerEncoderLayer(width, 8)
            self.fusion.transformer = nn.Module()
            self.fusion.transformer.transformer_enc = nn.TransformerEncoder(
                layer, 6, nn.LayerNorm(width), enable_nested_tensor=False
            )
            self.fusion.transformer.cls_token = nn.Parameter(torch.zeros(1, 1, width))
            self.fusion.transformer.pos_embed = nn.Parameter(torch.zeros(1, frames + 1, width))

    def videos(self, video: Tensor) -> Tensor:
        """Clips (V, T, 3, H, W) -> (V, D)."""
        tokens = tokens_of(self.model.visual, video.flatten(0, 1))
        for block in self.model.visual.transformer.resblocks:
            tokens = block(shifted(tokens, video.shape[1]) if self.shift else tokens)
        x = read(self.model.visual, tokens[:, 0]).unflatten(0, video.shape[:2])
        clips, frames, width = x.shape
        if self.name == "Conv_1D":
            x = x + self.fusion.shift(x.reshape(-1, width, frames)).permute(0, 2, 1)
        if self.name == "LSTM":
            x = x + self.fusion.lstm_visual(x)[0]
        if self.name == "Transf":
            y = x + self.fusion.frame_position_embeddings.weight[:frames]
            for block in self.fusion.transformer["resblocks"]:
                y = block(y, torch.ones(clips, frames))
            x = x + y
        if self.name == "Transf_cls":
            parts = self.fusion.transformer
            y = torch.cat([parts.cls_token.expand(clips, -1, -1), x], 1) + parts.pos_embed
            return parts.transformer_enc(y.transpose(0, 1))[0]
        return x.mean(1)

    def logits(self, ids: Tensor, video: Tensor) -> Tensor:
        """(V, Q)."""
        both = F.normalize(self.videos(video), dim=-1), F.normalize(text_of(self.model, ids), dim=1)
        return self.model.logit_scale.exp() * both[0] @ both[1].T


def text_of(clip: nn.Module, ids: Tensor) -> Tensor:
    """ids (Q, L) -> (Q, D); what follows the end of a text is read by nobody."""
    return clip.encode_text(F.pad(ids, (0, clip.context_length - ids.shape[1])))


def tokens_of(visual: nn.Module, images: Tensor, patches: Tensor | None = None) -> Tensor:
    """Images (B, 3, H, W), or their patches (B, W, h, w) -> what comes into the first block."""
    patches = visual.conv1(images) if patches is None else patches
    patches = patches.flatten(2).transpose(1, 2)
    first = visual.class_embedding.expand(len(patches), 1, -1)
    return visual.ln_pre(torch.cat([first, patches], 1) + visual.positional_embedding)


def read(visual: nn.Module, classes: Tensor) -> Tensor:
    return visual.ln_post(classes) @ visual.proj


def shifted(tokens: Tensor, frames: int) -> Tensor:
    """ActionCLIP's shift of tokens (B T, N, W): TSM's, on all but the class token."""
    maps = tokens[:, 1:].transpose(1, 2)[..., None]
    return torch.cat([tokens[:, :1], shifted_maps(maps, frames)[..., 0].transpose(1, 2)], 1)


def shifted_maps(x: Tensor, frames: int, divisor: int = 8) -> Tensor:
    """TSM's shift of maps (B T, C, H, W), slice by slice."""
    x = x.unflatten(0, (-1, frames))
    fold, out = x.shape[2] // divisor, torch.zeros_like(x)
    out[:, :-1, :fold] = x[:, 1:, :fold]
    out[:, 1:, fold : 2 * fold] = x[:, :-1, fold : 2 * fold]
    out[:, :, 2 * fold :] = x[:, :, 2 * fold :]
    return out.flatten(0, 1)


class Shifted(nn.Module):
    """TSM's wrapper around a block or a convolution of a ResNet."""

    def __init__(self, net: nn.Module, frames: int) -> None:
        super().__init__()
        self.net, self.frames = net, frames

    def forward(self, x: Tensor) -> Tensor:
        return self.net(shifted_maps(x, self.frames))


def with_shift(visual: nn.Module, frames: int, placement: str) -> None:
    """Puts TSM into open_clip's ResNet: around its blocks, or their first convolutions."""
    step = 2 if placement == "residual" and len(visual.layer3) >= 23 else 1
    for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        for index in range(0, len(stage), step):
            if placement == "block":
                stage[index] = Shifted(stage[index], frames)
            else:
                stage[index].conv1 = Shifted(stage[index].conv1, frames)


# Their weights under our names.

HEADS = {
    "meanP": Mean(average="plain"),
    "Conv_1D": Convolution(average="plain", variant="reference"),
    "LSTM": LSTM(average="plain"),
    "Transf": Transformer(average="plain", layers=6, variant="reference"),
    "Transf_cls": ClassToken(max_frames=4),
}
"""ActionCLIP's, with the golden tensors' frames."""
SLOTS = {
    "meanP": {"head": Mean()},
    "seqLSTM": {"head": LSTM()},
    "seqTransf": {"head": Transformer(layers=2, variant="reference")},
    "tightTransf": {"scorer": Tight(layers=2, variant="reference")},
}
"""CLIP4Clip's, with the golden tensors' layers."""
CLIP4CLIP_NAMES = [
    (r"^lstm_visual\.", "head.lstm."),
    (r"^transformerClip\.", "head.transformer."),
    (r"^cross\.transformer\.", "scorer.transformer."),
    (r"^cross\.embeddings\.position_embeddings\.weight", "scorer.positions"),
    (r"^cross\.pooler\.", "scorer."),
    (r"^similarity_dense\.", "scorer.similarity."),
    (r"^frame_position_embeddings\.weight", "head.positions"),
]
FUSION_NAMES = [
    (r"^shift\.", "head.shift."),
    (r"^lstm_visual\.", "head.lstm."),
    (r"^transformer\.transformer_enc\.", "head.encoder."),
    (r"^transformer\.cls_token", "head.class_token"),
    (r"^transformer\.resblocks\.", "head.transformer.resblocks."),
    (r"^frame_position_embeddings\.weight", "head.positions"),
]


def renamed(key: str, names: list[tuple[str, str]]) -> str:
    for pattern, ours in names:
        key = re.sub(pattern, ours, key)
    return key


def from_clip4clip(weights: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """A state dict of CLIP4Clip with this head -> ours."""
    found = {renamed(key, CLIP4CLIP_NAMES): value.float() for key, value in weights.items()}
    if name == "seqLSTM":  # the reference creates these positions and never reads them
        del found["head.positions"]
    return found


def from_actionclip(
    model: dict[str, Tensor], fusion: dict[str, Tensor], name: str
) -> dict[str, Tensor]:
    """The two state dicts of ActionCLIP with this head -> ours."""
    found: dict[str, Tensor] = {}
    for key, value in model.items():
        found["clip." + key.removeprefix("module.").replace(".net.", ".")] = value.float()
    for key, value in fusion.items():
        key, value = renamed(key.removeprefix("module."), FUSION_NAMES), value.float()
        if key == "head.positions" and name != "Transf":
            continue  # the reference creates these positions and never reads them
        if key == "transformer.pos_embed":
            found["head.class_position"], found["head.positions"] = value[0, :1], value[0, 1:]
        else:
            found[key] = value[0] if key == "head.class_token" else value
    return found


def ready(model: nn.Module) -> nn.Module:
    """Moves all weights away from their start, and switches dropout off."""
    with torch.no_grad():
        randomized(model)
    return model.eval()


def words(count: int, length: int) -> Tensor:
    """Token ids (count, length) that end at different places."""
    ids = torch.randint(1, 590, (count, length))
    ends = torch.randint(2, length, (count,))
    ids[torch.arange(length) > ends[:, None]] = 0
    ids[:, 0] = 598
    ids[torch.arange(count), ends] = 599
    return ids
