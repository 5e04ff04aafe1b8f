"""Reading a log back: filters, newest or oldest first, across its files, in constant memory."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING, Any, Final

import anyio.to_thread

from aperion.audit.compression import DamagedError, unpacked, unpacking
from aperion.audit.index import Index, blocks, load
from aperion.audit.query import AuditRecord, Query, Search
from aperion.audit.segments import Segment, sealed_segments

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator
    from pathlib import Path
    from typing import BinaryIO

__all__ = ["AuditRecord", "Query", "Reading"]

_CHUNK: Final = 256 << 10
_BATCH: Final = 256
"""Records that the worker thread of an asynchronous reading hands over at once."""


class Reading:
    """Iterates over the records that a query wants; with ``async for`` too, in a worker thread.

    Reads while the log is written: what was there at the start is found, whatever is rotated, compressed
    or removed meanwhile.

    Args:
        log: the path of the log.
        query: what is wanted.
    """

    # Mutable: skipped, by reading.

    def __init__(self, log: Path, query: Query) -> None:
        self.skipped = 0
        """Lines that were looked at and are no records, damaged or somebody else's, and blocks that cannot be unpacked."""
        self._log = log
        self._query = query
        self._search = Search(query)

    def __iter__(self) -> Iterator[AuditRecord]:
        """Iterate from the beginning, or from the end with ``newest_first``."""
        left = self._query.limit
        for segment, file in _newest_first(self._log) if self._query.newest_first else oldest_first(self._log):
            for record in self._records(segment, file):
                yield record
                if left is not None and (left := left - 1) == 0:
                    return

    async def __aiter__(self) -> AsyncIterator[AuditRecord]:
        """Do the same without holding up the loop; cancelling it ends it after the batch that is read."""
        records = iter(self)
        while batch := await anyio.to_thread.run_sync(_some, records):
            for record in batch:
                yield record

    def _records(self, segment: Segment, file: BinaryIO) -> Iterator[AuditRecord]:
        try:
            for content in self._contents(segment, file):
                lines = list(self._lines(content))
                for line in reversed(lines) if self._query.newest_first else lines:
                    record = self._record(line, segment)
                    if record is not None:
                        yield record
        finally:
            file.close()

    def _record(self, line: bytes, segment: Segment) -> AuditRecord | None:
        try:
            return self._search.record(line, segment.path.name)
        except (ValueError, KeyError, TypeError):
            self.skipped += 1
            return None

    def _lines(self, content: bytes) -> Iterator[bytes]:
        """Yield the lines of a block that may be wanted."""
        needles = self._search.needles
        if not needles:
            yield from content.splitlines(keepends=True)
            return
        needle = max(needles, key=len)
        at = content.find(needle)
        while at >= 0:
            end = content.find(b"\n", at) + 1 or len(content)
            yield content[content.rfind(b"\n", 0, at) + 1 : end]
            at = content.find(needle, end)

    # Blocks

    def _contents(self, segment: Segment, file: BinaryIO) -> Iterator[bytes]:
        """Yield the blocks of a file that may hold what is wanted, in the order wanted."""
        backwards = self._query.newest_first
        size = os.fstat(file.fileno()).st_size
        index = load(segment.path, size) if segment.number is not None else None
        if index is not None:
            yield from self._indexed(index, segment, file)
        elif segment.compression:
            with unpacking(file, segment.compression) as lines:
                yield from _spooled(self._unpacked(lines)) if backwards else self._unpacked(lines)
        else:
            yield from _backwards(file, size) if backwards else _forwards(file, size)

    def _indexed(self, index: Index, segment: Segment, file: BinaryIO) -> Iterator[bytes]:
        search = self._search
        found: Iterable[Any] = index.blocks
        for identifier in search.ids:
            holding = set(index.holding(identifier))
            found = [block for block in found if block in holding]
        wanted = [block for block in found if search.in_time(block.since, block.until)]
        for block in reversed(wanted) if self._query.newest_first else wanted:
            try:
                yield unpacked(os.pread(file.fileno(), block.size, block.offset), segment.compression)
            except DamagedError:
                self.skipped += 1

    def _unpacked(self, lines: BinaryIO) -> Iterator[bytes]:
        """Yield what can be unpacked of a file without an index, up to the first damage."""
        try:
            yield from blocks(lines)
        except DamagedError:
            self.skipped += 1


def _some(records: Iterator[AuditRecord]) -> list[AuditRecord]:
    return [record for _, record in zip(range(_BATCH), records, strict=False)]


def oldest_first(log: Path) -> Iterator[tuple[Segment, BinaryIO]]:
    """Open the files of a log one after another, whatever is rotated, compressed or removed meanwhile."""
    done = 0
    while True:
        segment = next((s for s in sealed_segments(log) if (s.number or 0) > done), None) or Segment(log, None)
        file = _opened(segment)
        if file is None:
            if segment.number is None:
                return
            continue  # compressed or removed since it was listed
        if segment.number is None and _is_sealed(log, file, done):
            file.close()
            continue  # became full since the others were listed
        yield segment, file
        if segment.number is None:
            return
        done = segment.number


def _is_sealed(log: Path, file: BinaryIO, done: int) -> bool:
    return any((segment.number or 0) > done for segment in sealed_segments(log)) or not _is_at(log, file)


def _is_at(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return True  # between two files: what is open is the newest there is


def _newest_first(log: Path) -> Iterator[tuple[Segment, BinaryIO]]:
    live = _opened(Segment(log, None))
    listed = sealed_segments(log)
    if live is None:
        yield from _listed(log, listed, None)
        return
    # Kept open, since the number of a file that is gone soon belongs to another one.
    with os.fdopen(os.dup(live.fileno()), "rb") as kept:
        yield Segment(log, None), live
        yield from _listed(log, listed, os.fstat(kept.fileno()))


def _listed(log: Path, listed: list[Segment], identity: os.stat_result | None) -> Iterator[tuple[Segment, BinaryIO]]:
    """Open full files, the newest first, without the one that was the live one when that was opened."""
    for known in reversed(listed):
        file, segment = _opened(known), known
        if file is None:  # compressed since, or removed
            segment = next((s for s in sealed_segments(log) if s.number == known.number), known)
            file = _opened(segment)
        if file is None:
            continue
        if identity is not None and os.path.samestat(os.fstat(file.fileno()), identity):
            file.close()  # was the live one when it was opened
            continue
        yield segment, file


def _opened(segment: Segment) -> BinaryIO | None:
    try:
        fd = os.open(segment.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    return os.fdopen(fd, "rb")


def _forwards(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Yield whole lines up to a size, which a live file may have passed since."""
    at, rest = 0, b""
    while at < size:
        chunk = os.pread(file.fileno(), min(_CHUNK, size - at), at)
        if not chunk:
            break
        at += len(chunk)
        rest += chunk
        end = rest.rfind(b"\n") + 1
        if end:
            yield rest[:end]
            rest = rest[end:]


def _backwards(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Yield whole lines from the end on, leaving out a last one that is not finished."""
    rest: bytes | None = None
    while size > 0:
        start = max(size - _CHUNK, 0)
        content = os.pread(file.fileno(), size - start, start) + (rest or b"")
        size = start
        if rest is None:
            content = content[: content.rfind(b"\n") + 1]
            if not content:
                continue
        begin = content.find(b"\n") + 1 if start else 0
        rest = content[:begin]
        if content[begin:]:
            yield content[begin:]
    if rest:
        yield rest


def _spooled(contents: Iterator[bytes]) -> Iterator[bytes]:
    """Write what was unpacked of a file without an index down, to read it backwards."""
    with tempfile.TemporaryFile() as file:
        for content in contents:
            file.write(content)
        file.flush()
        yield from _backwards(file, file.tell())
