"""Zero-shot classification against open_clip's classifier on the same random weights."""

import numpy as np
import open_clip
import pytest
import torch
from pictures_on_disk import class_folders, small_clip
from torch.nn.functional import normalize

from videoclip.errors import VideoclipError
from videoclip.image_text.images import image_set
from videoclip.image_text.zero_shot import (
    class_embeddings,
    class_logits,
    class_matches,
    class_probabilities,
    zero_shot,
)
from videoclip.prompts import templates_of

NAMES = ["tench", "great white shark", "kite (bird of prey)", "wow!"]
TEMPLATES = ["a photo of a {}.", "art of the {}.", "itap of my {}!"]


def test_the_classifier_is_open_clips() -> None:
    model = small_clip()
    theirs = open_clip.CLIP(
        embed_dim=32,
        vision_cfg={"layers": 1, "width": 64, "head_width": 64, "patch_size": 8, "image_size": 16},
        text_cfg={"context_length": 20, "width": 32, "heads": 1, "layers": 1},
        quick_gelu=True,
    ).eval()
    theirs.load_state_dict(model.clip.state_dict(), strict=False)
    tokenizer = open_clip.SimpleTokenizer(context_length=20)
    wanted = open_clip.build_zero_shot_classifier(
        theirs, tokenizer, NAMES, [lambda c, t=t: t.format(c) for t in TEMPLATES]
    ).T
    found = class_embeddings(model, NAMES, TEMPLATES, batch_size=5)
    assert (found - wanted).abs().max() < 1e-5
    pixels = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    features = model.encode_image(pixels)
    logits = model.clip.logit_scale.exp() * normalize(features, dim=-1) @ wanted.T
    assert (class_logits(model, features, found) - logits).abs().max() < 1e-4
    probabilities = class_probabilities(model, features, found)
    assert (probabilities - logits.softmax(1)).abs().max() < 1e-5


def test_a_class_is_the_mean_of_its_sentences_and_order_does_not_matter() -> None:
    model = small_clip()
    found = class_embeddings(model, [("happy", "smiling"), "sad"], TEMPLATES)
    single = [
        class_embeddings(model, [name], [template])[0]
        for name in ("happy", "smiling")
        for template in TEMPLATES
    ]
    assert (found[0] - normalize(torch.stack(single).mean(0), dim=0)).abs().max() < 1e-6
    turned = class_embeddings(model, ["sad", ("smiling", "happy")], TEMPLATES[::-1])
    assert (turned.flip(0) - found).abs().max() < 1e-6


def test_a_bias_shifts_logits_and_leaves_probabilities() -> None:
    model, biased = small_clip(), small_clip(logit_bias=-10.0)
    biased.clip.load_state_dict(model.clip.state_dict(), strict=False)
    features, classifier = torch.randn(2, 32), class_embeddings(model, NAMES, TEMPLATES)
    logits = class_logits(model, features, classifier)
    assert (class_logits(biased, features, classifier) - logits + 10).abs().max() < 1e-5
    probabilities = class_probabilities(biased, features, classifier)
    assert (probabilities - logits.softmax(1)).abs().max() < 1e-6
    matches = class_matches(biased, features, classifier)
    assert (matches - 1 / (1 + (10 - logits).exp())).abs().max() < 1e-6
    with pytest.raises(VideoclipError, match=r"has no logit_bias.*class_probabilities"):
        class_matches(model, features, classifier)


def test_the_classifier_can_start_a_trained_layer() -> None:
    layer = torch.nn.Parameter(class_embeddings(small_clip(), NAMES, TEMPLATES))
    (torch.randn(2, 32) @ layer.T).sum().backward()
    assert layer.grad.abs().sum() > 0


def test_a_sentence_that_is_cut_is_named(capsys) -> None:
    model, words = small_clip(), "a " * 18  # and start and end are the context of 20
    class_embeddings(model, [words], ["{}"])
    assert not capsys.readouterr().err
    class_embeddings(model, ["cat", words], ["{}.", "{}"])
    assert "1 of 4 sentences are longer than the model's 20 tokens" in capsys.readouterr().err


def test_weights_that_are_not_numbers_are_refused(tmp_path) -> None:
    model, images = small_clip(), image_set(class_folders(tmp_path / "c"))
    model.clip.visual.proj.data[0] = torch.nan
    with pytest.raises(VideoclipError, match="12 of 12 pictures are not numbers"):
        zero_shot(model, images, TEMPLATES, progress=False)
    model.clip.text_projection.data[0] = torch.inf
    with pytest.raises(VideoclipError, match="4 of 4 classes are not numbers"):
        class_embeddings(model, NAMES, TEMPLATES, store=tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_other_names_for_the_classes(tmp_path) -> None:
    model, images = small_clip(), image_set(class_folders(tmp_path / "c"))

    def named(*classes: str | tuple[str, ...]) -> tuple[str, ...]:
        return zero_shot(model, images, ["a {}."], classes=classes, progress=False).result.classes

    assert named("crane", ("Green", "lime"), "crane") == ("crane (blue)", "Green", "crane (red)")
    with pytest.raises(VideoclipError, match=r"another order.* class 1 is 'blue', .* of class 2;"):
        named("green", "blue", "red")
    with pytest.raises(VideoclipError, match=r"2 class names are given, c has 3 classes \(blue"):
        named("a", "b")


def test_a_store_that_cannot_be_written_is_one_message(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VideoclipError, match=r"cannot keep class embeddings in .*file"):
        class_embeddings(small_clip(), NAMES, TEMPLATES, store=tmp_path / "file" / "store")


def test_class_embeddings_are_kept(tmp_path, monkeypatch) -> None:
    model = small_clip()
    first = class_embeddings(model, NAMES, TEMPLATES, store=tmp_path)
    monkeypatch.setattr(type(model), "encode_text", lambda *_: pytest.fail("encoded again"))
    assert (class_embeddings(model, NAMES, TEMPLATES, store=tmp_path) == first).all()
    monkeypatch.undo()
    assert len(class_embeddings(model, NAMES[:2], TEMPLATES, store=tmp_path)) == 2
    for path in tmp_path.iterdir():
        path.write_bytes(b"damaged")
    assert (class_embeddings(model, NAMES, TEMPLATES, store=tmp_path) == first).all()


def test_a_set_is_classified_and_unreadable_pictures_count(tmp_path) -> None:
    folder = class_folders(tmp_path / "c")
    (folder / "red" / "0.png").write_bytes(b"")
    model, images = small_clip(), image_set(folder)
    found = zero_shot(model, images, templates_of(["cifar10"]), progress=False)
    assert found.result.counts() == "expected 12 = scored 11 + 1 bad"
    classifier = class_embeddings(model, images.classes, templates_of(["cifar10"]))
    pixels = torch.stack([model.preprocess(images.image(i)) for i in range(8)])
    wanted = class_logits(model, model.encode_image(pixels), classifier).numpy()
    assert np.abs(found.logits[:8] - wanted).max() < 1e-4
    assert np.isnan(found.logits[8]).all()


def test_a_foreign_vocabulary_is_refused() -> None:
    from models import build

    with pytest.raises(VideoclipError, match=r"a vocabulary of 100 .*tokenizer of these weights"):
        class_embeddings(build(), NAMES, TEMPLATES)
