"""Files of MIT's TSM on torchvision's ResNets: their numbers, their use, and the files again."""

from pathlib import Path

import pytest
import torch
from action_clips import ACTIONS, labelled, manifest
from foreign_video import TSM, identical, ready, saved
from torch import Tensor

import videoclip
from videoclip.__main__ import main
from videoclip.checkpoints.conversion import convert, in_layout
from videoclip.errors import VocabularyError, WeightsError
from videoclip.heads import Mean
from videoclip.scorers import Dot
from videoclip.towers import Labels

NAMES = ("archery", "bowling", "curling", "diving", "eating", "fishing", "golf")


def clips(frames: int, count: int = 2, size: int = 64) -> Tensor:
    return torch.randn(count, frames, 3, size, size)


def close(one: Tensor, other: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(one, other, atol=tolerance, rtol=0)


def comes_back(path: Path, folder: Path) -> None:
    """The file, and our folder of it, become the same file again."""
    original = torch.load(path, weights_only=True)
    model = videoclip.load(path)
    model.save_pretrained(folder / "ours")
    for number, one in enumerate((model, videoclip.load(folder / "ours"))):
        written = convert(one, folder / f"again.{number}", "tsm")
        assert (written.retyped, written.left_out, written.untold) == ((), (), ())
        assert identical(torch.load(folder / f"again.{number}", weights_only=True), original)


@pytest.mark.parametrize(
    ("arch", "frames", "fields"),
    [
        (None, 5, {}),
        (None, 3, {"layers": (2, 1, 1, 2), "place": "block"}),
        (None, 4, {"place": None, "dropout": False}),
        (None, 1, {"layers": (1, 2, 1, 1), "basic": False}),
        (None, 6, {"layers": (1, 1, 23, 1)}),
        (None, 6, {"layers": (1, 1, 23, 1), "place": "block", "dropout": False}),
        ("resnet18", 8, {"layers": (2, 2, 2, 2)}),
        ("resnet34", 2, {"layers": (3, 4, 6, 3)}),
        ("resnet50", 8, {"layers": (3, 4, 6, 3), "basic": False}),
        ("resnet101", 3, {"layers": (3, 4, 23, 3), "basic": False}),
    ],
    ids=str,
)
@torch.no_grad()
def test_its_numbers_and_its_file(
    tmp_path: Path, arch: str | None, frames: int, fields: dict
) -> None:
    """Basic and bottleneck blocks, both placements and none, every second block of deep ones."""
    theirs = TSM(frames, **fields).trained()
    path = saved(theirs.checkpoint(arch), tmp_path / "ckpt.pth.tar")
    ours = videoclip.load(path, classes=NAMES, frames=frames)
    video = clips(frames)
    close(ours.encode_frames(video), theirs.frame_features(video), 1e-5)
    close(ours.similarity(ours.tokenize(NAMES), video).T, theirs.logits(video), 1e-4)
    visual = ours.config.visual
    assert visual.layers == fields.get("layers", (1, 1, 2, 1))
    assert visual.placement == (fields.get("place", "residual") or "none")
    comes_back(path, tmp_path)


@torch.no_grad()
def test_what_a_file_says_travels_with_the_model(tmp_path: Path) -> None:
    theirs = TSM(4).trained()
    path = saved(theirs.checkpoint(), tmp_path / "tsm.pth")
    (tmp_path / "names.csv").write_text("id,name\n" + "".join(f"0,{n}\n" for n in NAMES))
    videoclip.load(path, frames=4, classes=tmp_path / "names.csv").save_pretrained(tmp_path / "our")
    ours = videoclip.load(tmp_path / "our")
    config = ours.config
    assert config.text == Labels(classes=NAMES, bias=True)
    assert (config.frames, config.templates) == (4, ("{}",))
    assert (config.head, config.scorer) == (Mean(average="plain"), Dot())
    assert config.pixels.mean == (0.485, 0.456, 0.406)
    assert config.pixels.std == (0.229, 0.224, 0.225)
    mean, std = (torch.tensor(x)[:, None, None] for x in (config.pixels.mean, config.pixels.std))
    video = torch.randint(0, 256, (2, 4, 3, 64, 64), dtype=torch.uint8)
    close(
        ours.similarity(ours.tokenize(NAMES), video).T,
        theirs.logits((video / 255 - mean) / std), 1e-4,
    )  # fmt: skip
    assert in_layout(ours, "tsm").untold == ("frames 4", "the names of 7 classes")


def test_half_precision_and_old_files_come_back(tmp_path: Path) -> None:
    """Without wrappers and without batch normalization's counters, as PyTorch 0.4 wrote them."""
    weights = ready(TSM(4)).state_dict()
    weights = {k: v.half() for k, v in weights.items() if not k.endswith("num_batches_tracked")}
    comes_back(saved(weights, tmp_path / "old.pth"), tmp_path)


def test_the_optimizers_state_is_left_out(tmp_path: Path) -> None:
    found = ready(TSM(4)).checkpoint() | {"optimizer": {"state": {0: torch.ones(2)}}}
    model = videoclip.load(saved(found, tmp_path / "tsm.pth"))
    assert in_layout(model, "tsm").left_out == ("optimizer",)


def test_what_was_trained_here_is_written_as_its_code_reads_it(tmp_path: Path) -> None:
    path = saved(ready(TSM(4, (2, 2, 2, 2))).checkpoint("resnet18"), tmp_path / "tsm.pth")
    model = videoclip.load(path)
    model.origin = None
    found = in_layout(model, "tsm").found
    assert list(found) == ["epoch", "arch", "best_prec1", "state_dict"]
    assert found["arch"] == "resnet18"
    original = torch.load(path, weights_only=True)["state_dict"]
    assert found["state_dict"].keys() == original.keys()
    assert all(torch.equal(value, original[key]) for key, value in found["state_dict"].items())


# Recognition as with every other model.


def test_clips_are_recognized(tmp_path: Path, capsys, monkeypatch) -> None:
    """The figures of the report are those of their own logits, fed with the same frames."""
    theirs = TSM(4, classes=3).trained()
    saved(theirs.checkpoint(), tmp_path / "tsm.pth")
    (tmp_path / "classes.txt").write_text("\n".join(ACTIONS))
    data = manifest(tmp_path, labelled(tmp_path / "videos", 6))
    monkeypatch.chdir(tmp_path)
    words = ["--layout", "videoclip", "--source-frames", "4", "--source-classes", "classes.txt"]
    assert main(["convert", "tsm.pth", "ours", *words]) == 0
    assert main(["evaluate", "recognition", "ours", "--data", str(data), "--output", "found"]) == 0
    printed = capsys.readouterr().out
    assert "expected 6 = scored 6 + 0 bad" in printed
    assert "1 templates, averaged as probabilities, temperature none" in printed
    import pandas as pd

    from videoclip.frames.store import FrameStore
    from videoclip.manifest import read_manifest

    store = FrameStore(tmp_path / "found/frames", size=224, frames=4, fit="crop")
    model, rows = videoclip.load("ours"), read_manifest(data)
    store.fill(rows, 1, "clips")
    scores = pd.read_parquet("found/scores.parquet")[list(ACTIONS)]
    with torch.no_grad():
        for row in rows:
            pixels = store.read(row, 1)[None] / 255
            mean, std = (torch.tensor(x)[:, None, None] for x in (
                model.config.pixels.mean, model.config.pixels.std))  # fmt: skip
            wanted = theirs.logits((pixels - mean) / std).softmax(-1)[0]
            close(torch.tensor(scores.loc[row.video_id].to_numpy()), wanted, 1e-5)
    command = ["classify-video", "videos/00.mp4", "--model", "ours", "--labels"]
    assert main([*command, "fade", "flicker"]) == 0
    assert "fade" in capsys.readouterr().out
    assert main([*command, "fade", "juggling"]) == 1
    assert "'juggling' is no class of this model" in capsys.readouterr().err


def test_classes_without_names_say_how_they_get_some(tmp_path: Path) -> None:
    model = videoclip.load(saved(ready(TSM(4)).checkpoint(), tmp_path / "tsm.pth"))
    assert model.tokenize(["class 0", "class 6"]).tolist() == [[0], [6]]
    with pytest.raises(VocabularyError, match=r"'golf' is no class.*7 classes.*--source-classes"):
        model.tokenize("golf")


# What does not fit is one clear error.


@pytest.mark.parametrize(
    "key",
    ["base_model.conv1.weight", "base_model.layer1.0.conv1.net.weight",
     "base_model.layer2.0.downsample.0.weight", "base_model.layer3.0.bn2.running_var",
     "base_model.layer4.0.conv2.weight", "new_fc.weight", "new_fc.bias"],
)  # fmt: skip
def test_a_wrong_key_is_named(tmp_path: Path, key: str) -> None:
    held = ready(TSM(4)).checkpoint()["state_dict"]
    name = f"module.{key}"
    for wrong in (
        {k: v for k, v in held.items() if k != name},
        {(k + "x" if k == name else k): v for k, v in held.items()},
        held | {name: held[name][:-1]},
        held | {name: held[name][None]},
        held | {name: "text"},
        held | {name: held[name].long()},
    ):
        with pytest.raises(WeightsError, match=key):
            videoclip.load(saved({"state_dict": wrong}, tmp_path / "tsm.pth"))


def test_a_shift_that_is_not_everywhere_is_named(tmp_path: Path) -> None:
    held = ready(TSM(4, (1, 1, 2, 1))).checkpoint()["state_dict"]
    held = {k.replace("layer3.1.conv1.net", "layer3.1.conv1"): v for k, v in held.items()}
    message = r"missing: base_model\.layer3\.1\.conv1\.net.*\n  unexp.*did you mean"
    with pytest.raises(WeightsError, match=message):
        videoclip.load(saved({"state_dict": held}, tmp_path / "tsm.pth"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("layer2.0.", "layer2.0.block.", "has non-local blocks"),
        ("layer2.", "layer2.net.", "temporal pooling"),
        ("layer1.", "features.", "is on MobileNetV2"),
        ("conv1.weight", "conv1_7x7_s2.weight", "is on BN-Inception"),
        ("layer1.", "stem.", r"none of its keys starts with base_model\.layer1\."),
    ],
)
def test_other_networks_are_refused_by_name(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    held = ready(TSM(4)).checkpoint()["state_dict"]
    held = {k.replace(f"base_model.{old}", f"base_model.{new}"): v for k, v in held.items()}
    with pytest.raises(WeightsError, match=message):
        videoclip.load(saved({"state_dict": held}, tmp_path / "tsm.pth"))


def test_optical_flow_is_refused_by_name(tmp_path: Path) -> None:
    found = ready(TSM(4)).checkpoint()
    found["state_dict"]["module.base_model.conv1.weight"] = torch.zeros(64, 10, 7, 7)
    with pytest.raises(WeightsError, match=r"reads optical flow .*10 input channels"):
        videoclip.load(saved(found, tmp_path / "tsm.pth"))


def test_a_lost_block_contradicts_the_name_of_the_network(tmp_path: Path) -> None:
    found = ready(TSM(4, (2, 2, 2, 2))).checkpoint("resnet18")
    held = {k: v for k, v in found["state_dict"].items() if "layer4.1." not in k}
    message = r"says that it is resnet18, with \(2, 2, 2, 2\) basic blocks.*\(2, 2, 2, 1\) basic"
    with pytest.raises(WeightsError, match=message):
        videoclip.load(saved(found | {"state_dict": held}, tmp_path / "tsm.pth"))


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"classes": NAMES[:3]}, r"gives 3 names, of 7, and .* has 7 classes"),
        ({"classes": [*NAMES[:6], "golf", "golf"][1:]}, "gives 7 names, of which 6 differ"),
        ({"frames": 0}, "frames is 0; give at least 1"),
        ({"head": "meanP"}, r"needs no head \(meanP\): TSM's files have no such choice"),
        ({"activation": "gelu"}, r"needs no activation \(gelu\)"),
        ({"variant": "fixed"}, r"needs no variant \(fixed\)"),
        ({"layout": "actionclip"}, r"no file of ActionCLIP: none of its keys starts with visual"),
    ],
)
def test_what_is_stated_wrongly(tmp_path: Path, stated: dict, message: str) -> None:
    path = saved(ready(TSM(4)).checkpoint(), tmp_path / "tsm.pth")
    with pytest.raises(WeightsError, match=message):
        videoclip.load(path, **stated)
    assert videoclip.load(path, layout="tsm").config.visual.block == "basic"


def test_other_layouts_do_not_hold_it_nor_does_its_layout_hold_others(tmp_path: Path) -> None:
    from pictures_on_disk import small_clip

    model = videoclip.load(saved(ready(TSM(4)).checkpoint(), tmp_path / "tsm.pth"))
    for layout in ("clip4clip", "openai", "transformers"):
        with pytest.raises(WeightsError, match="this model has no text tower"):
            convert(model, tmp_path / "other", layout)
    with pytest.raises(WeightsError, match=r"tsm files hold a classifier .* has ViT\("):
        in_layout(small_clip(), "tsm")
