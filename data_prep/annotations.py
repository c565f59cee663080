"""Annotation file -> records, or an error that names the line.

Official files come as JSON, CSV, tab-separated text and plain lists. Whatever is wrong in one
(truncated, another encoding, a missing column, an entry of another form) is said with file, line
and character, because these files are large and often on one line.
"""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SHOWN = 30
"""So many characters of a faulty line are quoted."""
SPACE = re.compile(r"[ \t\r\n]*")
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


class AnnotationError(ValueError):
    """Annotations that cannot be used; the message says where, and what to do."""


class Item(NamedTuple):
    """One element of a JSON list or object."""

    key: str | None
    """Its name in an object; None in a list."""
    value: Any
    offset: int
    """The character at which the value begins."""


class Line(NamedTuple):
    """One row of a table or a list."""

    number: int
    """From 1, as editors count."""
    cells: tuple[str, ...]
    """The columns that were asked for; of a list, the line itself."""


def read_text(path: Path) -> str:
    """A file as text.

    Raises AnnotationError for an empty file, one that is not UTF-8, and one with control characters
    other than tab and line end.
    """
    data = path.read_bytes()
    if not data.strip():
        raise AnnotationError(f"{path} is empty; get it again")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise AnnotationError(
            f"{path}, line {line}: the byte 0x{data[error.start]:02x} is not UTF-8; get the file "
            f"again, or convert it: iconv -f LATIN1 -t UTF-8 {path.name}"
        ) from error
    if match := CONTROL.search(text):
        line = text.count("\n", 0, match.start()) + 1
        raise fault(path, line, f"the character {match[0]!r} belongs in no text; get it again")
    return text


class JsonFile:
    """A JSON file whose elements know their place; keys that stand twice are found, too."""

    def __init__(self, path: Path) -> None:
        self.path, self.text = path, read_text(path)
        self.decoder = json.JSONDecoder(parse_constant=_no_number)

    def items(self, inside: str | None = None) -> Iterator[Item]:
        """The elements of the list or object, or of the one that the key `inside` holds.

        Raises AnnotationError with the place where the text ends, or stops being JSON.
        """
        if inside is None:
            yield from self._walk(0, whole=True)
            return
        found = [item for item in self._walk(0, whole=True) if item.key == inside]
        if not found:
            raise AnnotationError(f"{self.path} has no {inside!r}; get it again")
        for item in found:
            yield from self._walk(item.offset, whole=False)

    def fault(self, offset: int, message: str) -> AnnotationError:
        """An error that says where: line and character, counted from 1."""
        line = self.text.count("\n", 0, offset) + 1
        character = offset - self.text.rfind("\n", 0, offset)
        return AnnotationError(f"{self.path}, line {line}, character {character}: {message}")

    def text_of(self, item: Item, name: str | None = None) -> str:
        """A text that is not blank: the value, or its member `name`; else AnnotationError."""
        value = item.value
        if name is not None:
            value = self.member(item, name)
        if isinstance(value, str) and value.strip():
            return value.strip()
        what = "the value" if name is None else repr(name)
        raise self.fault(item.offset, f"{what} is {_quoted(value)}; expected text")

    def texts_of(self, item: Item, name: str | None = None) -> tuple[str, ...]:
        """A list of texts that are not blank: the value, or its member `name`."""
        value = item.value if name is None else self.member(item, name)
        what = "the value" if name is None else repr(name)
        if not isinstance(value, list) or not value:
            raise self.fault(item.offset, f"{what} is {_quoted(value)}; expected a list of texts")
        for text in value:
            if not isinstance(text, str) or not text.strip():
                raise self.fault(item.offset, f"{what} holds {_quoted(text)}; expected text")
        return tuple(text.strip() for text in value)

    def member(self, item: Item, name: str) -> Any:
        """A member of an object; AnnotationError where it is none, or has no such member."""
        if not isinstance(item.value, dict):
            raise self.fault(item.offset, f"{_quoted(item.value)}; expected an object")
        if name not in item.value:
            known = ", ".join(item.value) or "nothing"
            raise self.fault(item.offset, f"the entry has no {name!r}; it has {known}")
        return item.value[name]

    def _walk(self, start: int, whole: bool) -> Iterator[Item]:
        place = self._skip(start)
        opening = self.text[place : place + 1]
        if opening not in ("[", "{"):
            raise self.fault(place, f"{opening!r}; expected a list or an object")
        closing = {"[": "]", "{": "}"}[opening]
        place = self._skip(place + 1)
        while (more := self.text[place : place + 1]) != closing:
            key = None
            if opening == "{":
                key, place = self._value(place)
                if not isinstance(key, str):
                    raise self.fault(place, f"the name {_quoted(key)}; expected text")
                place = self._expect(place, ":")
            offset = place
            value, place = self._value(place)
            yield Item(key, value, offset)
            place = self._skip(place)
            more = self.text[place : place + 1]
            if more != closing:
                place = self._expect(place, ",", closing)
        place = self._skip(place + 1)
        if whole and place < len(self.text):
            raise self.fault(place, "there is more after the end; get the file again")

    def _value(self, place: int) -> tuple[Any, int]:
        try:
            return self.decoder.raw_decode(self.text, place)
        except json.JSONDecodeError as error:
            what = "the file ends too early" if error.pos >= len(self.text) else error.msg
            if error.msg.startswith("Unterminated string"):
                what = "a text that begins here has no end"
            raise self.fault(error.pos, f"{what}; it is damaged, get it again") from error
        except (RecursionError, ValueError) as error:  # nested too deeply, a number too long
            raise self.fault(place, f"{error}; it is damaged, get it again") from error

    def _skip(self, place: int) -> int:
        match = SPACE.match(self.text, place)
        assert match
        return match.end()

    def _expect(self, place: int, *wanted: str) -> int:
        place = self._skip(place)
        found = self.text[place : place + 1]
        if found == wanted[0]:
            return self._skip(place + 1)
        known = " or ".join(repr(sign) for sign in wanted)
        what = f"{found!r} where {known} belongs" if found else "the file ends too early"
        raise self.fault(place, f"{what}; it is damaged, get it again")


def read_table(path: Path, columns: Sequence[str], *, delimiter: str = ",") -> list[Line]:
    """The named columns of a CSV file with a header, quotes as CSV has them.

    Raises AnnotationError for a column that is missing, a row of another width, a quote without
    an end.
    """
    rows = table_rows(path, delimiter=delimiter)
    _, header = next(rows)
    missing = [column for column in columns if column not in header]
    if missing:
        raise AnnotationError(
            f"{path}, line 1: there is no column {missing[0]!r}; there are {', '.join(header)}"
        )
    places = [header.index(column) for column in columns]
    return [Line(number, tuple(cells[place] for place in places)) for number, cells in rows]


def table_rows(path: Path, *, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of every row, the header first; all of one width."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    width = None
    begins = 1
    try:
        for cells in reader:
            if cells:
                cells = [cell.strip() for cell in cells]
                width = width or len(cells)
                if len(cells) != width:
                    raise AnnotationError(
                        f"{path}, line {begins}: {len(cells)} columns, expected {width}: "
                        f"{_quoted(delimiter.join(cells))}"
                    )
                yield begins, cells
            begins = reader.line_num + 1
    except csv.Error as error:
        raise AnnotationError(f"{path}, line {begins}: {error}; get the file again") from error


def read_lines(path: Path) -> list[Line]:
    """The lines of a text file that are not blank, without the space around them."""
    lines = enumerate(read_text(path).split("\n"), start=1)
    return [Line(number, (line.strip(),)) for number, line in lines if line.strip()]


def fault(path: Path, line: int, message: str) -> AnnotationError:
    """An error that names file and line."""
    return AnnotationError(f"{path}, line {line}: {message}")


def place(path: Path, line: int) -> str:
    """File and line as `Entry.where` has them."""
    return f"{path.name}, line {line}"


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON")


def _quoted(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "...")
