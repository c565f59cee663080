"""Small models of CLIP4Clip, ActionCLIP, mmaction2's port and TSM, and the files that they write.

Made from torch's and open_clip's own modules after the descriptions of those projects, so that
nothing of ours computes what ours is compared with.
"""

import copy
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from foreign import randomized
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

SIZE, WORDS, VOCABULARY = 32, 20, 300


class NarrowNorm(nn.Module):
    """The layer normalization of both projects' heads: 1e-12 is added to the variance."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, 1e-12)


class Block(nn.Module):
    """A pre-normalized block on (B, L, W) with torch's attention."""

    def __init__(self, width: int, heads: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1, self.ln_2 = norm(width), norm(width)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)}
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, key_padding_mask=~mask, need_weights=False)[0]
        y = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](y * torch.sigmoid(1.702 * y))


class Stack(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, norm=NarrowNorm) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, norm) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Shifted(nn.Module):
    """What TSM puts around a convolution, and ActionCLIP around a block of the ViT."""

    def __init__(self, net: nn.Module, frames: int, *, tokens: bool) -> None:
        super().__init__()
        self.net, self.frames, self.tokens = net, frames, tokens

    def forward(self, x: Tensor, **named: object) -> Tensor:
        if self.tokens:
            return self.net(torch.cat([x[:, :1], self.shift(x[:, 1:], -1)], 1), **named)
        return self.net(self.shift(x, 1))

    def shift(self, x: Tensor, axis: int) -> Tensor:
        x = x.unflatten(0, (-1, self.frames)).movedim(axis % x.ndim + 1, -1).clone()
        fold, old = x.shape[-1] // 8, x.clone()
        x[..., : 2 * fold] = 0
        x[:, :-1, ..., :fold] = old[:, 1:, ..., :fold]
        x[:, 1:, ..., fold : 2 * fold] = old[:, :-1, ..., fold : 2 * fold]
        return x.movedim(-1, axis % (x.ndim - 1) + 1).flatten(0, 1)


def clip(
    width: int = 128, text_width: int = 64, embedding: int = 64, layers: int = 2, resnet=None
) -> nn.Module:
    """open_clip's CLIP in OpenAI's form."""
    vision = {"width": width, "layers": layers, "patch_size": 16, "image_size": SIZE}
    if resnet:
        vision = {"width": width, "layers": resnet, "image_size": SIZE, "head_width": 64}
    return open_clip.model.CLIP(
        embed_dim=embedding,
        quick_gelu=True,
        vision_cfg=vision,
        text_cfg={
            "width": text_width, "layers": layers + 1, "heads": max(1, text_width // 64),
            "vocab_size": VOCABULARY, "context_length": WORDS,
        },
    )  # fmt: skip


def encoded(model: nn.Module, ids: Tensor) -> Tensor:
    """Texts (N, L) of fewer words than open_clip takes; what stands behind the end is not read."""
    return model.encode_text(F.pad(ids, (0, WORDS - ids.shape[1])))


def shift_tower(visual: nn.Module, frames: int, place: str) -> None:
    """Puts the shift into a tower: "tokens", "residual" or "block", as Shifted's users do."""
    if place == "tokens":
        blocks = visual.transformer.resblocks
        for number, block in enumerate(blocks):
            blocks[number] = Shifted(block, frames, tokens=True)
        return
    every = 2 if place == "residual" and len(visual.layer3) >= 23 else 1
    for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        for number, block in enumerate(stage):
            if place == "block":
                stage[number] = Shifted(block, frames, tokens=False)
            elif number % every == 0:
                block.conv1 = Shifted(block.conv1, frames, tokens=False)


class CLIP4Clip(nn.Module):
    """The four heads; `similarity` is the logits of its evaluation."""

    def __init__(self, head: str, *, blocks: int = 2, **sizes: int) -> None:
        super().__init__()
        self.head, self.clip = head, clip(**sizes)
        width = self.clip.text_projection.shape[1]
        heads = max(1, len(self.clip.ln_final.weight) // 64)
        if head in ("seqLSTM", "seqTransf"):
            self.frame_position_embeddings = nn.Embedding(WORDS, width)
        if head == "seqLSTM":
            self.lstm_visual = nn.LSTM(width, width, batch_first=True)
        if head == "seqTransf":
            self.transformerClip = Stack(width, blocks, heads)
        if head == "tightTransf":
            self.cross = nn.Module()
            self.cross.embeddings = nn.Module()
            self.cross.embeddings.position_embeddings = nn.Embedding(WORDS, width)
            self.cross.transformer = Stack(width, blocks, heads)
            self.cross.pooler = nn.Module()
            self.cross.pooler.ln_pool = NarrowNorm(width)
            self.cross.pooler.dense = nn.Linear(width, width)
            self.similarity_dense = nn.Linear(width, 1)

    def similarity(self, ids: Tensor, video: Tensor, mask: Tensor) -> Tensor:
        texts = encoded(self.clip, ids)
        frames = self.clip.encode_image(video.flatten(0, 1)).unflatten(0, video.shape[:2])
        if self.head == "tightTransf":
            return self.tight(texts, frames, mask)
        heard = frames
        if self.head == "seqTransf":
            placed = frames + self.frame_position_embeddings.weight[: frames.shape[1]]
            heard = frames + self.transformerClip(placed, mask)
        if self.head == "seqLSTM":
            heard = frames + torch.stack(
                [self.lstm_visual(clip[None])[0][0] for clip in frames]
            )  # reads forward, so that padding behind a clip changes nothing
        unit = heard / heard.norm(dim=-1, keepdim=True)
        mean = (unit * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        texts, mean = F.normalize(texts, dim=-1), F.normalize(mean, dim=-1)
        return self.clip.logit_scale.exp() * texts @ mean.T

    def tight(self, texts: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
        rows = []
        for text in texts:
            pairs = torch.cat([text.expand(len(frames), 1, -1), frames], 1)
            pairs = pairs + self.cross.embeddings.position_embeddings.weight[: pairs.shape[1]]
            seen = torch.cat([torch.ones(len(mask), 1, dtype=torch.bool), mask], 1)
            first = self.cross.pooler.ln_pool(self.cross.transformer(pairs, seen))[:, 0]
            first = self.cross.pooler.dense(first)
            rows.append(self.similarity_dense(first * torch.sigmoid(1.702 * first))[:, 0])
        return torch.stack(rows)


class Aggregate(nn.Module):
    """ActionCLIP's Transf_cls, with a smaller perceptron."""

    def __init__(self, width: int, frames: int, layers: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 8, 48, batch_first=True)
        self.transformer_enc = nn.TransformerEncoder(
            layer, layers, nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, frames + 1, width))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        return self.transformer_enc(x)[:, 0]


class Fusion(nn.Module):
    """ActionCLIP's five heads, and mmaction2's one where `rows` and `norm` are its own."""

    def __init__(
        self, head: str, text: nn.Module, frames: int, *, layers=3, rows=WORDS, norm=NarrowNorm
    ) -> None:
        super().__init__()
        self.head = head
        width, heads = text.text_projection.shape[1], max(1, len(text.ln_final.weight) // 64)
        if head != "meanP":
            self.frame_position_embeddings = nn.Embedding(rows, width)
        if head == "Transf":
            self.transformer = Stack(width, layers, heads, norm)
        if head == "Transf_cls":
            self.transformer = Aggregate(width, frames, layers)
        if head == "LSTM":
            self.lstm_visual = nn.LSTM(width, width, batch_first=True)
        if head == "Conv_1D":
            self.shift = nn.Conv1d(width, width, 3, padding=1, groups=width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.head == "Transf_cls":
            return self.transformer(x)
        heard = x
        if self.head == "Transf":
            every = torch.ones(x.shape[:2], dtype=torch.bool)
            placed = x + self.frame_position_embeddings.weight[: x.shape[1]]
            heard = x + self.transformer(placed, every)
        if self.head == "LSTM":
            heard = x + self.lstm_visual(x)[0]
        if self.head == "Conv_1D":  # a reshape where a transpose was meant
            heard = x + self.shift(x.reshape(len(x), x.shape[2], x.shape[1])).transpose(1, 2)
        return heard.mean(1)


class ActionCLIP(nn.Module):
    """A CLIP, perhaps with a shift in its tower, and a fusion module."""

    def __init__(
        self,
        head: str,
        frames: int,
        *,
        place: str | None = None,
        fusion: dict | None = None,
        **sizes,
    ) -> None:
        super().__init__()
        self.clip = clip(**sizes)
        self.adapter = Fusion(head, self.clip, frames, **(fusion or {}))
        if place:
            shift_tower(self.clip.visual, frames, place)

    def video_features(self, video: Tensor) -> Tensor:
        frames = self.clip.encode_image(video.flatten(0, 1)).unflatten(0, video.shape[:2])
        return self.adapter(frames)

    def logits(self, ids: Tensor, video: Tensor) -> Tensor:
        """(V, Q)."""
        features = F.normalize(self.video_features(video), dim=-1)
        texts = F.normalize(encoded(self.clip, ids), dim=-1)
        return self.clip.logit_scale.exp() * features @ texts.T

    def checkpoint(self) -> dict[str, object]:
        """What train.py saves, the optimizer's state included."""
        optimizer = torch.optim.AdamW(self.parameters())
        sum(parameter.sum() for parameter in self.parameters()).backward()
        optimizer.step()
        optimizer.zero_grad()
        fusion = {f"module.{k}": v for k, v in self.adapter.state_dict().items()}
        return {
            "epoch": 3,
            "model_state_dict": halved(self.clip.state_dict()),
            "fusion_model_state_dict": fusion,
            "optimizer_state_dict": optimizer.state_dict(),
        }


class TSM(nn.Module):
    """MIT's classifier: torchvision's ResNet, a linear layer, the mean of the frames' logits."""

    def __init__(
        self,
        frames: int,
        layers: tuple[int, ...] = (1, 1, 2, 1),
        *,
        basic: bool = True,
        place: str | None = "residual",
        dropout: bool = True,
        classes: int = 7,
    ) -> None:
        super().__init__()
        self.base_model = ResNet(BasicBlock if basic else Bottleneck, list(layers), classes)
        width = self.base_model.fc.in_features
        self.new_fc = nn.Linear(width, classes) if dropout else None
        if dropout:
            self.base_model.fc = nn.Dropout(0.5)
        if place:
            shift_tower(self.base_model, frames, place)

    @torch.no_grad()
    def trained(self) -> "TSM":
        """With random weights, kept so small that deep ones do not explode."""
        for module in ready(self).modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.mul_(0.5)
        return self

    def frame_features(self, video: Tensor) -> Tensor:
        net, x = self.base_model, video.flatten(0, 1)
        x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        x = net.layer4(net.layer3(net.layer2(net.layer1(x))))
        return x.mean((2, 3)).unflatten(0, video.shape[:2])

    def logits(self, video: Tensor) -> Tensor:
        """(B, classes)."""
        of_frames = self.base_model(video.flatten(0, 1))
        of_frames = of_frames if self.new_fc is None else self.new_fc(of_frames)
        return of_frames.unflatten(0, video.shape[:2]).mean(1)

    def checkpoint(self, arch: str | None = None) -> dict[str, object]:
        """What main.py saves, without the optimizer's state."""
        weights = {f"module.{key}": value for key, value in self.state_dict().items()}
        names = {"arch": arch} if arch else {}
        return {"epoch": 50, **names, "state_dict": weights, "best_prec1": 74.1}


def halved(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rounds matrices to float16 in place, as CLIP4Clip and ActionCLIP train the towers."""
    found = {}
    for key, value in weights.items():
        keeps = value.ndim < 2 or "embedding" in key
        if not keeps:
            value.copy_(value.half())
        found[key] = value if keeps else value.half()
    return found


def ready(model: nn.Module) -> nn.Module:
    """With random weights everywhere, in evaluation mode."""
    return randomized(model).eval()


def saved(value: object, path: Path) -> Path:
    torch.save(copy.deepcopy(value), path)
    return path


def captions(count: int = 4) -> Tensor:
    """Token ids (count, WORDS - 3) of different lengths."""
    ids = torch.zeros(count, WORDS - 3, dtype=torch.long)
    for row in range(count):
        ids[row, : 3 + row] = torch.randint(1, VOCABULARY - 2, (3 + row,))
        ids[row, 3 + row] = VOCABULARY - 1
    return ids


def clips(count: int = 3, frames: int = 5) -> Tensor:
    return torch.randn(count, frames, 3, SIZE, SIZE)


def ragged(count: int = 3, frames: int = 5) -> Tensor:
    """Masks (count, frames), among them one with a single real frame."""
    return torch.arange(frames) < torch.tensor([frames, 1, max(1, frames - 2)])[:count, None]


def identical(one: object, other: object) -> bool:
    """Whether two files hold the same: keys, order, types and every bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(identical(one[k], other[k]) for k in one)
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return one == other
