"""Following a chain line by line: fast where it is whole, and to the point where it is not."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from aperion.audit import blocks
from aperion.audit.chain import START, Link, hashed, opened
from aperion.audit.compression import lines
from aperion.audit.findings import Problem, ProblemKind, Verification
from aperion.audit.proofs import Removals
from aperion.audit.record import parsed
from aperion.audit.segments import plain_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from aperion.audit.chain import Sealed
    from aperion.audit.opening import Behind
    from aperion.audit.proofs import Proofs
    from aperion.audit.segments import Segment

_OWN: Final = re.compile(rb'"time":\d+,"kind":"(segment|log|checkpoint|key_rotated)",')
"""Of records that say something about the log."""
_RECENT: Final = 16
"""Blocks, more than a batch of the writer."""
_SHORTEST: Final = 75
"""Bytes that each record has more of."""


class Check:
    """Follows a chain, and notes where it cannot."""

    # Mutable: all of it, line by line.

    def __init__(self, proofs: Proofs) -> None:
        self._proofs = proofs
        self._removals = Removals()
        self._problems: list[Problem] = []
        self._gaps: list[tuple[Problem, Link]] = []  # that a later record may explain
        self._names: list[str] = []
        self._records = self._checkpoints = 0
        self._first: Link | None = None
        self._before = START  # the record that the next should follow
        self._stated: tuple[str, ...] = ()  # the hash that a wrong line before states, and the one that it should
        self._damaged = 0  # lines since the last record
        self._left: str | None = None  # the file before, if records in it were written anew
        self._begun_after = START  # the record before this file
        self._anew: tuple[Link, int] | None = None  # the end of a file that was left, and the record that says so
        self._log: object = None
        self._at = ("", 0, 0)
        self._recent = _Recent()
        self._twice: tuple[int, int] | None = None  # the problem, and the first number

    def file(self, segment: Segment, fd: int, size: int, behind: Behind) -> Iterator[int]:
        """Follow the chain through one file; yield bytes done now and then."""
        self._names.append(segment.path.name)
        count = offset = 0
        for content in lines(fd, size, segment.compression):
            found, at, begin = _lines(content, segment), 0, offset
            self._recent.add(content)
            while True:
                run = self._run(found, at, behind) if count or at else 0
                begin += sum(map(len, found[at : at + run])) + run
                at += run
                if at == len(found):
                    break
                self._at = (segment.path.name, count + at + 1, begin)
                if not self._line(found, at, None if count or at else segment, behind):
                    return
                begin += len(found[at]) + 1
                at += 1
            count += len(found)
            offset += len(content)
            self._at = (segment.path.name, count, begin - len(found[-1]) - 1 if found else begin)
            yield 0 if segment.compression else offset

    def _run(self, found: list[bytes], at: int, behind: Behind) -> int:
        """Go on with lines as long as nothing is to be said of one, and return how many those were."""
        before = self._before
        most = min(behind.seq, self._proofs.silent_until(before.seq)) - before.seq
        if self._damaged or self._stated or self._left is not None or most <= 0:
            return 0
        seq, hashed_before, own = before.seq, before.hash.encode(), _OWN.match
        for line in found[at : int(min(at + most, len(found)))]:
            signed, digest = line[:-75], line[-66:-2]
            head = b'{"v":1,"seq":%d,' % (seq + 1)
            if (
                sha256(hashed_before + signed).hexdigest().encode() != digest
                or not signed.startswith(head)
                or own(signed, len(head))
                or line[-75:-66] != b',"hash":"'
                or line[-2:] != b'"}'
            ):
                break
            hashed_before = digest
            seq += 1
        self._records += seq - before.seq
        if seq > before.seq:
            self._before = Link(seq, hashed_before.decode())
            self._twice = None
        return seq - before.seq

    def _line(self, found: list[bytes], at: int, begins: Segment | None, behind: Behind) -> bool:
        """Look at one line; return whether those behind it count too."""
        line = found[at]
        record = opened(line)
        if record is None:
            self._damaged += 1
            self._found(ProblemKind.DAMAGED, None, "this line is no record" if line else "this cannot be unpacked")
            return True
        if begins is None and behind.begins_after(self._before) and record.follows(self._before.hash):
            self._left = plain_name(self._names[-1])
            return False
        self._records += 1
        own = _OWN.match(record.body, 1)
        fields = _fields(record) if own else {}
        if begins is not None:
            self._begin(record, fields, begins.number)
        before = self._before
        if self._follows(record, line, at):
            if own or self._left is not None:
                self._look_at(fields, record, before)
            self._overdue(record.link)
        self._damaged = 0
        if (text := self._proofs.compare(record.link)) is not None:
            self._found(ProblemKind.ROLLED_BACK, record.link.seq, text)
        return True

    # The chain

    def _follows(self, record: Sealed, line: bytes, at: int) -> bool:
        """Go on with a record, if it can be; say so where it cannot follow the one before."""
        before, link = self._before, record.link
        stated, self._stated = self._stated, ()
        if record.follows(before.hash):
            self._before, self._twice = link, None
            return True
        self._stated = (link.hash, hashed(before.hash, record.signed))
        if any(map(record.follows, stated)):  # it follows a line that was found to be wrong
            if link.seq > before.seq:
                self._before = link
            elif self._twice is not None and self._recent.has_before(line, at):
                self._tell_twice(link.seq)
            return link.seq > before.seq
        expected = before.seq + 1
        if link.seq < expected:
            self._found(ProblemKind.OUT_OF_PLACE, link.seq, f"record {link.seq} stands where {expected} should")
            self._twice = None
            if self._recent.has_before(line, at):
                self._twice = len(self._problems) - 1, link.seq
                self._tell_twice(link.seq)
            return False
        self._before = link
        if link.seq == expected:
            self._found(ProblemKind.ALTERED, link.seq, "its hash is not that of its bytes after the record before")
        elif link.seq - expected != self._damaged:  # otherwise the damaged lines are those
            kind = ProblemKind.MISSING_SEGMENT if self._at[1] == 1 else ProblemKind.MISSING
            self._found(kind, expected, _missing(expected, link.seq))
        return True

    def _tell_twice(self, last: int) -> None:
        """Say of lines that stand there a second time that they do, once: what the log says is the same."""
        if self._twice is None:
            return
        place, first = self._twice
        which = f"record {first} stands" if first == last else f"the records {first} to {last} stand"
        text = f"{which} here a second time, word for word; it is read once"
        self._problems[place] = replace(self._problems[place], text=text)

    def _begin(self, record: Sealed, fields: Mapping[str, Any], number: int | None) -> None:
        """Look at the line that begins a file."""
        previous, link = fields.get("previous"), record.link
        if fields.get("kind") != "segment" or not isinstance(previous, str) or not previous.isascii():
            self._found(ProblemKind.DAMAGED, link.seq, "the line that begins a file is missing")
            if self._first is None:
                self._first = self._before = Link(max(link.seq - 1, 0), self._before.hash)
            return
        if number is not None and fields.get("segment") != number:
            text = f"this file was number {fields.get('segment')} of its log"
            self._found(ProblemKind.MISSING_SEGMENT, link.seq, text)
        if self._log is not None and fields.get("log") != self._log:
            self._found(ProblemKind.MISSING_SEGMENT, link.seq, "this file belongs to another log")
        self._log = fields.get("log")
        self._goes_on_after(Link(link.seq - 1, previous))

    def _goes_on_after(self, end: Link) -> None:
        """Go on where a file does, if files before it are not there; a later record may tell why."""
        expected = self._before.seq + 1
        if self._first is None:
            self._first = self._before = end
            if end.seq:
                text = f"the records up to {end.seq:,} are missing, and no record says that they were removed"
                self._gap(Problem(ProblemKind.MISSING_SEGMENT, self._names[-1], 0, 0, end.seq, text), end)
        elif end.seq >= expected:
            self._before = end
            if end.seq + 1 - expected != self._damaged:  # otherwise the damaged lines are those
                text = _missing(expected, end.seq + 1)
                self._gap(Problem(ProblemKind.MISSING_SEGMENT, *self._at, expected, text), end)
        self._begun_after = self._before

    def _gap(self, problem: Problem, end: Link) -> None:
        self._problems.append(problem)
        self._gaps.append((problem, end))

    # Records about the log

    def _look_at(self, fields: Mapping[str, Any], record: Sealed, before: Link) -> None:
        kind, seq = fields.get("kind"), record.link.seq
        detail = fields.get("detail") if kind == "log" else None
        detail = detail if isinstance(detail, dict) else {}
        if "pruned" in detail:
            self._removals.pruned(detail)
        if self._left is not None and kind != "segment":
            poisoned = detail.get("poisoned")
            if not isinstance(poisoned, dict) or poisoned.get("segment") != self._left:
                text = f"it follows a record in the middle of {self._left}, and nothing says why"
                self._found(ProblemKind.OUT_OF_PLACE, seq, text)
            self._left = None
        anew, self._anew = self._anew, None
        if kind == "log" and ("poisoned" in detail or (anew is not None and anew[1] == before.seq)):
            self._anew = (self._begun_after if anew is None else anew[0]), seq
        elif kind == "checkpoint":
            self._checkpoints += 1
            about = anew[0] if anew is not None and anew[1] == before.seq else before
            self._forged(self._proofs.checkpoint(fields, record.link, {before, about}), seq)
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

    def result(self, log: Path) -> Verification:
        """Return what was found."""
        first, last = self._first or START, self._before
        explained = [problem for problem, end in self._gaps if self._removals.explain(end)]
        self._problems = [problem for problem in self._problems if problem not in explained]
        if not self._records and not self._problems:
            self._nothing(log)
        if (text := self._proofs.truncated(last)) is not None:
            self._found(ProblemKind.TRUNCATED, last.seq, text)
        unsigned = self._proofs.unsigned_tail(last)
        known = self._proofs.known
        unwitnessed = max(0, last.seq - known) if known is not None else None
        return Verification(
            tuple(self._problems),
            self._records,
            tuple(self._names),
            self._checkpoints,
            first,
            last,
            unsigned,
            unwitnessed,
        )

    def _nothing(self, log: Path) -> None:
        text = f"there is no log at {log}"
        if self._names:
            text = f"{log} holds no record, and there is nothing to verify"
        self._problems.append(Problem(ProblemKind.NOTHING, log.name, 0, 0, None, text))


class _Recent:
    """The lines that came last; taken apart when it is first asked for one."""

    # Mutable: blocks come and go, with the places of their lines.
    __slots__ = ("_blocks",)

    def __init__(self) -> None:
        self._blocks: deque[tuple[bytes, dict[bytes, int]]] = deque(maxlen=_RECENT)

    def add(self, content: bytes) -> None:
        """Add the block that is looked at now."""
        self._blocks.append((content, {}))

    def has_before(self, line: bytes, at: int) -> bool:
        """Tell whether a line of that block stood there before."""
        for back, (content, places) in enumerate(reversed(self._blocks)):
            if not places:
                for place, other in enumerate(content.split(b"\n")):
                    if len(other) > _SHORTEST:
                        places.setdefault(other, place)
            first = places.get(line)
            if first is not None and (back or first < at):
                return True
        return False


def _lines(content: bytes, segment: Segment) -> list[bytes]:
    """Return the lines of a block; an empty one for what cannot be unpacked."""
    if not content:
        return [b""]
    found = content.split(b"\n")
    rest = found.pop()
    if rest and (segment.number is not None or len(rest) >= blocks.LONGEST):
        found.append(rest)  # otherwise it is being written
    return found


def _missing(first: int, after: int) -> str:
    return f"the records {first} to {after - 1} are missing before it"


def _fields(record: Sealed) -> dict[str, Any]:
    try:
        fields = parsed(record.body)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}
