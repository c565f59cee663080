"""Caption -> token ids: CLIP's byte-pair encoding, to the byte, without network.

The merges and the regular expression engine come from libraries, the behavior is OpenAI's: the
class in transformers leaves out the cleaning and differs on every curly quote.
"""

import functools
import gzip
import html
import importlib.util
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import ftfy
import regex
import torch
from torch import Tensor

from videoclip.errors import VideoclipError

MERGES = 49152 - 256 - 2
"""So many merges of the file are CLIP's (Radford et al. 2021, section 2.4)."""
VOCABULARY = 2 * 256 + MERGES + 2
"""The bytes, the bytes that end a word, the merges, start and end."""
START, END = "<start_of_text>", "<end_of_text>"
PIECES = regex.compile(
    r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)


class Tokenizer:
    """Texts -> ids (N, context_length): start, pieces, end, zeros.

    A text that is too long is cut, the end token stays last; `overlong="error"` refuses it, as
    OpenAI's tokenizer does. A literal "<|endoftext|>" in a text is ordinary text, as in open_clip
    (OpenAI would end the caption there).
    """

    def __init__(
        self, context_length: int = 77, *, overlong: Literal["cut", "error"] = "cut"
    ) -> None:
        self.context_length, self.overlong = context_length, overlong
        self.ranks, self.ids = _tables()
        self.start, self.end = self.ids[START], self.ids[END]
        self._pieces: dict[str, list[int]] = {START: [self.start], END: [self.end]}

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """One text or N texts -> int64 (N, context_length).

        Raises ValueError for a text that is too long where that is asked for.
        """
        texts = [texts] if isinstance(texts, str) else texts
        rows = torch.zeros(len(texts), self.context_length, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            ids = [self.start, *self.encode(text), self.end]
            if len(ids) > self.context_length:
                if self.overlong == "error":
                    raise ValueError(
                        f"a text has {len(ids)} tokens, the context {self.context_length}; "
                        f"shorten it or let it be cut: {text[:80]!r}"
                    )
                ids = [*ids[: self.context_length - 1], self.end]
            row[: len(ids)] = torch.tensor(ids)
        return rows

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without start and end."""
        return [i for piece in PIECES.findall(clean(text)) for i in self._encode_piece(piece)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids up to the end token, as CLIP sees it: cleaned, words apart."""
        symbols = _symbols()
        numbers = [int(i) for i in ids]
        numbers = numbers[: numbers.index(self.end)] if self.end in numbers else numbers
        text = "".join(symbols[i] for i in numbers if i != self.start)
        back = {symbol: byte for byte, symbol in _byte_symbols().items()}
        # "</w>" ends a word; it holds no byte of its own.
        words = text.replace("</w>", " ").strip().split(" ")
        raw = b" ".join(bytes(back[symbol] for symbol in word) for word in words)
        return raw.decode("utf-8", errors="replace")

    def _encode_piece(self, piece: str) -> list[int]:
        if piece not in self._pieces:
            known = _byte_symbols()
            symbols = [known[byte] for byte in piece.encode()]
            symbols[-1] += "</w>"
            self._pieces[piece] = [self.ids[s] for s in _merge(symbols, self.ranks)]
        return self._pieces[piece]


def clean(text: str) -> str:
    """Broken encodings mended, HTML unescaped twice, white space collapsed, lower case."""
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return regex.sub(r"\s+", " ", text).strip().lower()


def _merge(symbols: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Joins the neighbors that were merged earliest in training until no pair is known."""
    while len(symbols) > 1:
        pairs = list(itertools.pairwise(symbols))
        first = min(pairs, key=lambda pair: ranks.get(pair, MERGES))
        if first not in ranks:
            break
        joined, place = [], 0
        while place < len(symbols):
            if tuple(symbols[place : place + 2]) == first:
                joined.append(first[0] + first[1])
                place += 2
            else:
                joined.append(symbols[place])
                place += 1
        symbols = joined
    return symbols


@functools.cache
def _byte_symbols() -> dict[int, str]:
    """A printable character for every byte, in the order of GPT-2's and CLIP's vocabularies."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = {byte: chr(byte) for byte in printable}
    return symbols | {byte: chr(256 + place) for place, byte in enumerate(others)}


@functools.cache
def _tables() -> tuple[dict[tuple[str, str], int], dict[str, int]]:
    """The rank of every merge, and the id of every symbol."""
    # find_spec does not import open_clip, which would take seconds.
    found = importlib.util.find_spec("open_clip")
    folder = Path(found.origin).parent if found and found.origin else Path()
    path = folder / "bpe_simple_vocab_16e6.txt.gz"
    if not path.is_file():
        raise VideoclipError(
            "CLIP's merges are missing; install the package that ships them: "
            "pip install open_clip_torch"
        )
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : MERGES + 1]
    merges = [tuple(line.split()) for line in lines]
    letters = list(_byte_symbols().values())
    symbols = [*letters, *(letter + "</w>" for letter in letters)]
    symbols += ["".join(merge) for merge in merges] + [START, END]
    ranks = {(pair[0], pair[1]): rank for rank, pair in enumerate(merges)}
    return ranks, {symbol: number for number, symbol in enumerate(symbols)}


@functools.cache
def _symbols() -> dict[int, str]:
    return {number: symbol for symbol, number in _tables()[1].items()}
