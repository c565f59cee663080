"""OpenAI's archives: the numbers of the program inside, and of open_clip's reader."""

import warnings
from pathlib import Path

import open_clip.openai
import pytest
import torch
from foreign import (
    VISUALS,
    captions,
    images,
    open_clip_config,
    open_clip_model,
    write_archive,
    write_json,
)

import videoclip
from videoclip.errors import WeightsError
from videoclip.layers import Activation


@pytest.fixture(scope="module", params=VISUALS)
def archive(request, tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("openai") / f"{request.param}.pt"
    size = VISUALS[request.param]["image_size"]
    write_archive(open_clip_model(request.param), path, size)
    return path


def opened_by_open_clip(path: Path) -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls torch.jit.load, which is deprecated
        return open_clip.openai.load_openai_model(str(path), precision="fp32", device="cpu").eval()


@torch.no_grad()
def test_an_archive_gives_the_numbers_of_open_clips_reader(archive: Path) -> None:
    theirs, ours = opened_by_open_clip(archive), videoclip.load(archive)
    pixels, ids = images(3, ours.config.visual.image_size), captions()
    image, text = theirs.encode_image(pixels), theirs.encode_text(ids)
    torch.testing.assert_close(ours.encode_image(pixels), image, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.encode_text(ids), text, atol=1e-5, rtol=0)
    by_image, _ = theirs.get_logits(pixels, ids)
    found = ours.similarity(ids, pixels[:, None])
    torch.testing.assert_close(found, by_image.T, atol=1e-5, rtol=0)


@torch.no_grad()
def test_an_archive_gives_the_numbers_of_its_own_program(archive: Path) -> None:
    ours = videoclip.load(archive)
    pixels, ids = images(2, ours.config.visual.image_size), captions(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.jit.load(str(archive)).float()
        image, text, _ = program(pixels, ids)
    found = torch.nn.functional.normalize(ours.encode_image(pixels), dim=-1)
    torch.testing.assert_close(found, image, atol=1e-5, rtol=0)
    found = torch.nn.functional.normalize(ours.encode_text(ids), dim=-1)
    torch.testing.assert_close(found, text, atol=1e-5, rtol=0)


def test_the_weights_are_float32_and_equal_to_the_bit(archive: Path) -> None:
    ours, theirs = videoclip.load(archive), opened_by_open_clip(archive)
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    assert not ours.training
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.clip.state_dict()[name], value), name


def test_an_archive_of_openai_is_quick_gelu(archive: Path) -> None:
    assert videoclip.load(archive, activation="quick_gelu").config.text.activation == "quick_gelu"
    with pytest.raises(WeightsError, match="trained with quick_gelu, not with gelu"):
        videoclip.load(archive, activation="gelu")


def test_an_archive_whose_program_runs_exact_gelu_is_believed(tmp_path) -> None:
    write_archive(open_clip_model("vit", "gelu"), tmp_path / "other.pt")
    assert videoclip.load(tmp_path / "other.pt").config.visual.activation == "gelu"
    with pytest.raises(WeightsError, match="trained with gelu, not with quick_gelu"):
        videoclip.load(tmp_path / "other.pt", activation="quick_gelu")


@pytest.mark.parametrize("kind", ["archive", "weights"])
def test_openais_weights_in_an_exact_gelu_configuration_are_an_error(tmp_path, kind: str) -> None:
    path = tmp_path / "open_clip_pytorch_model.bin"
    weights = write_archive(open_clip_model(), path)
    if kind == "weights":
        torch.save(weights, path)
    for activation in ("quick_gelu", "gelu"):
        config = open_clip_config("vit", activation)
        write_json(tmp_path / "open_clip_config.json", {"model_cfg": config})
        if activation == "quick_gelu":
            assert videoclip.load(tmp_path).config.text.activation == "quick_gelu"
            continue
        for source in (path, tmp_path):
            with pytest.raises(WeightsError, match=r"quick_gelu, but .*config\.json asks for gelu"):
                videoclip.load(source)


def test_the_state_dict_of_an_archive_is_quick_gelu_too(tmp_path) -> None:
    weights = write_archive(open_clip_model(), tmp_path / "archive.pt")
    torch.save(weights, tmp_path / "weights.pt")
    ours = videoclip.load(tmp_path / "weights.pt")
    assert ours.config == videoclip.load(tmp_path / "archive.pt").config
    with pytest.raises(WeightsError, match="trained with quick_gelu, not with gelu"):
        videoclip.load(tmp_path / "weights.pt", activation="gelu")


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_a_bare_state_dict_must_be_asked_for_its_activation(
    tmp_path, activation: Activation
) -> None:
    torch.save(open_clip_model("vit", activation).state_dict(), tmp_path / "bare.pt")
    with pytest.raises(WeightsError, match=r"activation='quick_gelu'\) for OpenAI's"):
        videoclip.load(tmp_path / "bare.pt")
    ours = videoclip.load(tmp_path / "bare.pt", activation=activation)
    assert ours.config.visual.activation == ours.config.text.activation == activation


def test_a_width_whose_heads_are_unknown_is_asked_for(tmp_path) -> None:
    weights = open_clip_model().state_dict()
    for name, value in weights.items():
        if name.startswith("visual.") and 128 in value.shape:
            weights[name] = torch.zeros([1280 if n == 128 else n for n in value.shape])
    torch.save(weights, tmp_path / "wide.pt")
    with pytest.raises(WeightsError, match=r"width 1280.*put the model's open_clip_config\.json"):
        videoclip.load(tmp_path / "wide.pt", activation="gelu")


def wrong(path: Path, change) -> list[str]:
    """The lines that follow from a change of the weights."""
    weights = dict(open_clip_model("vit").state_dict())
    change(weights)
    torch.save(weights, path)
    with pytest.raises(WeightsError) as error:
        videoclip.load(path, activation="quick_gelu")
    assert str(path) in str(error.value)
    return str(error.value).splitlines()[1:]


def test_a_key_removed_renamed_or_reshaped_is_refused_by_name(tmp_path) -> None:
    def change(weights: dict) -> None:
        del weights["visual.ln_pre.bias"]
        weights["ln_finall.weight"] = weights.pop("ln_final.weight")
        weights["visual.proj"] = weights["visual.proj"][:, :-1]
        weights["note"] = "hello"
        weights["logit_scale"] = 3
        weights["ln_final.bias"] = weights["ln_final.bias"].to(torch.int8)

    assert wrong(tmp_path / "weights.pt", change) == [
        "  misshapen: visual.proj is (128, 31), expected (128, 32)",
        "  missing: ln_final.weight",
        "  missing: visual.ln_pre.bias",
        "  no plain tensor: logit_scale is int",
        "  unexpected: ln_finall.weight; did you mean 'ln_final.weight'?",
        "  unexpected: note",
        "  wrong type: ln_final.bias is torch.int8, expected torch.float32",
    ]


@pytest.mark.parametrize("key", [
    "visual.conv1.weight", "visual.positional_embedding", "token_embedding.weight",
    "positional_embedding", "text_projection", "transformer.resblocks.0.mlp.c_fc.weight",
])  # fmt: skip
def test_keys_that_tell_the_sizes_are_missed_by_name(tmp_path, key: str) -> None:
    """And so are all others, though nothing is known of their shapes."""

    def change(weights: dict) -> None:
        weights["ln_finall.bias"] = weights.pop("ln_final.bias")
        weights[key + "s"] = weights.pop(key)

    renamed = {"ln_final.bias": "ln_finall.bias", key: key + "s"}
    expected = [f"  missing: {old}" for old in renamed]
    expected += [f"  unexpected: {new}; did you mean '{old}'?" for old, new in renamed.items()]
    assert wrong(tmp_path / "a.pt", change) == sorted(expected)
    lines = wrong(tmp_path / "b.pt", lambda weights: weights.update({key: torch.zeros(2, 3, 4)}))
    assert lines == [f"  misshapen: {key} is (2, 3, 4), expected {4 if 'conv' in key else 2} axes"]


@pytest.mark.parametrize("visual", ["vit", "resnet"])
@pytest.mark.parametrize("custom", [False, True])
def test_every_key_is_missed_by_name(tmp_path, visual: str, custom: bool) -> None:
    """Some keys at a time, until each was removed, renamed and reshaped once."""
    whole = open_clip_model(visual, custom=custom).state_dict()
    path = tmp_path / "weights.pt"
    for part in range(5):
        chosen = list(whole)[part::5]
        for fault in ("removed", "renamed", "reshaped"):
            weights = dict(whole)
            for key in chosen:
                value = weights.pop(key)
                if fault == "renamed":
                    weights[f"{key}_"] = value
                elif fault == "reshaped":
                    weights[key] = value[None, None]
            torch.save(weights, path)
            with pytest.raises(WeightsError) as error:
                videoclip.load(path, activation="quick_gelu")
            found = {line.split(" is ")[0] for line in str(error.value).splitlines()[1:]}
            kind = "misshapen" if fault == "reshaped" else "missing"
            expected = {f"  {kind}: {key}" for key in chosen}
            if fault == "renamed":
                expected |= {f"  unexpected: {key}_; did you mean '{key}'?" for key in chosen}
            assert found == expected


def test_a_missing_layer_in_the_middle_is_not_a_shallower_model(tmp_path) -> None:
    def change(weights: dict) -> None:
        for key in list(weights):
            if key.startswith("visual.transformer.resblocks.1."):
                del weights[key]

    lines = wrong(tmp_path / "weights.pt", change)
    assert len(lines) == 12
    assert all(line.startswith("  missing: visual.transformer.resblocks.1.") for line in lines)


def test_what_is_no_clip_says_what_it_is(tmp_path) -> None:
    torch.save({"conv.weight": torch.ones(1), "fc.bias": torch.ones(1)}, tmp_path / "net.pt")
    with pytest.raises(WeightsError, match=r"holds no CLIP.*it has conv\.weight, fc\.bias"):
        videoclip.load(tmp_path / "net.pt")
