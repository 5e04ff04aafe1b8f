"""Verification: is the chain whole, and if not, where is it broken?

A chain without signatures shows every change by somebody who does not compute the hashes anew: faults of
disks, hands, editors. Whoever can write the files and knows this format can compute them anew, and cut
the end, and nothing shows. Signed checkpoints show the first, checkpoints that are kept elsewhere both.
"""

from __future__ import annotations

import io
import os
import re
from collections import deque
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aperion.audit.chain import START, Link, Sealed, hashed, opened
from aperion.audit.compression import DamagedError, unpacked, unpacking
from aperion.audit.index import load
from aperion.audit.proofs import Proofs
from aperion.audit.reading import oldest_first
from aperion.audit.record import parsed
from aperion.audit.segments import segments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import BinaryIO

    from aperion.audit.segments import Segment
    from aperion.audit.signing import VerifyKey

    Progress = Callable[[int, int], object]

_LONGEST: Final = 64 << 20
_EVERY: Final = 1 << 20
"""Bytes between two reports of progress."""
_OWN: Final = re.compile(rb'\{"time":\d+,"kind":"(segment|log|checkpoint|key_rotated)",')
_REMEMBERED: Final = 10_000
"""Links behind the end of a file whose device failed; what it took last was written anew."""


class ProblemKind(Enum):
    """What is wrong."""

    DAMAGED = "damaged"
    """A line that is no record."""
    ALTERED = "altered"
    """A record whose hash is not that of its bytes."""
    MISSING = "missing"
    """Records that are not there."""
    OUT_OF_PLACE = "out_of_place"
    """A record that stands there twice, or elsewhere than it belongs."""
    MISSING_SEGMENT = "missing_segment"
    """A file that is not there, or not where it belongs."""
    FORGED = "forged"
    """A checkpoint that is not signed by whom it should be, or that says otherwise."""
    UNSIGNED = "unsigned"
    """More records without a checkpoint than there can be."""
    TRUNCATED = "truncated"
    """The log ends before a checkpoint that is kept elsewhere."""
    ROLLED_BACK = "rolled_back"
    """The log has another record where a checkpoint that is kept elsewhere knows one."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and where.

    Args:
        kind: what.
        segment: the name of the file.
        line: from 1 on; 0 where it is about the file as a whole.
        offset: of the line, in bytes, as if the file were not compressed.
        seq: number of the record, as far as it can be told.
        text: for people.
    """

    kind: ProblemKind
    segment: str
    line: int
    offset: int
    seq: int | None
    text: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found.

    Args:
        problems: in the order in which they stand in the log.
        records: that were looked at.
        segments: names of the files.
        checkpoints: how many there are.
        first: the record before the first one there is.
        last: the last one.
        unsigned_tail: records after the last checkpoint with a valid signature; None without keys.
        unwitnessed_tail: records after the last checkpoint that is kept elsewhere; None without any.
    """

    problems: tuple[Problem, ...]
    records: int
    segments: tuple[str, ...]
    checkpoints: int
    first: Link
    last: Link
    unsigned_tail: int | None
    unwitnessed_tail: int | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(
    log: str | os.PathLike[str],
    *,
    keys: Sequence[VerifyKey] = (),
    checkpoints: Sequence[str | os.PathLike[str] | Mapping[str, Any]] = (),
    progress: Progress | None = None,
) -> Verification:
    """Follow the chain through all files of a log; in constant memory, while it is written too.

    Args:
        log: the path of the live file.
        keys: public keys that checkpoints may be signed with; without any, signatures are not looked at.
        checkpoints: copies kept elsewhere, or files of them.
        progress: called with bytes done and bytes there are.

    Raises:
        OSError: when a file cannot be read.
        ConfigurationError: for keys without the package for them, and for copies that are none.
    """
    path, check = Path(log), _Check(Proofs(keys, checkpoints))
    total, done = sum(map(_size, segments(path))), 0
    for segment, file in oldest_first(path):
        size = os.fstat(file.fileno()).st_size
        with file:
            for at in check.file(segment, _lines(segment, file, size), file):
                if progress is not None:
                    progress(min(done + at, total), total)
        done += size
    if progress is not None:
        progress(total, total)
    return check.result()


def _lines(segment: Segment, file: BinaryIO, size: int) -> Iterator[bytes]:
    """Yield the lines of a file; an empty one stands for what cannot be unpacked."""
    index = load(segment.path, size) if segment.compression else None
    if index is None or not index.covers(size):
        lines = unpacking(file, segment.compression)
        try:
            while line := lines.readline(_LONGEST):
                yield line
        except DamagedError:
            yield b""
        return
    for block in index.blocks:  # each can be unpacked alone
        try:
            content = unpacked(os.pread(file.fileno(), block.size, block.offset), segment.compression)
        except DamagedError:
            content = b""
        file.seek(block.offset + block.size)  # how far this is
        yield from io.BytesIO(content) if content else (b"",)


def _size(segment: Segment) -> int:
    try:
        return segment.path.stat().st_size
    except FileNotFoundError:  # it was compressed, or removed, just now
        return 0


class _Check:
    """Follows a chain, and notes where it cannot."""

    # Mutable: all of it, line by line.

    def __init__(self, proofs: Proofs) -> None:
        self._proofs = proofs
        self._problems: list[Problem] = []
        self._names: list[str] = []
        self._records = self._checkpoints = 0
        self._first: Link | None = None
        self._before = START  # the record that the next should follow
        self._stated: tuple[str, ...] = ()  # the hash that a wrong line before states, and the one that it should
        self._damaged = 0  # lines since the last record
        self._recent: deque[Link] = deque(maxlen=_REMEMBERED)
        self._poisoned: str | None = None  # the file before, if the one now goes on in the middle of it
        self._log: object = None
        self._at = ("", 0, 0)

    def file(self, segment: Segment, lines: Iterable[bytes], raw: BinaryIO) -> Iterator[int]:
        """Follow the chain through one file; yield bytes done now and then."""
        name, offset, reported = segment.path.name, 0, 0
        self._names.append(name)
        for count, line in enumerate(lines, start=1):
            self._at = (name, count, offset)
            if segment.number is None and not line.endswith(b"\n") and len(line) < _LONGEST:
                break  # it is being written
            self._line(line, segment.number if count == 1 else None, is_first=count == 1)
            offset += len(line)
            if offset - reported >= _EVERY:
                reported = offset
                yield raw.tell()

    def _line(self, line: bytes, number: int | None, *, is_first: bool) -> None:
        record = opened(line)
        if record is None:
            self._damaged += 1
            self._found(ProblemKind.DAMAGED, None, "this line is no record" if line else "this cannot be unpacked")
            return
        self._records += 1
        own = _OWN.match(record.body)
        fields = _fields(record) if own else {}
        if is_first:
            self._begin(record, fields, number)
        before = self._before
        if self._follows(record, is_first=is_first):
            self._recent.append(record.link)
            if own or self._poisoned is not None:
                self._look_at(fields, record, before)
            self._overdue(record.link)
        self._damaged = 0
        if (text := self._proofs.compare(record.link)) is not None:
            self._found(ProblemKind.ROLLED_BACK, record.link.seq, text)

    # The chain

    def _follows(self, record: Sealed, *, is_first: bool) -> bool:
        """Go on with a record, if it can be; say so where it cannot follow the one before."""
        before, link = self._before, record.link
        stated, self._stated = self._stated, ()
        if record.follows(before.hash):
            self._before = link
            return True
        self._stated = (link.hash, hashed(before.hash, record.signed))
        if any(map(record.follows, stated)):  # it follows a line that was found to be wrong
            if link.seq > before.seq:
                self._before = link
            return link.seq > before.seq
        expected = before.seq + 1
        if link.seq < expected:
            self._found(ProblemKind.OUT_OF_PLACE, link.seq, f"record {link.seq} stands where {expected} should")
            return False
        self._before = link
        if link.seq == expected:
            self._found(ProblemKind.ALTERED, link.seq, "its hash is not that of its bytes after the record before")
        elif link.seq - expected != self._damaged:  # otherwise the damaged lines are those
            kind = ProblemKind.MISSING_SEGMENT if is_first else ProblemKind.MISSING
            self._found(kind, expected, f"the records {expected} to {link.seq - 1} are missing before it")
        return True

    def _begin(self, record: Sealed, fields: Mapping[str, Any], number: int | None) -> None:
        """Look at the line that begins a file."""
        previous = fields.get("previous")
        if fields.get("kind") != "segment" or not isinstance(previous, str):
            self._found(ProblemKind.DAMAGED, record.link.seq, "the line that begins a file is missing")
            if self._first is None:
                self._first = self._before = Link(max(record.link.seq - 1, 0), self._before.hash)
            return
        if number is not None and fields.get("segment") != number:
            text = f"this file was number {fields.get('segment')} of its log"
            self._found(ProblemKind.MISSING_SEGMENT, record.link.seq, text)
        if self._log is not None and fields.get("log") != self._log:
            self._found(ProblemKind.MISSING_SEGMENT, record.link.seq, "this file belongs to another log")
        self._log = fields.get("log")
        if self._first is None:
            self._first = self._before = Link(record.link.seq - 1, previous)
            if self._first.seq:
                self._proofs.expect_pruned(self._first)
        elif previous != self._before.hash:
            self._go_back(previous)

    def _go_back(self, previous: str) -> None:
        """Find where the file before ended, if its device failed and its last records were written anew."""
        found = next((link for link in reversed(self._recent) if link.hash == previous), None)
        if found is not None and len(self._names) > 1:
            self._before, self._poisoned = found, self._names[-2]

    # Records about the log

    def _look_at(self, fields: Mapping[str, Any], record: Sealed, before: Link) -> None:
        kind, seq = fields.get("kind"), record.link.seq
        detail = fields.get("detail") if kind == "log" else None
        poisoned = detail.get("poisoned") if isinstance(detail, dict) else None
        if isinstance(detail, dict) and "pruned" in detail:
            self._proofs.pruned(detail)
        if self._poisoned is not None and kind != "segment":
            if not isinstance(poisoned, dict) or poisoned.get("segment") != self._poisoned:
                text = f"it follows a record in the middle of {self._poisoned}, and nothing says why"
                self._found(ProblemKind.OUT_OF_PLACE, seq, text)
            self._poisoned = None
        if kind == "checkpoint":
            self._checkpoints += 1
            self._forged(self._proofs.checkpoint(fields, record.link, before), seq)
        elif kind == "key_rotated":
            self._forged(self._proofs.rotation(fields), seq)

    def _forged(self, text: str | None, seq: int) -> None:
        if text is not None:
            self._found(ProblemKind.FORGED, seq, text)

    def _overdue(self, link: Link) -> None:
        if (text := self._proofs.overdue(link)) is not None:
            self._found(ProblemKind.UNSIGNED, link.seq, text)

    # The end

    def _found(self, kind: ProblemKind, seq: int | None, text: str) -> None:
        self._problems.append(Problem(kind, *self._at, seq, text))

    def result(self) -> Verification:
        """Return what was found."""
        first, last = self._first or START, self._before
        if (text := self._proofs.not_pruned()) is not None:
            self._problems.append(Problem(ProblemKind.MISSING_SEGMENT, self._names[0], 0, 0, first.seq, text))
        if (text := self._proofs.truncated(last)) is not None:
            self._found(ProblemKind.TRUNCATED, last.seq, text)
        unsigned = self._proofs.unsigned_tail(last)
        names = tuple(self._names)
        known = self._proofs.known
        unwitnessed = max(0, last.seq - known) if known is not None else None
        return Verification(
            *(tuple(self._problems), self._records, names, self._checkpoints, first, last, unsigned, unwitnessed)
        )


def _fields(record: Sealed) -> dict[str, Any]:
    try:
        fields = parsed(record.body)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}
