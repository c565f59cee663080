"""Zero-shot classification against open_clip's classifier on the same random weights."""

import numpy as np
import open_clip
import pytest
import torch
from pictures_on_disk import class_folders, small_clip
from torch.nn.functional import normalize

from videoclip.images import image_set
from videoclip.prompts import templates_of
from videoclip.zero_shot import class_embeddings, class_logits, class_probabilities, zero_shot

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
    with pytest.raises(ValueError, match=r"2 class names are given, c has 3 classes"):
        zero_shot(model, images, ["a {}."], classes=["a", "b"], progress=False)


def test_a_foreign_vocabulary_is_refused() -> None:
    from models import build

    with pytest.raises(ValueError, match=r"a vocabulary of 100 tokens.*tokenizer of these weights"):
        class_embeddings(build(), NAMES, TEMPLATES)
