"""Hiding what nobody should read in lines of text and JSON, on their way from a file to standard output."""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from typing import IO, TYPE_CHECKING, Any

from aperion.cli.lines import MAX_LINE_BYTES
from aperion.errors import ApplicationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aperion.cli.lines import LineFile
    from aperion.cli.progress import Reporter
    from aperion.redaction import Redactor

_UNREAD = "UNREAD"  # the type of what is left out without having been read: too long, or nested too deep
_BYTES = "utf-8", "surrogateescape"
_UTF_16 = re.compile(rb"\xff\xfe.\0|\xfe\xff\0", re.DOTALL)

# What opens a private key and, in a group, what closes it.
_EDGE = re.compile(
    r"-{4,5} ?(?:BEGIN [\w ]{0,40}?(?:PRIVATE KEY|Static key)|(END) )|Private-Lines: {0,4}\d|(Private-MAC:)"
)
_OPENING = "-----BEGIN PRIVATE KEY-----\n"
_MATERIAL = re.compile(r"[A-Za-z0-9+/]{16}={0,2}\s*\Z")
_MOST_LINES = 200
_MOST_TEXT = 32 * 1024  # half of what a redactor reads of one text: room for what hiding adds

_DOCUMENT = re.compile(r"([\ufeff\s]*)([{\[].*[}\]])(\s*)", re.DOTALL)
_MARKS = str.maketrans("01", "-#")
_LONGEST_INT = 19  # characters that always fit into 64 bits
_SURROGATE, _NO_BYTE = re.compile("[\ud800-\udfff]"), re.compile("[\ud800-\udc7f\udd00-\udfff]")


@dataclass(frozen=True, slots=True)
class _Passage:
    """One line, or the lines of one private key, and what became of them; ``number`` is that of the first."""

    number: int
    lines: tuple[str, ...]
    clean: str
    found: Counter[str]


@dataclass(slots=True)
class Redaction:
    """What one run over a file found: counts by type, never a value."""

    # Mutable: all of it, line by line.
    lines: int = 0
    changed: int = 0
    types: Counter[str] = field(default_factory=Counter)

    def add(self, passage: _Passage) -> None:
        """Count what became of some lines."""
        self.lines += len(passage.lines)
        if passage.found:
            kept = frozenset(passage.clean.split("\n"))
            self.changed += sum(line.removesuffix("\n") not in kept for line in passage.lines)
            self.types.update(passage.found)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"lines": self.lines, "changed": self.changed, "types": dict(sorted(self.types.items()))}


class Filter:
    """Redacts the lines of a file: JSON objects and arrays by their structure, everything else as text."""

    __slots__ = ("_lines", "_out", "_reporter", "_source", "found")

    def __init__(self, source: LineFile, redactor: Redactor, reporter: Reporter, out: IO[bytes] | None) -> None:
        self._source = source
        self._lines = _Lines(redactor)
        self._reporter = reporter
        self._out = out
        self.found = Redaction()

    def run(self) -> Iterator[tuple[int, Counter[str]]]:
        """Redact line by line, and yield the number and the types of each line that had something to hide.

        Raises:
            ApplicationError: where the file breaks off, after all that was read before.
        """
        for passage in self._passages():
            self.found.add(passage)
            if self._out is not None:
                self._out.write(passage.clean.encode(*_BYTES))
                if self._source.size is None:  # what comes through a pipe is waited for
                    self._out.flush()
            if passage.found:
                yield passage.number, passage.found
            self._reporter.advance(self.found.lines, self._source.position(), 1)
        if self._out is not None:
            self._out.flush()

    def _passages(self) -> Iterator[_Passage]:
        problem: ApplicationError | None = None
        try:
            for number, line in enumerate(_read(self._source), start=1):
                yield from self._lines.feed(number, line.decode(*_BYTES))
        except ApplicationError as error:
            problem = error
        yield from self._lines.end()
        if problem is not None:
            raise problem


class _Lines:
    """Redacts line by line, and holds back the lines of a private key, which only shows as a whole."""

    # Mutable: the lines held back, the number of the first, and whether they go on with a key cut in two.
    __slots__ = ("_cut", "_first", "_held", "_redactor")

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._held: list[str] = []
        self._first = 0
        self._cut = False

    def feed(self, number: int, line: str) -> Iterator[_Passage]:
        """Return the passages that a line completes."""
        document = _document(line)
        if document is None and (self._held or self._cut or _opens(line)):
            yield from self._hold(number, line)
            return
        yield from self.end()
        yield self._text(number, line) if document is None else self._json(number, line, *document)

    def end(self) -> Iterator[_Passage]:
        """Return what was held back."""
        if self._held:
            yield self._text(self._first, *self._held, opening=_OPENING if self._cut else "")
        self._held, self._cut = [], False

    def _hold(self, number: int, line: str) -> Iterator[_Passage]:
        if self._held and (len(self._held) == _MOST_LINES or sum(map(len, self._held)) + len(line) > _MOST_TEXT):
            cut = _MATERIAL.search(self._held[-1]) is not None
            yield from self.end()
            self._cut = cut
            yield from self.feed(number, line)
            return
        self._first = self._first if self._held else number
        self._held.append(line)
        if _opens(line) is False:
            yield from self.end()

    def _text(self, number: int, *lines: str, opening: str = "") -> _Passage:
        found: Counter[str] = Counter()
        text = "".join(lines)
        body = text.rstrip("\r\n")
        clean = self._redactor.redact_text(opening + body, found).removeprefix(opening) + text[len(body) :]
        return _Passage(number, lines, clean, _told(found, changed=clean != text))

    def _json(self, number: int, line: str, head: str, value: object, tail: str) -> _Passage:
        found: Counter[str] = Counter()
        copy = self._redactor.redact(value, found)
        if copy == value:  # spaces, escapes and the spelling of numbers stay as they were
            return _Passage(number, (line,), line, Counter())
        text = _written(copy, (", ", ": ") if '": ' in line else (",", ":"))
        clean = f"{head}{_escaped(text, line)}{tail}"
        return _Passage(number, (line,), clean, _told(found, changed=True))


def _read(source: LineFile) -> Iterator[bytes]:
    first = True
    try:
        while line := source.readline(MAX_LINE_BYTES + 1):
            if first and _UTF_16.match(line):
                raise ApplicationError(f"{source.name} is UTF-16, in which nothing is found; convert it to UTF-8")
            rest, first = line, False
            while len(line) > MAX_LINE_BYTES and rest and not rest.endswith(b"\n"):  # cut off by the redactor anyway
                rest = source.readline(MAX_LINE_BYTES)
            # The dot keeps the beginning of a document from being taken for all of it.
            yield line if rest is line else line + b"." + rest[len(rest.rstrip(b"\r\n")) :]
    except (OSError, EOFError, zlib.error) as error:
        raise ApplicationError(f"{source.name} breaks off or is damaged ({error}); what comes after is lost") from error


def _opens(line: str) -> bool | None:
    """Return whether a private key opens in a line and stays open, False where one closes, None without either."""
    edges = list(_EDGE.finditer(line)) if "--" in line or "Private-" in line else []
    return edges[-1].lastindex is None if edges else None


def _told(found: Counter[str], *, changed: bool) -> Counter[str]:
    return (found or Counter({_UNREAD: 1})) if changed else Counter()


def _document(line: str) -> tuple[str, object, str] | None:
    """Return the JSON object or array of a line, and what stands around it."""
    match = _DOCUMENT.fullmatch(line)
    try:
        return None if match is None else (match[1], _DECODER.decode(match[2]), match[3])
    except (ValueError, ArithmeticError, RecursionError):
        return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # A name that comes twice must not hide its first value from the redactor; marks do not change what a name says.
    entries: dict[str, Any] = {}
    for name, value in pairs:
        free, number = name, len(entries)
        while free in entries:
            free, number = f"{name} {f'{number:b}'.translate(_MARKS)}", number + 1
        entries[free] = value
    return entries


def _whole(digits: str) -> int | Decimal:
    return int(digits) if len(digits) <= _LONGEST_INT else Decimal(digits)


# Decimals keep every digit, which floats do not; orjson would make floats of long integers, too.
_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=Decimal, parse_int=_whole, parse_constant=float, strict=False
)
_ENCODE = json.JSONEncoder(ensure_ascii=False).encode


def _written(value: object, separators: tuple[str, str]) -> str:
    comma, colon = separators
    if isinstance(value, dict):
        entries = (f"{_ENCODE(name)}{colon}{_written(entry, separators)}" for name, entry in value.items())
        return f"{{{comma.join(entries)}}}"
    if isinstance(value, list):
        return f"[{comma.join(_written(entry, separators) for entry in value)}]"
    return str(value) if isinstance(value, Decimal) else _ENCODE(value)


def _escaped(text: str, line: str) -> str:
    # A surrogate stands for a byte that is no UTF-8, or comes from an escape and must become one again.
    lone = _NO_BYTE if _SURROGATE.search(line) else _SURROGATE
    return lone.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
