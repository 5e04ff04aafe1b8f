"""Reading a log back: filters, newest or oldest first, across its files, in constant memory."""

from __future__ import annotations

import os
import tempfile
from itertools import islice
from typing import TYPE_CHECKING, Final

import anyio.to_thread

from aperion.audit.blocks import lines_backwards
from aperion.audit.compression import DamagedError, unpacked
from aperion.audit.compression import lines as whole
from aperion.audit.index import load
from aperion.audit.opening import newest_first, oldest_first, with_later
from aperion.audit.query import AuditRecord, Query, Search

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator
    from pathlib import Path
    from typing import BinaryIO

    from aperion.audit.index import Block, Index
    from aperion.audit.segments import Segment

__all__ = ["AuditRecord", "Query", "Reading"]

_BATCH: Final = 256
"""Records that the worker thread of an asynchronous reading hands over at once."""
_REMEMBERED: Final = 8192
"""Records, more than a batch of the writer has."""


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
        self._needle = max(self._search.needles, key=len, default=b"")

    def __iter__(self) -> Iterator[AuditRecord]:
        """Iterate from the beginning, or from the end with ``newest_first``."""
        return islice(self._all(), self._query.limit)

    async def __aiter__(self) -> AsyncIterator[AuditRecord]:
        """Do the same without holding up the loop; cancelling it ends it after the batch that is read."""
        records = iter(self)
        while batch := await anyio.to_thread.run_sync(_some, records):
            for record in batch:
                yield record

    def _all(self) -> Iterator[AuditRecord]:
        backwards, once = self._query.newest_first, _Once()
        files = newest_first(self._log) if backwards else oldest_first(self._log)
        for segment, file, behind in with_later(files, backwards=backwards):
            with file:
                for record in self._records(segment, file):
                    seq, digest = record.fields["seq"], record.fields["hash"]
                    if not once.has(seq, digest) and not (seq > behind.seq and behind.has(seq, digest)):
                        yield record

    def _records(self, segment: Segment, file: BinaryIO) -> Iterator[AuditRecord]:
        record_of, name = self._search.record, segment.path.name
        for content in self._contents(segment, file):
            if not content:
                self.skipped += 1
                continue
            lines = self._lines(content[: content.rfind(b"\n") + 1])  # the last one may still be written
            for line in reversed(list(lines)) if self._query.newest_first else lines:
                try:
                    record = record_of(line, name)
                except (ValueError, KeyError, TypeError):
                    self.skipped += 1
                    continue
                if record is not None:
                    yield record

    def _lines(self, content: bytes) -> Iterable[bytes]:
        """Return the lines of a block that may be wanted, without their newlines."""
        if not self._needle:
            lines = content.split(b"\n")
            lines.pop()
            return lines
        return self._with_needle(content, self._needle)

    def _with_needle(self, content: bytes, needle: bytes) -> Iterator[bytes]:
        at = content.find(needle)
        while at >= 0:
            end = content.find(b"\n", at)
            yield content[content.rfind(b"\n", 0, at) + 1 : end]
            at = content.find(needle, end)

    # Blocks

    def _contents(self, segment: Segment, file: BinaryIO) -> Iterator[bytes]:
        """Yield the blocks of a file that may hold what is wanted, in the order wanted; an empty one for a damage."""
        backwards, fd = self._query.newest_first, file.fileno()
        index = load(segment.path, fd) if segment.number is not None else None
        size = os.fstat(fd).st_size
        if index is not None:
            yield from self._indexed(index, segment, fd)
        elif not backwards:
            yield from whole(fd, size, segment.compression)
        elif segment.compression:
            yield from _spooled(whole(fd, size, segment.compression))
        else:
            yield from lines_backwards(fd, size)

    def _indexed(self, index: Index, segment: Segment, fd: int) -> Iterator[bytes]:
        search = self._search
        found: Iterable[Block] = index.blocks
        for identifier in search.ids:
            holding = set(index.holding(identifier))
            found = [block for block in found if block in holding]
        wanted = [block for block in found if search.in_time(block.since, block.until)]
        for block in reversed(wanted) if self._query.newest_first else wanted:
            try:
                yield unpacked(os.pread(fd, block.size, block.offset), segment.compression)
            except DamagedError:
                yield b""


class _Once:
    """Tells records from those that were read already.

    What was written twice after a fault stands there twice, with the same number and hash, a batch apart at most.
    """

    # Mutable: what was read, by number.
    __slots__ = ("_before", "_seen")

    def __init__(self) -> None:
        self._seen: dict[int, str] = {}
        self._before: dict[int, str] = {}

    def has(self, seq: int, digest: str) -> bool:
        """Remember a record; tell whether it was there."""
        if self._seen.get(seq) == digest or self._before.get(seq) == digest:
            return True
        if len(self._seen) >= _REMEMBERED:
            self._before, self._seen = self._seen, {}
        self._seen[seq] = digest
        return False


def _some(records: Iterator[AuditRecord]) -> list[AuditRecord]:
    return [record for _, record in zip(range(_BATCH), records, strict=False)]


def _spooled(contents: Iterator[bytes]) -> Iterator[bytes]:
    """Write what was unpacked of a file without an index down, to read it backwards."""
    with tempfile.TemporaryFile() as file:
        for content in contents:
            if content:
                file.write(content)
            else:
                yield content
        file.flush()
        yield from lines_backwards(file.fileno(), file.tell())
