"""Both towers, logits and gradients against open_clip, and every file that it writes."""

import open_clip
import pytest
import torch
from foreign import (
    SIZE,
    VISUALS,
    captions,
    images,
    open_clip_config,
    open_clip_model,
    write_json,
)
from pictures_on_disk import picture
from safetensors.torch import save_file

import videoclip
from videoclip.checkpoints.named import architecture
from videoclip.checkpoints.weights import load_exactly
from videoclip.errors import VocabularyError, WeightsError
from videoclip.frames.transforms import image_pixels
from videoclip.model import Model
from videoclip.tokenizer import VOCABULARY
from videoclip.towers import ResNet, Text, ViT
from videoclip.types import Frames


def configuration(visual: str, activation: str) -> Model:
    sizes = dict(VISUALS[visual])
    tower = (
        ResNet(width=16, layers=(1, 2, 1, 2), image_size=SIZE)
        if visual == "resnet"
        else ViT(**sizes, activation=activation)
    )
    text = Text(width=64, layers=3, vocabulary=1000, activation=activation)
    return Model(visual=tower, text=text, embedding=32)


def assert_same(ours: videoclip.VideoCLIP, theirs: torch.nn.Module) -> None:
    """Features and logits within 1e-5."""
    pixels, ids = images(3, ours.config.visual.image_size), captions()
    with torch.no_grad():
        torch.testing.assert_close(
            ours.encode_image(pixels), theirs.encode_image(pixels), atol=1e-5, rtol=0
        )
        torch.testing.assert_close(
            ours.encode_text(ids), theirs.encode_text(ids), atol=1e-5, rtol=0
        )
        by_image, _ = theirs.get_logits(pixels, ids)
        torch.testing.assert_close(
            ours.similarity(ids, pixels[:, None]), by_image.T, atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("visual", VISUALS)
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_features_logits_and_gradients(visual: str, activation: str, mode: str) -> None:
    """In training too: a ResNet then normalizes with the batch, and keeps its statistics."""
    theirs = open_clip_model(visual, activation).train(mode == "train")
    ours = configuration(visual, activation).build().train(mode == "train")
    load_exactly(ours.clip, theirs.state_dict(), "open_clip")
    pixels, ids = images(4, ours.config.visual.image_size), captions()
    by_image, _ = theirs.get_logits(pixels, ids)
    frames = Frames(pixels[:, None], torch.ones(4, 1, dtype=torch.bool))
    found = ours(frames, ids)
    torch.testing.assert_close(found, by_image.T, atol=1e-5, rtol=0)
    by_image.logsumexp(0).mean().backward()
    found.logsumexp(1).mean().backward()
    gradients = {name: p.grad for name, p in ours.clip.named_parameters()}
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-4)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.clip.state_dict()[name], value, atol=1e-6, rtol=0)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("visual", VISUALS)
@pytest.mark.parametrize("custom", [False, True])
def test_state_dicts_load_with_their_sizes(
    tmp_path, visual: str, activation: str, custom: bool
) -> None:
    theirs = open_clip_model(visual, activation, custom)
    path = tmp_path / "weights.pt"
    torch.save(theirs.state_dict(), path)
    ours = videoclip.load(path, activation=activation)
    assert ours.config == configuration(visual, activation)
    assert not ours.training
    assert_same(ours, theirs)


def test_the_wrong_activation_is_seen_by_these_tests() -> None:
    """A cosine of features would not see it."""
    theirs = open_clip_model("vit", "gelu")
    ours = configuration("vit", "quick_gelu").build().eval()
    load_exactly(ours.clip, theirs.state_dict(), "open_clip")
    with pytest.raises(AssertionError):
        assert_same(ours, theirs)


@pytest.mark.parametrize("name", ["weights.pt", "weights.bin", "weights.safetensors"])
def test_every_kind_of_file(tmp_path, name: str) -> None:
    theirs = open_clip_model()
    path = tmp_path / name
    (save_file if name.endswith("safetensors") else torch.save)(theirs.state_dict(), path)
    assert_same(videoclip.load(str(path), activation="quick_gelu"), theirs)


@pytest.mark.parametrize("prefix", ["module.", "module._orig_mod.", "_orig_mod.module."])
def test_a_training_checkpoint(tmp_path, prefix: str) -> None:
    """Wrapped for several processes and compiled, beside an optimizer, in half precision."""
    theirs = open_clip_model("resnet").half().float()
    weights = {prefix + k: v for k, v in theirs.state_dict().items()}
    weights = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    weights[prefix + "logit_scale"] = theirs.logit_scale.detach()[None]
    optimizer = torch.optim.AdamW(theirs.parameters())
    whole = {"epoch": 3, "name": "run", "state_dict": weights, "optimizer": optimizer.state_dict()}
    torch.save(whole, tmp_path / "epoch_3.pt")
    ours = videoclip.load(tmp_path / "epoch_3.pt", activation="quick_gelu")
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    assert_same(ours, theirs)


def test_older_files_without_counters_of_batches(tmp_path) -> None:
    theirs = open_clip_model("resnet")
    weights = {k: v for k, v in theirs.state_dict().items() if "num_batches" not in k}
    weights["attn_mask"] = theirs.attn_mask
    torch.save(weights, tmp_path / "old.pt")
    assert_same(videoclip.load(tmp_path / "old.pt", activation="quick_gelu"), theirs)
    weights["visual.attn_mask"] = theirs.attn_mask
    weights["visual.bn1.num_batches_tracked"] = torch.tensor(3)
    torch.save(weights, tmp_path / "odd.pt")
    with pytest.raises(WeightsError) as error:
        videoclip.load(tmp_path / "odd.pt", activation="quick_gelu")
    assert "unexpected: visual.attn_mask" in str(error.value)
    assert "missing: visual.bn2.num_batches_tracked" in str(error.value)


@pytest.mark.parametrize("custom", [False, True])
def test_a_bias_of_the_logits(tmp_path, custom: bool) -> None:
    theirs = open_clip_model("vit", "gelu", custom, init_logit_bias=-10.0)
    torch.save(theirs.state_dict(), tmp_path / "siglip.pt")
    ours = videoclip.load(tmp_path / "siglip.pt", activation="gelu")
    assert_same(ours, theirs)
    assert ours.clip.logit_bias.item() == theirs.logit_bias.item() != -10.0
    ours.save_pretrained(tmp_path / "saved")
    assert_same(videoclip.load(tmp_path / "saved"), theirs)


def write_folder(folder, theirs, config: dict, preprocess: dict | None = None) -> None:
    folder.mkdir(exist_ok=True)
    save_file(theirs.state_dict(), folder / "open_clip_model.safetensors")
    written = {"model_cfg": config, "preprocess_cfg": preprocess or {}}
    write_json(folder / "open_clip_config.json", written)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_a_folder_says_activation_and_normalization(tmp_path, activation: str) -> None:
    theirs = open_clip_model("vit", activation)
    half = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic"}
    write_folder(tmp_path, theirs, open_clip_config("vit", activation), half)
    for source in (tmp_path, tmp_path / "open_clip_model.safetensors"):
        ours = videoclip.load(source)
        assert ours.config.pixels.mean == (0.5, 0.5, 0.5)
        assert_same(ours, theirs)
    other = "gelu" if activation == "quick_gelu" else "quick_gelu"
    with pytest.raises(WeightsError, match=f"trained with {activation}, not with {other}"):
        videoclip.load(tmp_path, activation=other)


def test_heads_and_hidden_widths_that_weights_cannot_tell(tmp_path) -> None:
    """As in open_clip's ViT-H, ViT-g and bigG."""
    config = open_clip_config("vit", "gelu", heads=4, mlp_ratio=3.5)
    config["vision_cfg"] = {**VISUALS["vit"], "head_width": 32, "mlp_ratio": 4.9231}
    theirs = open_clip.model.CLIP(**config).eval()
    write_folder(tmp_path, theirs, config)
    ours = videoclip.load(tmp_path)
    assert ours.config.visual.attention_heads == 4
    assert ours.config.visual.mlp_width == 630
    assert_same(ours, theirs)
    ours.save_pretrained(tmp_path / "saved")
    assert_same(videoclip.load(tmp_path / "saved"), theirs)


def test_an_end_of_text_that_is_not_the_highest_id(tmp_path) -> None:
    config = open_clip_config("vit", "gelu", pool_type="eos", eos_id=7)
    theirs = open_clip.model.CLIP(**config).eval()
    write_folder(tmp_path, theirs, config)
    ours = videoclip.load(tmp_path)
    ids = captions(end=999)
    ids[:, 2] = 7
    torch.testing.assert_close(ours.encode_text(ids), theirs.encode_text(ids), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"captions \[1\] hold no end of text.*id 7"):
        ours.encode_text(torch.tensor([[5, 7, 0], [5, 6, 0]]))


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("vision_cfg", "pool_type", "avg"),
        ("vision_cfg", "timm_model_name", "vit_base_patch16_siglip_224"),
        ("vision_cfg", "no_ln_pre", True),
        ("text_cfg", "no_causal_mask", True),
        ("text_cfg", "hf_model_name", "roberta-base"),
        ("preprocess_cfg", "resize_mode", "longest"),
        ("preprocess_cfg", "interpolation", "bilinear"),
    ],
)
def test_what_is_not_built_is_refused(tmp_path, section: str, field: str, value) -> None:
    config, preprocess = open_clip_config("vit", "gelu"), {}
    config["vision_cfg"] = dict(config["vision_cfg"])
    {**config, "preprocess_cfg": preprocess}[section][field] = value
    write_folder(tmp_path, open_clip_model("vit", "gelu"), config, preprocess)
    with pytest.raises(WeightsError, match=rf"not built here: {field} = {value!r}"):
        videoclip.load(tmp_path)


def test_a_tower_of_another_library_is_named(tmp_path) -> None:
    for key in ("visual.trunk.blocks.0.norm1.weight", "text.transformer.embeddings.LayerNorm.bias"):
        torch.save({"visual.x": torch.ones(1), key: torch.ones(1)}, tmp_path / "timm.pt")
        with pytest.raises(WeightsError, match=r"tower of another library .*use open_clip"):
            videoclip.load(tmp_path / "timm.pt", activation="gelu")


def test_another_tokenizer_of_the_same_vocabulary_is_refused(tmp_path) -> None:
    """The ids would be wrong in silence; of another vocabulary `tokenize` refuses."""
    for size in (1000, VOCABULARY):
        config = open_clip_config("vit", "gelu", vocab_size=size, hf_tokenizer_name="bert")
        theirs = open_clip.model.CLIP(**config).eval()
        write_folder(tmp_path, theirs, config)
        if size == VOCABULARY:
            with pytest.raises(WeightsError, match="not built here: hf_tokenizer_name = 'bert'"):
                videoclip.load(tmp_path)
        else:
            with pytest.raises(VocabularyError, match="a vocabulary of 1000 tokens"):
                videoclip.load(tmp_path).tokenize("a cat")


def test_a_flag_that_is_no_boolean_is_not_taken_for_one(tmp_path) -> None:
    config = open_clip_config("vit", "gelu") | {"quick_gelu": "false"}
    write_folder(tmp_path, open_clip_model("vit", "gelu"), config)
    with pytest.raises(WeightsError, match="quick_gelu is 'false', expected true or false"):
        videoclip.load(tmp_path)


def test_squashed_pictures(tmp_path) -> None:
    """As open_clip's DFN5B models are trained."""
    theirs = open_clip_model("vit", "gelu")
    preprocess = {"resize_mode": "squash", "interpolation": "bicubic", "size": [SIZE, SIZE]}
    write_folder(tmp_path, theirs, open_clip_config("vit", "gelu"), preprocess)
    ours = videoclip.load(tmp_path)
    assert ours.config.pixels.fit == "squash"
    image = picture(50, 90)
    assert torch.equal(ours.preprocess(image), image_pixels(image, SIZE, fit="squash"))
    ours.save_pretrained(tmp_path / "saved")
    assert videoclip.load(tmp_path / "saved").config == ours.config


def test_a_configuration_of_another_size_is_refused(tmp_path) -> None:
    config = open_clip_config("vit", "gelu")
    config["multimodal_cfg"] = {"width": 64}
    write_folder(tmp_path, open_clip_model("deep", "gelu"), config)
    with pytest.raises(WeightsError, match="describes CoCa"):
        videoclip.load(tmp_path)
    del config["multimodal_cfg"]
    write_folder(tmp_path, open_clip_model("deep", "gelu"), config)
    with pytest.raises(WeightsError, match=r"unexpected: visual\.transformer\.resblocks\.23"):
        videoclip.load(tmp_path)
    del config["embed_dim"]
    write_json(tmp_path / "open_clip_config.json", {"model_cfg": config})
    with pytest.raises(WeightsError, match=r"open_clip_config\.json cannot be used.*embed_dim"):
        videoclip.load(tmp_path)


@pytest.mark.parametrize(("name", "theirs"), [("ViT-B/32", "ViT-B-32-quickgelu"), ("RN50",) * 2])
def test_full_size(name: str, theirs: str) -> None:
    """The real sizes, random weights; once, for a picture and a text."""
    torch.manual_seed(0)
    model = open_clip.create_model(theirs, pretrained=None, force_quick_gelu=True).eval()
    with torch.device("meta"):
        ours = architecture(name).build()
    load_exactly(ours, {f"clip.{k}": v for k, v in model.state_dict().items()}, theirs)
    ours.eval()
    ids = torch.zeros(1, 77, dtype=torch.long)
    ids[0, :4] = torch.tensor([49406, 320, 2368, 49407])
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        image, text = model.encode_image(pixels), model.encode_text(ids)
        torch.testing.assert_close(ours.encode_image(pixels), image, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.encode_text(ids), text, atol=1e-5, rtol=0)
        by_image, _ = model.get_logits(pixels, ids)
        logits = ours.similarity(ids, pixels[:, None])
    torch.testing.assert_close(logits, by_image.T, atol=1e-5, rtol=0)
