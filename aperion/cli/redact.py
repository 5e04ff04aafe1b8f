"""Filtering a file through the redactor, line by line."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Final

from aperion.errors import ApplicationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aperion.cli.lines import Line, LineFile
    from aperion.cli.progress import Reporter
    from aperion.redaction import Redactor

_KEY_BEGINS = re.compile(rb"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY")
_KEY_ENDS: Final = b"-----END "
_MOST_KEY_LINES: Final = 400
_JSON: Final = (b"{", b"[")


@dataclass(slots=True)
class Redaction:
    """What one run over a file found: counts by type, never a value."""

    # Mutable: all of it, line by line.
    lines: int = 0
    changed: int = 0
    types: Counter[str] = field(default_factory=Counter)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"lines": self.lines, "changed": self.changed, "types": dict(sorted(self.types.items()))}


class Filter:
    """Redacts the lines of a file: JSON objects and arrays by their structure, everything else as text."""

    __slots__ = ("_out", "_redactor", "_reporter", "_source", "found")

    def __init__(self, source: LineFile, redactor: Redactor, reporter: Reporter, out: IO[bytes] | None) -> None:
        self._source = source
        self._redactor = redactor
        self._reporter = reporter
        self._out = out
        self.found = Redaction()

    def run(self) -> Iterator[tuple[int, Counter[str]]]:
        """Redact line by line, and yield the number and the types of each line that had something to hide.

        Raises:
            ApplicationError: where the file breaks off.
        """
        for number, end, parts in self._texts():
            report = Counter[str]()
            clean = self._clean(parts, report)
            self.found.lines += len(parts)
            if self._out is not None:
                self._out.write(clean + end)
            if report:
                self.found.changed += 1
                self.found.types.update(report)
                yield number, report
        if self._out is not None:
            self._out.flush()

    def _clean(self, parts: list[bytes], report: Counter[str]) -> bytes:
        raw = b"\n".join(parts)
        if len(parts) == 1 and raw.lstrip()[:1] in _JSON:
            clean = _as_json(raw, self._redactor, report)
            if clean is not None:
                return clean
            report.clear()
        text = raw.decode("utf-8", "surrogateescape")
        return self._redactor.redact_text(text, report).encode("utf-8", "surrogateescape")

    def _texts(self) -> Iterator[tuple[int, bytes, list[bytes]]]:
        """Yield lines with their numbers and ends; the lines of a private key together."""
        held: list[bytes] = []
        start = 0
        for line, end in self._ended():
            if not held:
                start = line.number
            held.append(line.text)
            opened = _KEY_BEGINS.search(held[0]) is not None and not any(_KEY_ENDS in part for part in held)
            if opened and end and len(held) < _MOST_KEY_LINES:
                continue
            yield start, end, held
            held = []
        if held:
            yield start, b"\n", held

    def _ended(self) -> Iterator[tuple[Line, bytes]]:
        """Yield lines with what ended them; what the reader gives last has no end."""
        last: tuple[Line, ...] = ()
        for batch in self._source.batches():
            yield from self._checked(last, b"\n")
            last = batch.lines
            self._reporter.advance(self.found.lines, batch.position, 1)
        yield from self._checked(last, b"")

    def _checked(self, lines: tuple[Line, ...], end: bytes) -> Iterator[tuple[Line, bytes]]:
        for line in lines:
            if line.problem is not None:
                raise ApplicationError(f"line {line.number} of {self._source.name}: {line.problem}")
            yield line, end


def _as_json(raw: bytes, redactor: Redactor, report: Counter[str]) -> bytes | None:
    """Return a line of JSON redacted, byte for byte the same where nothing is hidden; None where it is none."""
    try:
        value = json.loads(raw, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return None
    clean = redactor.redact(value, report)
    if not report and clean == value:
        return raw
    spaced = b'": ' in raw
    end = raw[len(raw.rstrip()) :]
    text = json.dumps(clean, ensure_ascii=False, separators=(", ", ": ") if spaced else (",", ":"))
    return text.encode("utf-8", "surrogatepass") + end


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse an object that has a name twice: the first value would not be looked at."""
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name stands twice")
    return value
