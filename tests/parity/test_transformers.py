"""Both ways with transformers: its folders open here, ours open there, with the same numbers."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from foreign import VOCABULARY, captions, images, randomized, transformers_config, write_json
from models import COMBINATIONS, build
from pictures_on_disk import picture
from safetensors.torch import load_file, save_file
from torch import Tensor

import videoclip
import videoclip.checkpoints.layouts
import videoclip.frames.transforms
from videoclip.errors import WeightsError
from videoclip.model import Model
from videoclip.towers import ResNet, Text, ViT
from videoclip.types import Frames

SIZE = 56


def transformers_model(config: transformers.CLIPConfig) -> transformers.CLIPModel:
    torch.manual_seed(0)
    return randomized(transformers.CLIPModel(config)).eval()


def written(folder: Path, config: transformers.CLIPConfig) -> transformers.CLIPModel:
    model = transformers_model(config)
    model.save_pretrained(folder)
    return model


def logits(model: transformers.CLIPModel, pixels: Tensor, ids: Tensor) -> Tensor:
    return model(input_ids=ids, pixel_values=pixels).logits_per_text


def assert_same(ours: videoclip.VideoCLIP, theirs: transformers.CLIPModel) -> None:
    size, words = ours.config.visual.image_size, ours.config.text.context_length
    pixels, ids = images(3, size), captions()[:, :words]
    with torch.no_grad():
        image = theirs.get_image_features(pixel_values=pixels).pooler_output
        text = theirs.get_text_features(input_ids=ids).pooler_output
        torch.testing.assert_close(ours.encode_image(pixels), image, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.encode_text(ids), text, atol=1e-5, rtol=0)
        found = ours.similarity(ids, pixels[:, None])
        torch.testing.assert_close(found, logits(theirs, pixels, ids), atol=1e-5, rtol=0)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("layers", [3, 24])
def test_its_folder_gives_features_logits_and_gradients(tmp_path, activation, layers) -> None:
    theirs = written(tmp_path, transformers_config(activation, layers))
    ours = videoclip.load(tmp_path)
    assert ours.config == Model(
        visual=ViT(width=128, layers=layers, patch_size=14, image_size=SIZE, activation=activation),
        text=Text(width=128, layers=3, vocabulary=VOCABULARY, activation=activation),
        embedding=32,
    )
    assert_same(ours, theirs)
    pixels, ids = images(3, SIZE), captions()
    logits(theirs, pixels, ids).logsumexp(1).mean().backward()
    ours.similarity(ids, pixels[:, None]).logsumexp(1).mean().backward()
    # The gradients go the way of the weights: under their names, apart or transposed.
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.clip.named_parameters():
        names = videoclip.checkpoints.layouts.transformers(name)
        expected = (
            torch.cat([gradients[n] for n in names]) if len(names) > 1 else gradients[names[0]]
        )
        expected = expected.T if name in ("visual.proj", "text_projection") else expected
        torch.testing.assert_close(parameter.grad, expected, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("kind", ["bin", "parts", "half"])
def test_every_kind_of_file(tmp_path, kind: str) -> None:
    theirs = transformers_model(transformers_config())
    if kind == "bin":
        theirs.config.architectures = ["CLIPModel"]
        theirs.config.save_pretrained(tmp_path)
        weights = theirs.state_dict()
        for tower in ("text", "vision"):  # older files hold these
            weights[f"{tower}_model.embeddings.position_ids"] = torch.arange(9)[None]
        torch.save(weights, tmp_path / "pytorch_model.bin")
    elif kind == "parts":
        theirs.save_pretrained(tmp_path, max_shard_size="400KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 2
    else:
        theirs.half().save_pretrained(tmp_path)
        theirs.float()
    assert_same(videoclip.load(tmp_path), theirs)


def test_a_part_that_is_missing_is_named(tmp_path) -> None:
    transformers_model(transformers_config()).save_pretrained(tmp_path, max_shard_size="400KB")
    sorted(tmp_path.glob("*.safetensors"))[1].unlink()
    with pytest.raises(WeightsError, match=r"lists model-00002-of-\d+\.safetensors, which is not"):
        videoclip.load(tmp_path)


def test_an_index_that_is_none_is_named(tmp_path) -> None:
    written(tmp_path, transformers_config())
    (tmp_path / "model.safetensors").unlink()
    for content in ([], {"weight_map": {"a": 1, "b": "c"}}):
        write_json(tmp_path / "model.safetensors.index.json", content)
        with pytest.raises(WeightsError, match=r"index\.json is no index of weights"):
            videoclip.load(tmp_path)


def test_the_older_form_of_its_configuration(tmp_path) -> None:
    """Fields left out are those of B/32; the second of two texts counts; 2 is the highest id."""
    theirs = written(tmp_path, transformers_config())
    config = json.loads((tmp_path / "config.json").read_text())
    for field in ("hidden_act", "layer_norm_eps"):
        del config["text_config"][field], config["vision_config"][field]
    config["text_config"]["eos_token_id"] = 2
    config["text_config_dict"] = config["text_config"]
    config["text_config"] = {"hidden_size": 11}
    config["vision_config_dict"] = None
    write_json(tmp_path / "config.json", config)
    assert_same(videoclip.load(tmp_path), theirs)


def test_its_image_processor_says_how_pixels_are_normalized(tmp_path) -> None:
    written(tmp_path, transformers_config())
    processor = transformers.CLIPImageProcessor(
        image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4]
    )
    processor.save_pretrained(tmp_path)
    pixels = videoclip.load(tmp_path).config.pixels
    assert pixels.mean == (0.5, 0.4, 0.3)
    assert pixels.std == (0.2, 0.3, 0.4)
    [path] = tmp_path.glob("*processor*.json")
    content = json.loads(path.read_text())
    path.unlink()
    write_json(tmp_path / "processor_config.json", {"image_processor": content})
    assert videoclip.load(tmp_path).config.pixels == pixels
    for change in (
        {"resample": 2}, {"rescale_factor": 1 / 127.5}, {"do_normalize": False},
        {"do_center_crop": False}, {"size": {"shortest_edge": 256}}, {"crop_size": 200},
        {"size": {"height": 224, "width": 200}},
    ):  # fmt: skip
        [name] = change
        write_json(tmp_path / "preprocessor_config.json", content | change)
        with pytest.raises(WeightsError, match=rf"preprocessor_config.json asks for .*{name}"):
            videoclip.load(tmp_path)
    for text in ("[]", "{", "[" * 100_000):
        (tmp_path / "preprocessor_config.json").write_text(text)
        with pytest.raises(WeightsError, match=r"preprocessor_config\.json cannot be used"):
            videoclip.load(tmp_path)


def test_pictures_that_are_squashed(tmp_path) -> None:
    written(tmp_path, transformers_config())
    theirs = transformers.CLIPImageProcessorPil(
        size={"height": SIZE, "width": SIZE}, do_center_crop=False
    )
    theirs.save_pretrained(tmp_path)
    ours = videoclip.load(tmp_path)
    assert ours.config.pixels.fit == "squash"
    image = picture(90, 50)
    found = ours.normalized(Frames(ours.preprocess(image)[None, None], torch.ones(1, 1)))
    expected = theirs(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(found[0], expected, atol=1e-6, rtol=0)
    ours.save_pretrained(tmp_path / "saved")
    assert videoclip.load(tmp_path / "saved").config == ours.config
    again = transformers.CLIPImageProcessorPil.from_pretrained(tmp_path / "saved")
    assert torch.equal(again(image, return_tensors="pt")["pixel_values"], expected)


def test_new_tokens_after_the_end_of_text(tmp_path) -> None:
    theirs = written(tmp_path, transformers_config(eos_token_id=990))
    ours = videoclip.load(tmp_path)
    assert ours.config.text.end_of_text == 990
    ids = captions(end=990)
    ids[:, 1] = 995
    with torch.no_grad():
        text = theirs.get_text_features(input_ids=ids).pooler_output
        torch.testing.assert_close(ours.encode_text(ids), text, atol=1e-5, rtol=0)
    ours.save_pretrained(tmp_path / "saved")
    again = transformers.CLIPModel.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        found = again.get_text_features(input_ids=ids).pooler_output
    torch.testing.assert_close(found, text, atol=1e-6, rtol=0)


def test_what_is_not_built_is_refused(tmp_path) -> None:
    written(tmp_path, transformers_config())
    original = (tmp_path / "config.json").read_text()
    for field, value in (("hidden_act", "gelu_new"), ("layer_norm_eps", 1e-6)):
        config = json.loads(original)
        config["vision_config"][field] = value
        write_json(tmp_path / "config.json", config)
        with pytest.raises(WeightsError, match=rf"in vision_config for.*{field} '?{value}"):
            videoclip.load(tmp_path)
    for field, value in (("num_hidden_layers", 3.0), ("patch_size", 0), ("hidden_size", "128")):
        config = json.loads(original)
        config["vision_config"][field] = value
        write_json(tmp_path / "config.json", config)
        with pytest.raises(WeightsError, match=rf"{tmp_path}.*cannot be"):
            videoclip.load(tmp_path)
    config = json.loads(original)
    config["model_type"] = "siglip"
    write_json(tmp_path / "config.json", config)
    with pytest.raises(WeightsError, match=r"nor a config\.json of model_type clip"):
        videoclip.load(tmp_path)


def test_a_key_removed_renamed_or_reshaped_is_refused_by_its_name(tmp_path) -> None:
    written(tmp_path, transformers_config())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["logit_scale"]
    layer = "vision_model.encoder.layers.1."
    weights[layer + "self_attn.q_project.bias"] = weights.pop(layer + "self_attn.q_proj.bias")
    weights["text_projection.weight"] = weights["text_projection.weight"].T.contiguous()
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError) as error:
        videoclip.load(tmp_path)
    lines = str(error.value).splitlines()
    assert lines[1:] == [
        "  misshapen: text_projection.weight is (128, 32), expected (32, 128)",
        "  missing: logit_scale",
        f"  missing: {layer}self_attn.q_proj.bias",
        f"  unexpected: {layer}self_attn.q_project.bias; "
        f"did you mean '{layer}self_attn.q_proj.bias'?",
    ]


def test_the_activation_may_be_stated_but_not_contradicted(tmp_path) -> None:
    written(tmp_path, transformers_config("gelu"))
    assert videoclip.load(tmp_path, activation="gelu").config.text.activation == "gelu"
    with pytest.raises(WeightsError, match="trained with gelu, not with quick_gelu"):
        videoclip.load(tmp_path, activation="quick_gelu")


def test_a_file_alone_points_to_its_folder(tmp_path) -> None:
    written(tmp_path, transformers_config())
    with pytest.raises(WeightsError, match=r"sizes stand in config\.json; give the folder"):
        videoclip.load(tmp_path / "model.safetensors", activation="gelu")


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_transformers_opens_what_we_save(tmp_path, activation: str) -> None:
    text = Text(
        width=64, layers=2, context_length=20, vocabulary=VOCABULARY, activation=activation,
        attention_heads=4,
    )  # fmt: skip
    visual = ViT(
        width=96, layers=3, patch_size=8, image_size=24, activation=activation, mlp_width=100
    )
    ours = Model(
        visual=visual, text=text, embedding=48,
        pixels=videoclip.frames.transforms.Pixels(mean=(0.1, 0.2, 0.3)),
    ).build().eval()  # fmt: skip
    ours.save_pretrained(tmp_path)
    theirs, report = transformers.CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert_same(ours, theirs.eval())
    processor = transformers.CLIPImageProcessor.from_pretrained(tmp_path)
    assert tuple(processor.image_mean) == (0.1, 0.2, 0.3)
    # And as if transformers had written it.
    for ours_only in ("videoclip.json", "README.md"):
        (tmp_path / ours_only).unlink()
    assert videoclip.load(tmp_path).config == ours.config


@pytest.mark.parametrize(("mixer", "head", "scorer"), COMBINATIONS[::3])
def test_of_a_video_model_transformers_opens_the_image_text_part(
    tmp_path, mixer: str, head: str, scorer: str
) -> None:
    ours = build(mixer, head, scorer)
    ours.save_pretrained(tmp_path)
    theirs = transformers.CLIPModel.from_pretrained(tmp_path).eval()
    plain = Model(
        visual=ours.config.visual, text=ours.config.text, embedding=ours.config.embedding
    ).build().eval()  # fmt: skip
    plain.start_from(ours.clip)
    ids = captions(end=99)[:, :12] % 100
    pixels = images(2, ours.config.visual.image_size)
    with torch.no_grad():
        found = logits(theirs, pixels, ids)
        torch.testing.assert_close(plain.similarity(ids, pixels[:, None]), found, atol=1e-5, rtol=0)


def test_what_transformers_cannot_compute_keeps_our_names(tmp_path) -> None:
    text = Text(width=64, layers=1, context_length=8, vocabulary=100)
    for name, config in {
        "resnet": Model(visual=ResNet(width=16, layers=(1, 1, 1, 1), image_size=32), text=text),
        "bias": Model(visual=ViT(width=64, layers=1, image_size=32), text=text, logit_bias=-10.0),
    }.items():
        model = config.build()
        model.save_pretrained(tmp_path / name)
        assert not (tmp_path / name / "config.json").exists()
        kept = load_file(tmp_path / name / "model.safetensors")
        assert kept.keys() == model.clip.state_dict().keys()
        again = videoclip.load(tmp_path / name)
        assert again.config == config
        for key, value in model.state_dict().items():
            assert torch.equal(again.state_dict()[key], value), key
