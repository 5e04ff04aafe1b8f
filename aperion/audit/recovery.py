"""Bring what a killed process left in its ring into the log, each line once."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

import orjson

from aperion._logs import logger as _log
from aperion.audit.chain import filling, opened, seal
from aperion.audit.compression import open_lines
from aperion.audit.record import parsed
from aperion.audit.ring import leftover
from aperion.audit.segments import sealed_segments

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from typing import BinaryIO

    from aperion.audit.live import Live
    from aperion.audit.ring import Leftover, Missed, Place


@dataclass(frozen=True, slots=True)
class Recovered:
    """How the process before ended.

    Args:
        clean: whether it closed the log.
        records: of its ring, that the log lacked.
    """

    clean: bool
    records: int


def recover(ring: Path, fd: int, live: Live, *, limit: int | None = None) -> Recovered:
    """Write into the log what the ring holds and the log lacks.

    The ring stays as it is, so that this can be cut short anywhere and done again.

    Args:
        ring: the path of the ring.
        fd: the ring, locked.
        live: the log, opened and at its end.
        limit: bytes of which a file is full.

    Raises:
        AuditUnavailable: when the file is no ring of ours.
        OSError: when the system refuses to write; nothing is lost.
    """
    left = leftover(fd, ring, live.path)
    if left is not None:
        _log.info("audit log was not closed, its buffer is brought over", path=str(live.path), bytes=len(left.content))
    torn = live.resume()
    lost = _continue_after(left.place, live) if left is not None else 0
    good, bad = _missing(left, live) if left is not None else ([], [])
    aside = _clear(live, torn, good)
    if not live.first:
        live.begin()
    _bring_over(good, live, limit)
    if aside is not None:
        live.note("log", {"torn_bytes": len(torn), "moved_to": aside})
    if bad:
        live.note("log", {"torn_bytes": sum(map(len, bad)), "moved_to": live.file.keep_aside(bad)})
    if lost:
        live.note("gap", {"missing": lost, "reason": "the file is shorter than it was when the process ended"})
    if left is not None and left.missed is not None:
        live.note("gap", gap(left.missed))
    return Recovered(left is None, len(good))


def _bring_over(lines: list[bytes], live: Live, limit: int | None) -> None:
    while lines:
        live.make_room(limit)
        count = len(lines) if limit is None else filling(lines, live.link, limit - live.size)
        live.append(lines[:count])
        lines = lines[count:]
    live.make_room(limit)


def gap(missed: Missed) -> dict[str, object]:
    """Return what a ``gap`` record says of records that could not be taken."""
    reason = "the log could not be written"
    return {"missing": missed.count, "from": missed.since, "to": missed.until, "reason": reason}


def _continue_after(place: Place, live: Live) -> int:
    """Let the chain go on where the process left it, and return how many of its records are not there any more."""
    lost = place.link.seq - live.link.seq
    if lost <= 0:
        return 0
    if live.file.identity == place.file or _sealed_file(place, live) is not None:
        return lost  # the end of the file is gone: a power cut, or somebody cut it
    live.link, live.first = place.link, 0  # the file was moved away, to where its records still are
    return 0


def _sealed_file(place: Place, live: Live) -> Path | None:
    for segment in sealed_segments(live.path)[-2:]:
        found = segment.path.stat()
        if (found.st_dev, found.st_ino) == place.file:
            return segment.path
    return None


def _missing(left: Leftover, live: Live) -> tuple[list[bytes], list[bytes]]:
    """Return the lines of the ring that the log lacks, and what is no record.

    After a power cut the whole ring may be older than the log, or its pages of different age.
    """
    good: list[bytes] = []
    bad: list[bytes] = []
    for line in left.content.splitlines(keepends=True):
        (good if _is_record(line) else bad).append(line)
    known = {_digest(body) for body in _bodies(left.place, live)} if good else set()
    return [line for line in good if _digest(line) not in known], [*bad, *([left.garbled] if left.garbled else [])]


def _bodies(place: Place, live: Live) -> Iterator[bytes]:
    """Yield the records that came into the log after a place."""
    with live.path.open("rb") as file:
        end = b'%b"}\n' % place.link.hash.encode()
        if live.file.read(max(place.size - len(end), 0), len(end)) == end:  # it is the file, and all is behind it
            file.seek(place.size)
            yield from _newer(_until(file, live.size), place.link.seq)
            return
        yield from _newer(_until(file, live.size), place.link.seq)
    for segment in reversed(sealed_segments(live.path)):
        with open_lines(segment.path, segment.compression) as lines:
            begin = opened(next(lines, b""))
            yield from _newer(lines, place.link.seq)
        if begin is not None and begin.link.seq <= place.link.seq:
            return


def _until(file: BinaryIO, end: int) -> Iterator[bytes]:
    """Yield the lines up to the end of the log: behind it may be some that are moved aside."""
    offset = file.tell()
    for line in file:
        offset += len(line)
        if offset > end:
            return
        yield line


def _newer(lines: Iterable[bytes], seq: int) -> Iterator[bytes]:
    for line in lines:
        sealed = opened(line) if line.endswith(b"\n") else None  # a newline short of whole is torn
        if sealed is not None and sealed.link.seq > seq:
            yield sealed.body


def _digest(body: bytes) -> bytes:
    return blake2b(body, digest_size=16).digest()


def _is_record(line: bytes) -> bool:
    if not line.isascii():
        return False
    try:
        return isinstance(orjson.loads(line), dict)
    except ValueError:
        return _is_odd_record(line)


def _is_odd_record(line: bytes) -> bool:
    """Tell so of one that the fast parser refuses: it may hold an integer that is larger than what that knows."""
    try:
        return isinstance(parsed(line), dict)
    except ValueError:
        return False


def _clear(live: Live, torn: bytes, following: list[bytes]) -> str | None:
    """Take a last line without an end away; return the name of the file that keeps it, unless it comes again whole."""
    if not torn:
        return None
    expected = b"".join(seal(following, live.link)[0])
    name = None if expected.startswith(torn) else live.file.keep_aside([torn])
    live.file.cut(live.size)
    return name
