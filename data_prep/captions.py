"""Captions of several clips -> those that a query cannot tell apart, and those seen in training.

Where two test clips have the same caption, one of the two queries must fail; MSR-VTT's 1k-A has 995
different sentences for 1,000 clips. Reported, never changed: the benchmark is what it is.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from data_prep.entries import Entry

WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
EMPTY = {"a", "an", "the", "is", "are", "was", "were", "be", "being"}
"""Words without which two captions still say the same."""
Words = tuple[str, ...]
LEAST, MOST = 5, 32
"""Captions of so many telling words are nearly the same where one word differs; of a paragraph
only the same words are looked for."""


class Alike(NamedTuple):
    """What is said twice. Pairs are of clips, each as two ids with their captions."""

    distinct: int
    """Different captions, letter by letter, of the split that is tested."""
    total: int
    same: list[tuple[str, str, str]]
    """For every tested caption that a tested clip before has too, but for case, punctuation and
    articles: that clip, its own clip, the caption."""
    near: list[tuple[str, str, str, str]]
    """Two tested clips and their captions, which differ in one word."""
    trained: list[tuple[str, str, str]]
    """Every tested caption that another split has too: its clip, the other's clip, the caption."""


def telling_words(caption: str) -> Words:
    """The words of a caption, lower case, without those that say nothing."""
    words = WORD.findall(caption.lower().replace("\u2019", "'"))
    return tuple(word for word in words if word not in EMPTY) or tuple(words)


def alike(entries: Sequence[Entry], split: str | None = "test") -> Alike:
    """Captions that stand at several clips of a split, nearly or fully, and in other splits."""
    tested = [entry for entry in entries if entry.split == split]
    others = [entry for entry in entries if entry.split != split]
    by_words: dict[Words, list[tuple[str, str]]] = defaultdict(list)
    for words, video, caption in _by_words(tested):
        by_words[words].append((video, caption))
    same, trained = [], []
    for found in by_words.values():
        first = found[0][0]
        same += [(first, video, caption) for video, caption in found if video != first]
    seen: dict[Words, str] = {}
    for words, video, _ in _by_words(others):
        if words in by_words:
            seen.setdefault(words, video)
    for words, other in seen.items():
        trained += [(video, other, caption) for video, caption in by_words[words]]
    captions = [caption for entry in tested for caption in entry.captions]
    return Alike(len(set(captions)), len(captions), same, list(_near(by_words)), trained)


def _by_words(entries: Iterable[Entry]) -> Iterable[tuple[Words, str, str]]:
    for entry in entries:
        for caption in entry.captions:
            yield telling_words(caption), entry.video_id, caption


def _near(
    by_words: dict[Words, list[tuple[str, str]]],
) -> Iterable[tuple[str, str, str, str]]:
    """Pairs of captions of different clips that differ in one word, which may be missing."""
    holes: dict[Words, list[Words]] = defaultdict(list)
    for words in by_words:
        if LEAST <= len(words) <= MOST:
            for place in range(len(words)):
                holes[(*words[:place], *words[place + 1 :])].append(words)
    seen = set()
    for rest, found in holes.items():
        # A caption that is another one without a word is the rest itself.
        group = dict.fromkeys([*found, *([rest] if rest in by_words else [])])
        first, *more = group
        for other in more:
            pair = (first, other) if first < other else (other, first)
            if pair in seen:
                continue
            seen.add(pair)
            (video, caption), (second, text) = by_words[first][0], by_words[other][0]
            if video != second:
                yield video, second, caption, text
