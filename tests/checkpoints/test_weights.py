"""A model's folder: complete or refused, opened exactly as it was, and every wrong key is listed.

What other projects write is tested in tests/parity and tests/test_archives.py.
"""

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from foreign import open_clip_model
from models import COMBINATIONS, build, captions, clips
from pictures_on_disk import small_clip
from safetensors.torch import load_file, save_file
from torch import nn

import videoclip
from videoclip.checkpoints import weights as module
from videoclip.checkpoints.weights import CONFIG, SLOTS, WEIGHTS, load_exactly
from videoclip.errors import WeightsError
from videoclip.frames.transforms import Pixels
from videoclip.model import Model
from videoclip.towers import Text, ViT


@pytest.mark.parametrize("source", ["nowhere", "no/where/at/all", Path("owner/name")])
def test_what_is_nothing_is_refused(source) -> None:
    with pytest.raises(WeightsError, match=r"there is no file or folder .*ViT-L/14@336px"):
        videoclip.load(source)


def test_a_folder_without_a_model_is_refused(tmp_path) -> None:
    message = r"holds no complete model: neither videoclip\.json.*give its path"
    with pytest.raises(WeightsError, match=message):
        videoclip.load(tmp_path)


def test_the_path_of_a_file_is_never_asked_for_on_the_hub() -> None:
    with pytest.raises(WeightsError, match=r"there is no file or folder weights/model\.pt"):
        videoclip.load("weights/model.pt")


def test_offline_a_hub_name_says_where_to_put_the_files() -> None:
    """tests/conftest.py switches the hub's library off."""
    with pytest.raises(WeightsError, match=r"openai/clip-vit-base-patch32 is no file.*OfflineMode"):
        videoclip.load("openai/clip-vit-base-patch32")


def test_all_weights_come_back_to_the_bit(tmp_path) -> None:
    for number, names in enumerate(COMBINATIONS):
        model = build(*names)
        model.save_pretrained(tmp_path / str(number))
        again = videoclip.load(tmp_path / str(number))
        assert again.config == model.config
        ours, theirs = model.state_dict(), again.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
        assert {p.requires_grad for p in again.parameters()} == {True}
        assert not again.training
        assert again.device == again.pixel_mean.device == torch.device("cpu")


def test_sizes_that_cannot_be_built_are_named(tmp_path) -> None:
    text = Text(width=200, layers=1, vocabulary=100, context_length=9, attention_heads=4)
    Model(visual=ViT(width=64, layers=1), text=text).build().save_pretrained(tmp_path)
    written = json.loads((tmp_path / CONFIG).read_text())
    del written["model"]["text"]["attention_heads"]
    (tmp_path / CONFIG).write_text(json.dumps(written))
    with pytest.raises(WeightsError, match="cannot be built: a width of 200 cannot"):
        videoclip.load(tmp_path)


@pytest.mark.parametrize(
    ("part", "field", "value", "message"),
    [
        ("visual", "image_size", 20, "patches of 8 pixels do not tile a frame of 20"),
        ("visual", "patch_size", 0, "ZeroDivisionError"),
        ("visual", "attention_heads", 0, "visual.attention_heads is 0"),
        ("text", "layers", -1, "text.layers is -1"),
        ("text", "width", "a", "model.text.width is 'a'"),
        ("pixels", "std", [0, 1, 1], r"standard deviation is \(0.0, 1.0, 1.0\); it must be over 0"),
        ("mixer", "kind", "shfit", "did you mean 'shift'"),
    ],
)
def test_a_configuration_that_makes_no_sense_names_file_and_field(
    tmp_path, part: str, field: str, value, message: str
) -> None:
    build().save_pretrained(tmp_path)
    written = json.loads((tmp_path / CONFIG).read_text())
    written["model"][part][field] = value
    (tmp_path / CONFIG).write_text(json.dumps(written))
    with pytest.raises(WeightsError, match=rf"{tmp_path}.* cannot be .*{message}"):
        videoclip.load(tmp_path)


def test_a_folder_with_the_name_of_a_model_is_the_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = build()
    model.save_pretrained("RN50")
    assert videoclip.load("RN50").config == model.config


def test_the_whole_configuration_comes_back(tmp_path) -> None:
    config = Model(
        visual=ViT(width=64, layers=1, image_size=32, activation="gelu", attention_heads=2),
        text=Text(width=64, layers=1, context_length=9, vocabulary=50, activation="gelu"),
        embedding=16,
        pixels=Pixels(mean=(0.5, 0.25, 0.125), std=(0.5, 0.5, 0.5), fit="squash"),
    )
    config.build().save_pretrained(tmp_path)
    again = videoclip.load(tmp_path)
    assert again.config == config
    assert again.pixel_mean.tolist() == [0.5, 0.25, 0.125]
    with pytest.raises(WeightsError, match="trained with gelu, not with quick_gelu"):
        videoclip.load(tmp_path, activation="quick_gelu")


def test_a_model_that_was_opened_can_be_trained_and_saved_over_itself(tmp_path) -> None:
    build(head="lstm").save_pretrained(tmp_path)
    model = videoclip.load(tmp_path).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.similarity(captions(), clips(), None).logsumexp(1).sum().backward()
    optimizer.step()
    model.save_pretrained(tmp_path)
    again = videoclip.load(tmp_path)
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)


def test_nothing_of_an_earlier_model_stays(tmp_path) -> None:
    build(head="lstm", scorer="tight").save_pretrained(tmp_path)
    assert (tmp_path / SLOTS).is_file()
    plain = build()
    plain.save_pretrained(tmp_path)
    assert not (tmp_path / SLOTS).exists()
    assert videoclip.load(tmp_path).config == plain.config
    build(logit_bias=-10.0).save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG, WEIGHTS, "README.md"}


@pytest.mark.parametrize("step", range(6))
def test_half_a_folder_never_loads(tmp_path, monkeypatch, step: int) -> None:
    """Writing stops before each step in turn, over an earlier model of other sizes."""
    build(head="lstm").save_pretrained(tmp_path)
    done = []

    def interrupted(name: str):
        original = getattr(Path, name)

        def call(path: Path, *arguments, **named):
            if path.parent == tmp_path:
                if len(done) == step:
                    raise KeyboardInterrupt
                done.append(name)
            return original(path, *arguments, **named)

        return call

    with monkeypatch.context() as patch:
        for name in ("write_text", "replace"):
            patch.setattr(Path, name, interrupted(name))
        with pytest.raises(KeyboardInterrupt):
            build(head="transformer").save_pretrained(tmp_path)
    if step == 0:  # nothing was touched yet
        assert videoclip.load(tmp_path).config.head == build(head="lstm").config.head
    else:
        with pytest.raises(WeightsError, match="no complete model: writing it was interrupted"):
            videoclip.load(tmp_path)
    build(head="transformer").save_pretrained(tmp_path)
    assert videoclip.load(tmp_path).config == build(head="transformer").config
    assert not list(tmp_path.glob("*.part"))


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WeightsError, match=r"cannot be written to .*file.*choose another folder"):
        build().save_pretrained(tmp_path / "file")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(WeightsError, match="No space left"):
        build().save_pretrained(tmp_path / "folder")


def test_who_may_read_the_folder_may_read_the_weights(tmp_path) -> None:
    before = os.umask(0o022)
    try:
        build(head="lstm").save_pretrained(tmp_path)
    finally:
        os.umask(before)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o644, path


def test_the_model_card_says_what_it_is_and_stays_the_users(tmp_path) -> None:
    build(head="lstm").save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: videoclip\n")
    parameters = sum(p.numel() for p in build(head="lstm").parameters())
    for expected in ("| head | lstm |", "quick_gelu", "0.48145466", f"| {parameters:,} |"):
        assert expected in card
    small_clip().save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "| head | mean |" in card
    found: dict = {}
    exec(card.split("```python")[1].split("```")[0].replace("this/folder", str(tmp_path)), found)
    assert found["scores"].shape == (1, 1)
    for mine in (b"my own", b"\xff\xfe"):
        (tmp_path / "README.md").write_bytes(mine)
        build().save_pretrained(tmp_path)
        assert (tmp_path / "README.md").read_bytes() == mine


def test_every_wrong_key_is_listed_with_the_nearest(tmp_path) -> None:
    build(head="lstm").save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    norm = "text_model.final_layer_norm"
    weights[f"{norm}m.weight"] = weights.pop(f"{norm}.weight")
    weights["visual_projection.weight"] = torch.zeros(3, 4)
    del weights["logit_scale"]
    save_file(weights, tmp_path / WEIGHTS)
    slots = load_file(tmp_path / SLOTS)
    del slots["head.lstm.bias_ih_l0"]
    save_file(slots, tmp_path / SLOTS)
    with pytest.raises(WeightsError) as error:
        videoclip.load(tmp_path)
    assert str(error.value).splitlines()[1:] == [
        "  misshapen: visual_projection.weight is (3, 4), expected (32, 64)",
        "  missing: head.lstm.bias_ih_l0",
        "  missing: logit_scale",
        f"  missing: {norm}.weight",
        f"  unexpected: {norm}m.weight; did you mean '{norm}.weight'?",
    ]


def test_a_damaged_folder_is_named(tmp_path) -> None:
    build().save_pretrained(tmp_path)
    for name in (WEIGHTS, CONFIG):
        original = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(b"no")
        with pytest.raises(WeightsError, match="damaged"):
            videoclip.load(tmp_path)
        (tmp_path / name).write_bytes(original)
    for written in ({"format": 1, "model": {}}, {"format": 99}, []):
        (tmp_path / CONFIG).write_text(json.dumps(written))
        found = written["format"] if written else None
        with pytest.raises(WeightsError, match=rf"has format {found}, this version reads 2"):
            videoclip.load(tmp_path)
    build().save_pretrained(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(WeightsError, match=r"model\.safetensors is damaged.*No such file"):
        videoclip.load(tmp_path)


def test_a_part_of_a_folder_is_not_the_model(tmp_path) -> None:
    build(head="lstm").save_pretrained(tmp_path)
    for name in (WEIGHTS, SLOTS):
        with pytest.raises(WeightsError, match="is a part of a model; give its folder"):
            videoclip.load(tmp_path / name)


def test_a_module_in_memory_keeps_its_own_tensors() -> None:
    theirs = open_clip_model()
    source = theirs.state_dict()
    model = Model(
        visual=ViT(width=128, layers=3, patch_size=16, image_size=64),
        text=Text(width=64, layers=3, vocabulary=1000),
        embedding=32,
    ).build()
    load_exactly(model.clip, source, "open_clip")
    with torch.no_grad():
        model.clip.logit_scale.fill_(5.0)
    assert source["logit_scale"] != 5.0


@pytest.mark.parametrize("kind", ["sparse", "meta", "repeated"])
def test_tensors_whose_numbers_are_not_in_the_file_are_refused(tmp_path, kind: str) -> None:
    weights = open_clip_model().state_dict()
    weights["visual.proj"] = {
        "sparse": weights["visual.proj"].to_sparse(),
        "meta": weights["visual.proj"].to("meta"),
        "repeated": torch.zeros(1, dtype=torch.float16).expand(2**20, 2**20),
    }[kind]
    torch.save(weights, tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match=r"no plain tensor: visual\.proj is a tensor of another"):
        videoclip.load(tmp_path / "weights.pt", activation="gelu")


def test_tensors_that_share_memory_or_are_frozen_are_trained_apart(tmp_path) -> None:
    weights = {key: nn.Parameter(value) for key, value in open_clip_model().named_parameters()}
    weights["ln_final.bias"] = weights["ln_final.weight"]
    weights["visual.proj"].requires_grad_(False)
    torch.save(weights, tmp_path / "weights.pt")
    clip = videoclip.load(tmp_path / "weights.pt", activation="gelu").clip
    assert torch.equal(clip.ln_final.bias, clip.ln_final.weight)
    assert clip.ln_final.bias.data_ptr() != clip.ln_final.weight.data_ptr()
    assert all(parameter.requires_grad for parameter in clip.parameters())


def test_long_lists_of_faults_are_made_quickly_and_in_full() -> None:
    """A wrong prefix makes every key missing and unexpected."""
    model = Model(visual=ViT(layers=24, width=64), text=Text(width=64)).build()
    weights = {f"model.{key}": value for key, value in model.clip.state_dict().items()}
    with pytest.raises(WeightsError) as error:
        load_exactly(model.clip, weights, "a file")
    lines = str(error.value).splitlines()[1:]
    assert len(lines) == 2 * len(weights) == 2 * 446
    assert "  unexpected: model.ln_final.bias; did you mean 'ln_final.bias'?" in lines
