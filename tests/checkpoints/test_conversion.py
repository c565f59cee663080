"""Our models in other projects' layouts: the same model comes back, or an error says why not."""

from pathlib import Path

import pytest
import torch
from foreign import open_clip_model, randomized, write_archive
from foreign_video import ActionCLIP, CLIP4Clip, identical, ready, saved
from transformers import CLIPModel

import videoclip
from videoclip.__main__ import main
from videoclip.checkpoints.conversion import convert, in_layout
from videoclip.checkpoints.layouts import openai
from videoclip.checkpoints.weights import load_exactly
from videoclip.errors import WeightsError
from videoclip.frames.transforms import Pixels
from videoclip.heads import LSTM, ClassToken, Convolution, Mean, Transformer
from videoclip.mixers import Joint, Shift
from videoclip.model import Model, VideoCLIP
from videoclip.scorers import Tight
from videoclip.towers import ResNet, Text, ViT

PLAIN = {"average": "plain"}
FAULTY = {"variant": "reference", "max_frames": 12}
OURS = {
    "clip4clip": [
        {"head": Mean()},
        {"visual": ViT(width=64, layers=1, patch_size=8, image_size=16, patch_frames=3)},
        {"head": LSTM()},
        {"head": Transformer(layers=3, **FAULTY)},
        {"scorer": Tight(layers=2, variant="reference", max_tokens=12)},
    ],
    "actionclip": [
        {"head": Mean(**PLAIN), "mixer": Shift(placement="block")},
        {"head": Mean(**PLAIN), "mixer": Joint(max_frames=4)},
        {"head": LSTM(**PLAIN)},
        {"head": Convolution(**PLAIN, variant="reference")},
        {"head": Transformer(layers=2, **PLAIN, **FAULTY)},
        {"head": ClassToken(layers=2, hidden=40, max_frames=4, **PLAIN)},
        {"head": Mean(**PLAIN), "visual": ResNet(width=16, layers=(1, 2, 1, 1), image_size=32),
         "mixer": Shift()},
    ],
    "mmaction2": [{"head": Transformer(layers=2, **PLAIN, max_frames=5)}],
    "openai": [{}, {"visual": ResNet(width=16, layers=(1, 2, 1, 1), image_size=32)}],
}  # fmt: skip
CASES = [(layout, fields) for layout, cases in OURS.items() for fields in cases]


def made(**fields: object) -> VideoCLIP:
    """A small model with these fields and with random numbers in all weights."""
    towers = {
        "visual": ViT(width=64, layers=2, patch_size=8, image_size=16),
        "text": Text(width=32, layers=2, context_length=12, vocabulary=100),
        "embedding": 32,
    }
    return randomized(Model(**(towers | fields)).build()).eval()


def ids_of(case: object) -> str | None:
    return None if isinstance(case, dict) else str(case)


def same(one: VideoCLIP, other: VideoCLIP) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize(("layout", "fields"), CASES, ids=ids_of)
def test_a_model_comes_back_from_every_layout(tmp_path: Path, layout: str, fields: dict) -> None:
    model = made(**fields)
    model.save_pretrained(tmp_path / "ours")
    written = convert(videoclip.load(tmp_path / "ours"), tmp_path / "file.pt", layout)
    assert not written.retyped
    again = videoclip.load(tmp_path / "file.pt")
    assert same(again, model)
    again.save_pretrained(tmp_path / "later")
    convert(videoclip.load(tmp_path / "later"), tmp_path / "file2.pt", layout)
    first, second = (torch.load(tmp_path / f, weights_only=True) for f in ("file.pt", "file2.pt"))
    assert identical(first, second)


@pytest.mark.parametrize(
    ("layout", "fields", "message"),
    [
        ("clip4clip", {"head": Mean(average="plain")},
         "head.average: the model has 'plain', the file means 'normalized'\nNext: write it in ano"),
        ("actionclip", {"head": Mean()},
         "head.average: the model has 'normalized', the file means 'plain'"),
        ("clip4clip", {"head": ClassToken()}, r"CLIP4Clip has no head for ClassToken\("),
        ("mmaction2", {"head": LSTM()}, r"mmaction2's ActionCLIP has no head for LSTM\("),
        ("clip4clip", {"mixer": Shift()},
         "mixer.kind: the model has 'shift', the file means 'none'"),
        ("actionclip", {"head": LSTM(layers=2, **PLAIN)}, "head.layers: the model has 2"),
        ("actionclip", {"head": Mean(**PLAIN), "mixer": Shift(divisor=4, placement="block")},
         "mixer.divisor: the model has 4"),
        ("clip4clip", {"pixels": Pixels(mean=(0.5, 0.5, 0.5))}, "pixels.mean: the model has "),
        ("clip4clip", {"logit_bias": -10.0}, "logit_bias: the model has -10.0"),
        ("openai", {"head": LSTM()}, "head.kind: the model has 'lstm', the file means 'mean'"),
        ("openai", {"mixer": Joint()}, "mixer.kind: the model has 'joint'"),
        ("transformers", {"head": LSTM()},
         r"transformers files hold no temporal modules:\n  head: "),
        ("transformers", {"logit_bias": -10.0}, "transformers' CLIP is a ViT and a text tower"),
        ("clip4clip", {"head": Transformer(max_frames=12)}, "head.variant.*Next: --variant fixed"),
        ("clip4clip", {"head": Transformer(**FAULTY | {"max_frames": 77})}, "as many rows of both"),
    ],
)  # fmt: skip
def test_what_a_layout_cannot_express(
    tmp_path: Path, layout: str, fields: dict, message: str
) -> None:
    with pytest.raises(WeightsError, match=rf"(?s){message}"):
        convert(made(**fields), tmp_path / "file", layout)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("layout", "fields"),
    [
        ("clip4clip", {"head": Transformer(layers=2)}),
        ("clip4clip", {"scorer": Tight(layers=1)}),
        ("actionclip", {"head": Transformer(layers=2, **PLAIN), "mixer": Shift()}),
        ("actionclip", {"head": Convolution(**PLAIN)}),
    ],
)
def test_models_without_their_faults_say_so(tmp_path: Path, layout: str, fields: dict) -> None:
    """What training here makes by default: their code would compute other numbers with it."""
    model = made(**fields)
    with pytest.raises(WeightsError, match="Next: --variant fixed writes it, and"):
        convert(model, tmp_path / "file.pt", layout)
    convert(model, tmp_path / "file.pt", layout, variant="fixed")
    again = videoclip.load(tmp_path / "file.pt", variant="fixed")
    assert same(again, model)
    video = torch.randn(2, 4, 3, 16, 16)
    assert torch.equal(again.encode_video(video), model.encode_video(video))


@pytest.mark.parametrize("kind", ["archive", "state dict", "with numbers", "of a training"])
def test_openais_files_come_back(tmp_path: Path, kind: str) -> None:
    theirs, path = open_clip_model(), tmp_path / "file.pt"
    weights = {key: value.half() for key, value in theirs.state_dict().items()}
    if kind == "archive":
        weights = write_archive(theirs, path)
    elif kind == "with numbers":
        weights["input_resolution"] = torch.tensor(64)
        weights |= {"context_length": torch.tensor(77), "vocab_size": torch.tensor(1000)}
    if kind == "of a training":
        weights = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in weights.items()}}
    if kind != "archive":
        saved(weights, path)
    model = videoclip.load(path, activation="quick_gelu")
    convert(model, tmp_path / "again.pt", "openai")
    found = torch.load(tmp_path / "again.pt", weights_only=True)
    if kind == "archive":  # tensors of a program come in another order
        found, weights = dict(sorted(found.items())), dict(sorted(weights.items()))
    assert identical(found, weights)


def test_our_clip_opens_in_openais_layout_and_in_transformers(tmp_path: Path) -> None:
    """Of open_clip's model it is a state dict with the numbers that OpenAI's code looks for."""
    model = Model(
        visual=ViT(width=64, layers=1, patch_size=8, image_size=16),
        text=Text(width=64, layers=1, context_length=12, vocabulary=100), embedding=32,
    ).build()  # fmt: skip
    convert(model, tmp_path / "clip.safetensors", "openai")
    assert same(videoclip.load(tmp_path / "clip.safetensors"), model)
    found = in_layout(model, "openai").found
    assert int(found["context_length"]) == 12
    load_exactly(model.clip, {k: v for k, v in found.items() if v.ndim or k == "logit_scale"},
                 "found", openai)  # fmt: skip
    convert(model, tmp_path / "folder", "transformers")
    assert CLIPModel.from_pretrained(tmp_path / "folder").config.projection_dim == 32


def test_types_follow_the_file_until_training_changes_a_number(tmp_path: Path) -> None:
    theirs = dict(ready(CLIP4Clip("seqLSTM")).state_dict())
    halves = {key: value.half() if value.ndim > 1 else value for key, value in theirs.items()}
    model = videoclip.load(saved(halves, tmp_path / "pytorch_model.bin.0"))
    with torch.no_grad():
        model.head.lstm.weight_hh_l0[0, 0] += 1e-6
    written = in_layout(model, "clip4clip")
    assert written.retyped == ("lstm_visual.weight_hh_l0",)
    assert written.found["lstm_visual.weight_hh_l0"].dtype == torch.float32
    assert written.found["lstm_visual.weight_ih_l0"].dtype == torch.float16
    rounded = in_layout(model, "clip4clip", precision="float16").found
    assert {value.dtype for value in rounded.values()} == {torch.float16}


def test_a_file_that_is_there_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "file.pt").write_text("precious")
    for layout in ("clip4clip", "videoclip"):
        with pytest.raises(WeightsError, match=r"file\.pt is there already; delete it"):
            convert(made(), tmp_path / "file.pt", layout)
    with pytest.raises(WeightsError, match="is there already"):
        convert(made(), tmp_path, "videoclip")
    assert (tmp_path / "file.pt").read_text() == "precious"


def test_half_a_file_never_gets_the_name(tmp_path: Path, monkeypatch) -> None:
    def full(found: object, path: Path) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(WeightsError, match=r"cannot be written.*No space left.*free some space"):
        convert(made(), tmp_path / "file.pt", "clip4clip")
    assert not list(tmp_path.iterdir())


def test_safetensors_hold_one_dictionary(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"several dictionaries.*ends in \.pt"):
        convert(made(head=LSTM(**PLAIN)), tmp_path / "file.safetensors", "actionclip")
    assert not list(tmp_path.iterdir())


def test_a_damaged_origin_is_named(tmp_path: Path) -> None:
    path = saved(ready(CLIP4Clip("meanP")).state_dict(), tmp_path / "pytorch_model.bin.0")
    videoclip.load(path).save_pretrained(tmp_path / "ours")
    (tmp_path / "ours/origin.safetensors").write_bytes(b"{}")
    with pytest.raises(WeightsError, match=r"origin\.safetensors cannot be used.*delete it"):
        videoclip.load(tmp_path / "ours")
    (tmp_path / "ours/origin.safetensors").unlink()
    assert videoclip.load(tmp_path / "ours").origin is None


def test_the_number_of_frames_can_be_stated(tmp_path: Path) -> None:
    path = saved(ready(ActionCLIP("Transf", 4)).checkpoint(), tmp_path / "model_best.pt")
    model = videoclip.load(path, frames=16)
    model.save_pretrained(tmp_path / "ours")
    assert videoclip.load(tmp_path / "ours").config.frames == 16
    assert in_layout(model, "actionclip").untold == ("frames 16",)
    path = saved(ready(ActionCLIP("Transf_cls", 4)).checkpoint(), tmp_path / "last_model.pt")
    assert in_layout(videoclip.load(path, frames=4), "actionclip").untold == ()
    with pytest.raises(WeightsError, match=r"frames is 8, but .*last_model\.pt was trained with 4"):
        videoclip.load(path, frames=8)


def test_the_command(tmp_path: Path, capsys) -> None:
    theirs = dict(ready(CLIP4Clip("seqTransf")).state_dict())
    source = saved({"epoch": 1, "state_dict": theirs, "optimizer": {0: torch.ones(2)}},
                   tmp_path / "pytorch_model.bin.0")  # fmt: skip
    ours, again = str(tmp_path / "ours"), str(tmp_path / "again.bin")
    assert main(["convert", str(source), ours, "--layout", "videoclip"]) == 0
    assert main(["convert", ours, again]) == 0
    printed = capsys.readouterr().out
    assert f"{again}: in the layout of CLIP4Clip\n" in printed
    assert f"{len(theirs)} tensors of float32" in printed
    assert "left out, since it belongs to no model: optimizer" in printed
    assert f"videoclip.load({again!r}) opens it" in printed
    assert identical(torch.load(again, weights_only=True), {"epoch": 1, "state_dict": theirs})
    assert main(["convert", ours, again]) == 1
    assert "is there already" in capsys.readouterr().err
    made().save_pretrained(tmp_path / "fresh")
    assert main(["convert", str(tmp_path / "fresh"), str(tmp_path / "x.bin")]) == 1
    assert "came in no other project's layout; say --layout" in capsys.readouterr().err
