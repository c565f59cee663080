"""Texts that a locked tower reads once."""

import torch
from models import build

from videoclip.evaluation.evaluate import distinct
from videoclip.features.texts import TextFeatures
from videoclip.model import VideoCLIP
from videoclip.towers import Text

CAPTIONS = ["a cat", "a dog on a red mat", "a cat", "one two three four five six seven eight nine"]


def model() -> VideoCLIP:
    return build(text=Text(width=32, layers=1, context_length=12))


def test_texts_have_the_features_of_the_tower(tmp_path) -> None:
    clip = model()
    texts = TextFeatures(tmp_path, clip)
    texts.fill(CAPTIONS, (6, None))
    for words in (6, 8, None):
        ids = clip.tokenizer(words)(CAPTIONS)
        with torch.no_grad():
            expected = clip.embed_text(ids)
            found = clip.embed_text(texts(ids))
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(texts.tokenizer(words)(CAPTIONS), found.vector)
    assert texts(torch.zeros(0, 6, dtype=torch.long)).shape == (0, 32)


def test_every_text_is_read_once_in_all_runs(tmp_path, monkeypatch) -> None:
    clip, read = model(), []
    encode = VideoCLIP.encode_text
    monkeypatch.setattr(VideoCLIP, "encode_text", lambda m, i: read.append(len(i)) or encode(m, i))
    TextFeatures(tmp_path, clip).fill(CAPTIONS, (9, None))  # the last one is cut to 9 tokens
    assert sum(read) == 4
    again = TextFeatures(tmp_path, clip)
    again.fill(CAPTIONS, (9, None))
    for words in (9, 10, None):  # however long the padding is
        again.tokenizer(words)(CAPTIONS[:3])
    assert sum(read) == 4
    again.tokenizer()(["something new", "something new"])
    assert sum(read) == 5
    other = model()
    other.clip.text_projection.data += 1e-6
    assert not TextFeatures(tmp_path, other).known


def test_equal_texts_tie_to_the_last_bit(tmp_path) -> None:
    texts = TextFeatures(tmp_path, model())
    _, place = distinct(CAPTIONS, texts.tokenizer())
    assert place.tolist() == [0, 1, 0, 2]


def test_reading_a_text_in_training_leaves_the_modes_of_all_modules(tmp_path) -> None:
    clip = model().train()
    clip.clip.visual.eval()
    before = [module.training for module in clip.modules()]
    TextFeatures(tmp_path, clip).tokenizer()(["a cat"])
    assert [module.training for module in clip.modules()] == before
