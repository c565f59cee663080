"""The same ids as open_clip's tokenizer, on captions as the web writes them."""

# ruff: noqa: RUF001 - letters that look like others are what is tested

import gzip
import importlib.util
import itertools
import pickle
import random
import subprocess
import sys
from types import ModuleType

import pytest
import torch

from videoclip import tokenizer as module
from videoclip.errors import VideoclipError
from videoclip.tokenizer import Tokenizer, clean

HOSTILE = [
    "<b> &amp;amp; &amp;lt;", "< &amp;amp;lt; &amp;quot;", "<i>&amp;#39;s</i>", "<&amp;amp;amp;",
    "", " ", "\t\r\n  \x0b\x0c", "\ufeff", "\ufeffa cat", "\x00", "a\x00b\x07c\x1bd",
    "a\x1cb\x1fc", "don’t", "“curly” ‘quotes’ …", "l’été à Paris", "ﬁne ﬂow oﬃce",
    "ＦＵＬＬ　ｗｉｄｔｈ １２３", "&amp;", "&amp;amp;", "&amp;lt;b&amp;gt;", "&lt;br/&gt;",
    "&nbsp;a&nbsp;b", "&#39;s", "&#x1F600;", "&#0;", "&#x1c;a", "&#11;a", "&bogus;",
    "&amp;#8217;t", "caf&eacute;", "a&#8203;b", "&#133;", "donâ€™t", "schÃ¶n", "ЁЖЗ",
    "Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "中文字幕 一只猫", "日本語のテキスト", "مرحبا بالعالم", "שָׁלוֹם", "हिन्दी",
    "ไทยไม่มีช่องว่าง", "한국어 자막", "İstanbul Iı", "ẞ straße ǅ", "Σίσυφος ς", "😀",
    "👩‍👩‍👧‍👦 family", "🇩🇪🇫🇷", "❤️", "a\u200bb\u200dc\u2060d", "a\u2028b\u2029c\u0085d",
    "e\u0301 é", "\U0001f9d1\U0001f3fd", "\ud800".encode("utf-8", "replace").decode(),
    "\U0010ffff", "\ufffd\ufffe", "½ ² Ⅷ ٣ ௧ 一二三", "1,234.56 12:30 3rd 007",
    "it's I'm you're we've they'll he'd who'S CAN'T", "'s't're've'm'll'd", "''''", "'ſ ‘s",
    "x's-y't_z", "<|endoftext|>", "a cat<|endoftext|>and a dog", "<|startoftext|> x",
    "<|ENDOFTEXT|>", "< |endoftext| >", "<start_of_text>", "a <end_of_text> b", "<END_OF_TEXT>",
    "<ſtart_of_text>", "<start_of_text", "&lt;end_of_text&gt;", "</w>", "a</w> b</w>", "<pad>",
    "[CLS] [MASK]", "a_b_c", "__init__", "C++ C# .NET", "http://a.b/c?d=e&f=g#h",
    "user@example.com", "#tag @name", "!!!???...", "---===+++", "\\n \\t \\u0041", "\"quoted\"",
    "$5.00 €5 ¥5", "a" * 500, "ab" * 300, "!" * 400, "中" * 200, "😀" * 100, "0" * 120,
    "word " * 300, "a b " * 100, "Pneumonoultramicroscopicsilicovolcanoconiosis",
    "\x1b[31mred\x1b[0m", "Ａ&ａｍｐ；", "ǆ ŉ ﷺ ﬃ", "A DIAGRAM", "a diagram", "a photo of a cat",
    "tab\tsep\tvalues", "line\nbreak\r\nhere", " lead and trail ",
]  # fmt: skip


def corpus() -> list[str]:
    """Hostile texts alone, in pairs, and texts of random letters from everywhere in Unicode."""
    texts = list(HOSTILE)
    texts += [
        f"{one} a man {other}" for one, other in itertools.pairwise([*HOSTILE, "runs", *HOSTILE])
    ]
    dice = random.Random(0)
    spaces = "        \n\t\u3000\u00a0"
    ranges = [(32, 127), (0, 256), (0x100, 0x600), (0x2000, 0x2100), (0xFB00, 0xFFFF), (0, 0x20000)]
    for number in range(400):
        low, high = ranges[number % len(ranges)]
        points = (dice.randrange(low, high) for _ in range(dice.randrange(1, 120)))
        letters = [chr(p) for p in points if not 0xD800 <= p < 0xE000]
        texts.append("".join(dice.choice([a, a, a, dice.choice(spaces)]) for a in letters))
    return texts


@pytest.fixture(scope="module")
def open_clip() -> ModuleType:
    return pytest.importorskip("open_clip")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer()


def test_the_ids_of_open_clip(open_clip: ModuleType, tokenizer: Tokenizer) -> None:
    texts, reference = corpus(), open_clip.SimpleTokenizer()
    assert len(texts) > 600
    for text in texts:
        assert tokenizer.encode(text) == reference.encode(text), repr(text)
    ids = tokenizer(texts)
    assert ids.shape == (len(texts), 77)
    assert ids.dtype == torch.long
    assert torch.equal(ids, open_clip.get_tokenizer("ViT-B-32")(texts))
    assert torch.equal(Tokenizer(16)(texts), open_clip.SimpleTokenizer(context_length=16)(texts))


def test_known_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("a diagram") == [320, 22697]
    assert tokenizer.encode("A photo of  a cat ") == [320, 1125, 539, 320, 2368]
    row = tokenizer("a diagram")
    assert row.shape == (1, 77)
    assert row[0, :5].tolist() == [49406, 320, 22697, 49407, 0]
    assert tokenizer("").tolist() == [[49406, 49407] + [0] * 75]
    assert tokenizer([]).shape == (0, 77)


def test_a_literal_end_marker_ends_nothing(tokenizer: Tokenizer) -> None:
    row = tokenizer("a cat<|endoftext|>and a dog")[0]
    assert (row == 49407).sum() == 1
    assert row.argmax() == (row != 0).sum() - 1
    assert "and a dog" in tokenizer.decode(row.tolist())


def test_long_texts_are_cut_and_keep_their_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a dog runs on grass " * 60)
    row = tokenizer("a dog runs on grass " * 60)[0].tolist()
    assert row == [49406, *ids[:75], 49407]
    exact = tokenizer("dog " * 75)[0].tolist()
    assert exact == [49406, *[1929] * 75, 49407]


def test_long_texts_can_be_refused() -> None:
    strict = Tokenizer(overlong="error")
    assert strict("dog " * 75)[0, -1] == 49407
    with pytest.raises(ValueError, match=r"a text has 78 tokens, the context 77.*dog dog"):
        strict(["a cat", "dog " * 76])


def test_back_to_text(tokenizer: Tokenizer) -> None:
    for text in ("a diagram", "two men , one dog !", "café au lait", "中文 字幕", "😀 smile"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.decode(tokenizer(text)[0].tolist()) == text
    for text in HOSTILE:
        ids = tokenizer.encode(text)
        if 49406 not in ids and 49407 not in ids:
            # Only spaces differ: between pieces that the text has written together.
            assert tokenizer.decode(ids).replace(" ", "") == clean(text).replace(" ", ""), text


def test_cleaning() -> None:
    assert clean("  “Don’t”\t&amp;amp;\n ＦＵＬＬ ﬁne ") == '"don\'t" & full fine'


def test_order_and_instance_play_no_part(tokenizer: Tokenizer) -> None:
    texts = HOSTILE[:60]
    backwards = Tokenizer()(texts[::-1]).flip(0)
    assert torch.equal(backwards, tokenizer(texts))
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert torch.equal(copy(texts), tokenizer(texts))


def test_open_clip_is_not_imported() -> None:
    code = (
        "import sys; from videoclip.tokenizer import Tokenizer; Tokenizer()('a cat');"
        "sys.exit('open_clip' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_merges_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module._tables.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(VideoclipError, match="pip install open_clip_torch"):
        Tokenizer()
    module._tables.cache_clear()


def test_vocabulary(open_clip: ModuleType) -> None:
    ranks, ids = module._tables()
    assert len(ids) == 49408
    assert sorted(ids.values()) == list(range(49408))
    assert ids == open_clip.SimpleTokenizer().encoder
    with gzip.open(open_clip.tokenizer.default_bpe(), "rt", encoding="utf-8") as file:
        second_line = file.read().split("\n")[1]
    assert ranks[tuple(second_line.split())] == 0
