"""Files of CLIP4Clip, ActionCLIP, mmaction2 and TSM: their numbers, and the files again."""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_video import (
    WORDS,
    ActionCLIP,
    CLIP4Clip,
    captions,
    clips,
    halved,
    identical,
    ragged,
    ready,
    saved,
)
from safetensors.torch import load_file
from torch import nn

import videoclip
from videoclip.checkpoints.conversion import convert
from videoclip.errors import WeightsError
from videoclip.frames.transforms import Pixels
from videoclip.heads import ClassToken, Mean, Transformer
from videoclip.mixers import Joint, NoMixer, Shift
from videoclip.scorers import Tight

CLIP4CLIP = ["meanP-2d", "meanP-3d", "seqLSTM-2d", "seqTransf-2d", "tightTransf-2d"]
ACTIONCLIP = ["meanP", "Conv_1D", "LSTM", "Transf", "Transf_cls", "meanP-tsm", "Transf-tsm"]
SIZES = [
    {},
    {"width": 64, "text_width": 128, "embedding": 128, "layers": 3},
    {"width": 192, "text_width": 96, "embedding": 96, "layers": 1},
]
"""Widths with and without a whole number of heads, and other numbers of layers."""
UNEQUAL = {"width": 64, "text_width": 128, "embedding": 64}
"""ActionCLIP counts the heads of its fusion by the text's width, whatever its own is."""


def close(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(one, other, atol=tolerance, rtol=0)


def comes_back(path: Path, folder: Path, layout: str) -> None:
    """The file, and our folder of it, become the same file again."""
    original = torch.load(path, weights_only=True)
    model = videoclip.load(path)
    model.save_pretrained(folder / "ours")
    for number, one in enumerate((model, videoclip.load(folder / "ours"))):
        written = convert(one, folder / f"again.{number}", layout)
        again = torch.load(folder / f"again.{number}", weights_only=True)
        kept = {key: original[key] for key in original if key not in written.left_out}
        assert identical(again, kept)
        assert not written.retyped


@pytest.mark.parametrize("name", CLIP4CLIP)
@torch.no_grad()
def test_clip4clips_golden_files(shared: Path, tmp_path: Path, name: str) -> None:
    path = shared / f"golden/clip4clip/{name}.bin"
    model = videoclip.load(path)
    golden = load_file(path.with_name(f"{name}.expected.safetensors"))
    ids, video, mask = golden["ids"].long(), golden["video"], golden["mask"]
    close(model.encode_text(ids), golden["text_features"], 1e-5)
    close(model.encode_frames(video, mask), golden["frame_features"], 1e-5)
    close(model.similarity(ids, video, mask), golden["similarity"], 1e-4)
    assert model.config.visual.patch_frames == (3 if name.endswith("3d") else 1)
    comes_back(path, tmp_path, "clip4clip")


@pytest.mark.parametrize("name", ACTIONCLIP)
@torch.no_grad()
def test_actionclips_golden_files(shared: Path, tmp_path: Path, name: str) -> None:
    path = shared / f"golden/actionclip/{name}.pt"
    model = videoclip.load(path)
    golden = load_file(path.with_name(f"{name}.expected.safetensors"))
    ids, video = golden["ids"].long(), golden["video"]
    close(model.encode_text(ids), golden["text_features"], 1e-5)
    close(model.encode_frames(video), golden["frame_features"], 1e-5)
    close(model.encode_video(video), golden["video_features"], 1e-5)
    close(model.similarity(ids, video).T, golden["logits"], 1e-4)
    assert model.config.mixer == (Shift(placement="block") if "tsm" in name else NoMixer())
    assert model.config.templates == ("actionclip",)
    assert model.config.frames == (4 if name == "Transf_cls" else None)
    comes_back(path, tmp_path, "actionclip")


@pytest.mark.parametrize("sizes", SIZES[1:])
@pytest.mark.parametrize("head", ["meanP", "seqLSTM", "seqTransf", "tightTransf"])
@torch.no_grad()
def test_clip4clip_of_any_size(tmp_path: Path, head: str, sizes: dict) -> None:
    theirs = ready(CLIP4Clip(head, blocks=3, **sizes))
    path = saved(halved(theirs.state_dict()), tmp_path / "pytorch_model.bin.4")
    ours = videoclip.load(path)
    ids, video, mask = captions(), clips(frames=7), ragged(frames=7)
    close(ours.similarity(ids, video, mask), theirs.similarity(ids, video, mask), 1e-4)
    comes_back(path, tmp_path, "clip4clip")


@pytest.mark.parametrize(
    ("head", "place", "sizes"),
    [
        ("meanP", None, SIZES[1]),
        ("Conv_1D", "tokens", SIZES[2]),
        ("LSTM", "tokens", SIZES[1]),
        ("Transf", None, UNEQUAL),
        ("Transf", "tokens", SIZES[2]),
        ("Transf_cls", None, UNEQUAL),
        ("Transf_cls", "tokens", SIZES[2]),
    ],
)
def test_actionclip_of_any_size(tmp_path: Path, head: str, place: str | None, sizes: dict) -> None:
    theirs = ready(ActionCLIP(head, frames=6, place=place, **sizes))
    path = saved(theirs.checkpoint(), tmp_path / "model_best.pt")
    ids, video = captions(), clips(frames=6)
    with torch.no_grad():
        ours = videoclip.load(path)
        close(ours.encode_video(video), theirs.video_features(video), 1e-5)
        close(ours.similarity(ids, video).T, theirs.logits(ids, video), 1e-4)
    comes_back(path, tmp_path, "actionclip")


@torch.no_grad()
def test_mmaction2s_port_takes_openais_normalization(tmp_path: Path) -> None:
    theirs = ready(ActionCLIP("Transf", 5, fusion={"rows": 5, "norm": nn.LayerNorm}, **UNEQUAL))
    for parameter in theirs.clip.visual.parameters():
        parameter.mul_(0.9)  # so that little variance is left, which tells 1e-5 from 1e-12
    theirs.clip.visual.proj.mul_(1e-3)
    theirs.adapter.frame_position_embeddings.weight.mul_(1e-2)
    path = saved({"meta": {"epoch": 7}, "state_dict": theirs.state_dict()}, tmp_path / "k400.pth")
    ours, other = videoclip.load(path), videoclip.load(path, variant="reference")
    ids, video = captions(), clips(frames=5)
    close(ours.similarity(ids, video).T, theirs.logits(ids, video), 1e-4)
    assert (other.similarity(ids, video).T - theirs.logits(ids, video)).abs().max() > 1e-3
    assert (ours.config.frames, ours.config.templates) == (5, ("actionclip",))
    comes_back(path, tmp_path, "mmaction2")


@pytest.mark.parametrize("layers", [[1, 2, 1, 2], [1, 1, 23, 1]])
@pytest.mark.parametrize("place", ["residual", "block"])
@torch.no_grad()
def test_tsm_in_the_resnets_of_clip(tmp_path: Path, place: str, layers: list[int]) -> None:
    """As their code saves it, for several GPUs; of a deep ResNet every second block is shifted."""
    theirs = ready(ActionCLIP("meanP", 5, place=place, width=16, resnet=layers))
    weights = {f"module.{key}": value for key, value in theirs.clip.state_dict().items()}
    found = {"epoch": 2, "arch": "RN50", "state_dict": weights, "best_prec1": 71.2}
    path = saved(found, tmp_path / "ckpt.pth.tar")
    ours = videoclip.load(path)
    ids, video = captions(), clips(frames=5)
    close(ours.similarity(ids, video).T, theirs.logits(ids, video), 1e-4)
    assert ours.config.mixer == Shift(placement=place)
    comes_back(path, tmp_path, "actionclip")


def test_joint_attention_is_known_by_its_table_of_times(tmp_path: Path) -> None:
    theirs = ready(ActionCLIP("meanP", 5))
    theirs.clip.visual.time_embedding = nn.Parameter(torch.randn(5, 128))
    path = saved(theirs.checkpoint(), tmp_path / "joint.pt")
    model = videoclip.load(path)
    assert (model.config.mixer, model.config.frames) == (Joint(max_frames=5), 5)
    assert torch.equal(model.mixers[0].time_embedding, theirs.clip.visual.time_embedding)
    comes_back(path, tmp_path, "actionclip")


def test_what_a_file_says_travels_with_the_model(tmp_path: Path) -> None:
    path = saved(ready(ActionCLIP("Transf_cls", 6)).checkpoint(), tmp_path / "last_model.pt")
    videoclip.load(path).save_pretrained(tmp_path / "ours")
    config = videoclip.load(tmp_path / "ours").config
    assert isinstance(config.head, ClassToken)
    assert (config.frames, config.templates, config.pixels) == (6, ("actionclip",), Pixels())
    assert (config.text.activation, config.text.context_length) == ("quick_gelu", WORDS)


# Whatever does not fit is one clear error that names the key.


def without(held: dict, key: str) -> dict:
    return {name: value for name, value in held.items() if name != key}


CHANGES: dict[str, Callable[[dict, str], dict]] = {
    "missing": without,
    "renamed": lambda held, key: {(k + "x" if k == key else k): v for k, v in held.items()},
    "cut": lambda held, key: held | {key: held[key][:-1]},
    "an axis more": lambda held, key: held | {key: held[key][None]},
    "an axis less": lambda held, key: held | {key: held[key][0]},
    "a text": lambda held, key: held | {key: "text"},
}
CLIP4CLIP_KEYS = [
    "clip.visual.conv1.weight", "clip.visual.transformer.resblocks.1.mlp.c_fc.weight",
    "clip.positional_embedding", "clip.ln_final.bias", "clip.text_projection",
    "frame_position_embeddings.weight", "transformerClip.resblocks.0.attn.in_proj_weight",
    "transformerClip.resblocks.1.ln_2.bias",
]  # fmt: skip
ACTIONCLIP_KEYS = [
    "model_state_dict/visual.transformer.resblocks.0.net.attn.out_proj.bias",
    "model_state_dict/visual.proj", "model_state_dict/transformer.resblocks.0.ln_1.weight",
    "fusion_model_state_dict/module.transformer.cls_token",
    "fusion_model_state_dict/module.frame_position_embeddings.weight",
    "fusion_model_state_dict/module.transformer.transformer_enc.layers.1.linear2.weight",
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_wrong_key_of_clip4clip_is_named(tmp_path: Path, change: str) -> None:
    held = dict(ready(CLIP4Clip("seqTransf")).state_dict())
    for key in CLIP4CLIP_KEYS:
        with pytest.raises(WeightsError, match=key):
            videoclip.load(saved(CHANGES[change](held, key), tmp_path / "pytorch_model.bin.0"))


@pytest.mark.parametrize("change", CHANGES)
def test_a_wrong_key_of_actionclip_is_named(tmp_path: Path, change: str) -> None:
    found = ready(ActionCLIP("Transf_cls", 4, place="tokens")).checkpoint()
    del found["optimizer_state_dict"]
    for key in ACTIONCLIP_KEYS:
        part, _, name = key.partition("/")
        wrong = found | {part: CHANGES[change](dict(found[part]), name)}
        with pytest.raises(WeightsError, match=name.removeprefix("module.")):
            videoclip.load(saved(wrong, tmp_path / "model_best.pt"))


def test_another_projects_heads_are_listed(tmp_path: Path) -> None:
    """X-CLIP and TS2-Net are built on CLIP4Clip's code and save under its names and others."""
    held = dict(ready(CLIP4Clip("seqTransf")).state_dict())
    held["global_mat_weight"] = torch.eye(64)
    with pytest.raises(WeightsError, match=r"CLIP4Clip's seqTransf.*\n  unexpected: global_mat_w"):
        videoclip.load(saved(held, tmp_path / "x.bin"))
    attention = "clip.visual.transformer.resblocks.1.attn"
    held = {k.replace(attention, f"{attention}.net"): v for k, v in held.items() if "mat" not in k}
    with pytest.raises(WeightsError, match=r"unexpected: .*resblocks\.1\.attn\.net\.in_proj_bias;"):
        videoclip.load(saved(held, tmp_path / "ts2.bin"))


# What the keys cannot tell is asked for.


def test_two_heads_in_one_file(tmp_path: Path) -> None:
    """Without --loose_type CLIP4Clip makes the cross encoder whatever the head is."""
    held = dict(ready(CLIP4Clip("seqTransf")).state_dict())
    tight = ready(CLIP4Clip("tightTransf"))
    held |= {k: v for k, v in tight.state_dict().items() if not k.startswith("clip.")}
    path = saved(held, tmp_path / "pytorch_model.bin.0")
    with pytest.raises(WeightsError, match=r"seqTransf and tightTransf.*say head='seqTransf' or"):
        videoclip.load(path)
    loose = videoclip.load(path, head="seqTransf")
    assert isinstance(loose.config.head, Transformer)
    assert isinstance(videoclip.load(path, head="tightTransf").config.scorer, Tight)
    assert isinstance(videoclip.load(path, head="meanP").config.head, Mean)
    loose.save_pretrained(tmp_path / "ours")
    for number, model in enumerate((loose, videoclip.load(tmp_path / "ours"))):
        convert(model, tmp_path / f"{number}.bin", "clip4clip")
        assert identical(torch.load(tmp_path / f"{number}.bin", weights_only=True), held)
    with pytest.raises(WeightsError, match=r"CLIP4Clip has no head 'seqTrans'; did you mean 'seqT"):
        videoclip.load(path, head="seqTrans")


def test_one_dictionary_of_two(tmp_path: Path) -> None:
    found = ready(ActionCLIP("meanP", 4)).checkpoint()
    del found["fusion_model_state_dict"], found["optimizer_state_dict"]
    path = saved(found, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=r"say layout='actionclip' or layout='openai'"):
        videoclip.load(path)
    assert videoclip.load(path, layout="actionclip").config.head == Mean(average="plain")
    comes = torch.load(path, weights_only=True)
    convert(videoclip.load(path, layout="actionclip"), tmp_path / "again.pt", "actionclip")
    assert identical(torch.load(tmp_path / "again.pt", weights_only=True), comes)
    plain = videoclip.load(path, layout="openai", activation="quick_gelu")
    assert plain.config.head == Mean()


def test_keys_of_two_projects(tmp_path: Path) -> None:
    held = dict(ready(CLIP4Clip("seqTransf")).state_dict())
    held["adapter.frame_position_embeddings.weight"] = torch.zeros(4, 64)
    path = saved(held, tmp_path / "both.pth")
    with pytest.raises(WeightsError, match=r"layout='clip4clip' or layout='mmaction2'"):
        videoclip.load(path)
    with pytest.raises(WeightsError, match=r"unexpected: adapter\.frame_position"):
        videoclip.load(path, layout="clip4clip")


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"layout": "clip4clips"}, r"layout is 'clip4clips'; did you mean 'clip4clip'"),
        ({"variant": "fix"}, r"variant is 'fix'; did you mean 'fixed'"),
        ({"classes": ["jump"]}, r"needs no classes .*it reads texts; that is for files of TSM"),
        ({"activation": "gelu"}, r"was trained with quick_gelu, not with gelu"),
        ({"layout": "actionclip"}, r"no file of ActionCLIP: none of its keys starts with visual\."),
    ],
)
def test_what_is_stated_wrongly(tmp_path: Path, stated: dict, message: str) -> None:
    path = saved(ready(CLIP4Clip("meanP")).state_dict(), tmp_path / "pytorch_model.bin.1")
    with pytest.raises(WeightsError, match=message):
        videoclip.load(path, **stated)


def test_what_says_itself_what_it_is_needs_no_statement(tmp_path: Path) -> None:
    path = saved(ready(CLIP4Clip("meanP")).state_dict(), tmp_path / "pytorch_model.bin.1")
    videoclip.load(path).save_pretrained(tmp_path / "ours")
    for stated in ({"layout": "clip4clip"}, {"variant": "fixed"}, {"head": "meanP"},
                   {"classes": "names.txt"}):  # fmt: skip
        with pytest.raises(
            WeightsError, match=r"(says itself what it holds|no classifier).*leave \w+ out"
        ):
            videoclip.load(tmp_path / "ours", **stated)


def test_a_folder_of_a_training_says_which_files_it_holds(tmp_path: Path) -> None:
    for number in (0, 1):
        (tmp_path / f"pytorch_model.bin.{number}").touch()
    message = r"give its path \(pytorch_model\.bin\.0, pytorch_model\.bin\.1\)"
    with pytest.raises(WeightsError, match=message):
        videoclip.load(tmp_path)


def test_nothing_that_stands_beside_the_weights_is_executed(tmp_path: Path) -> None:
    """Nor needed: numpy's numbers and a command line's options are no reason to refuse a file."""
    mark = tmp_path / "mark"
    found = ready(ActionCLIP("meanP", 4)).checkpoint()
    found |= {"best": np.float64(78.4), "args": argparse.Namespace(lr=5e-6)}
    path = saved(found, tmp_path / "model_best.pt")
    written = convert(videoclip.load(path), tmp_path / "again.pt", "actionclip")
    assert written.left_out == ("optimizer_state_dict", "best", "args")

    class Payload:
        def __reduce__(self) -> tuple:
            return exec, (f"open({str(mark)!r}, 'w')",)

    with path.open("wb") as file:
        torch.save({**found, "optimizer_state_dict": {"state": Payload()}}, file)
    with pytest.raises(WeightsError, match="it asks for 'exec'"):
        videoclip.load(path)
    assert not mark.exists()


def test_a_missing_file_of_clip4clip_is_not_asked_for_on_the_hub() -> None:
    with pytest.raises(
        WeightsError, match=r"there is no file or folder runs/pytorch_model\.bin\.3"
    ):
        videoclip.load("runs/pytorch_model.bin.3")
