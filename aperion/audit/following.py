"""Following a log as it is written, like ``tail -F``, from file to file."""

from __future__ import annotations

import os
import time
from contextlib import closing
from typing import TYPE_CHECKING, Final

from aperion.audit.blocks import CHUNK
from aperion.audit.compression import lines
from aperion.audit.opening import Files, begin_of, newest_first
from aperion.audit.query import AuditRecord, Query, Search
from aperion.audit.segments import Segment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

POLL: Final = 0.1
"""Seconds between two looks for more."""
_AT_ONCE: Final = 1 << 20
"""Bytes after which what was found is handed over, however much more there is."""
_IN_VAIN: Final = 16 << 20
"""Bytes after which it says that it found nothing yet: others may be written as fast as they are read."""


class Following:
    """Yields records as they come; ``skipped`` counts lines that are none.

    Args:
        log: the path of the log, which need not exist yet.
        query: what is wanted; its ``limit`` ends it, its order does not matter.
        from_end: whether what is there already is left out.
    """

    # Mutable: all of it, by following.

    def __init__(self, log: Path, query: Query, *, from_end: bool = True) -> None:
        self.skipped = 0
        self._log = log
        self._search = Search(query)
        self._left = query.limit
        self._file: BinaryIO | None = None
        self._segment = Segment(log, None)
        self._blocks: Iterator[bytes] | None = None  # of a compressed file
        self._offset = 0  # in any other
        self._files = Files(log)
        self._rest = bytearray()
        self._begin(from_end=from_end)

    def _begin(self, *, from_end: bool) -> None:
        if not from_end:
            self._go_on()
        elif (newest := next(newest_first(self._log), None)) is not None:
            self._open(*newest)
            self._to_the_end(newest[1].fileno())

    def _to_the_end(self, fd: int) -> None:
        """Go to the end of a file, and keep the line that is not finished there."""
        if self._blocks is None:
            self._offset = _last_line(fd, os.fstat(fd).st_size)
        while chunk := self._read():
            self._whole_lines(chunk)

    def _open(self, segment: Segment, file: BinaryIO) -> None:
        if self._file is not None:
            self._file.close()
        fd = file.fileno()
        self._file, self._segment, self._rest, self._offset = file, segment, bytearray(), 0
        self._files.after = max(self._files.after, segment.number or 0)
        self._blocks = lines(fd, os.fstat(fd).st_size, segment.compression) if segment.compression else None

    def _go_on(self) -> bool:
        """Go on with the next file; tell whether there is one."""
        while (found := self._files.next()) is not None:
            if self._file is None or not os.path.samestat(os.fstat(found[1].fileno()), os.fstat(self._file.fileno())):
                self._open(*found)
                return True
            found[1].close()
            if found[0].number is None:
                break
        return False

    def available(self) -> list[AuditRecord]:
        """Return what has come since the last call, of a lot the first part; does not wait."""
        found: list[AuditRecord] = []
        read = 0
        while not self.ended:
            is_over = self._is_over()  # asked first: what is read then is all there is
            if chunk := self._read():
                whole = self._whole_lines(chunk).split(b"\n")[:-1]
                found += [record for line in whole if (record := self._record(line)) is not None]
                read += len(chunk)
                if read >= (_AT_ONCE if found else _IN_VAIN):
                    break
            elif not is_over or not self._go_on():
                break
        return found

    def _is_over(self) -> bool:
        """Tell whether the file that is read gets no more records: it is full, or another one is live."""
        if self._file is None or self._segment.number is not None:
            return True
        try:
            if os.path.samestat(self._log.lstat(), os.fstat(self._file.fileno())):
                return False
        except FileNotFoundError:
            return False  # between two files, or moved away and written still
        begin = begin_of(self._segment, self._file.fileno())
        self._files.after = max(self._files.after, begin.number if begin is not None else 0)
        return True

    def _read(self) -> bytes:
        if self._file is None:
            return b""
        if self._blocks is None:
            chunk = os.pread(self._file.fileno(), CHUNK, self._offset)
            self._offset += len(chunk)
            return chunk
        for block in self._blocks:
            if block:
                return block
            self.skipped += 1
        return b""

    def _whole_lines(self, chunk: bytes) -> bytes:
        """Return the lines that a part of a file ends, and keep the one that it begins."""
        whole, newline, rest = chunk.rpartition(b"\n")
        if not newline:
            self._rest += rest
            return b""
        lines = bytes(self._rest) + whole + newline
        self._rest = bytearray(rest)
        return lines

    def _record(self, line: bytes) -> AuditRecord | None:
        if self._left is not None and self._left <= 0:
            return None
        try:
            record = self._search.record(line, self._segment.path.name)
        except (ValueError, KeyError, TypeError):
            self.skipped += 1
            return None
        if record is not None and self._left is not None:
            self._left -= 1
        return record

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    @property
    def ended(self) -> bool:
        """Whether the limit is reached."""
        return self._left is not None and self._left <= 0


def _last_line(fd: int, size: int) -> int:
    """Return where the last line of a file begins, looked for from its end."""
    while size > 0:
        start = max(size - CHUNK, 0)
        newline = os.pread(fd, size - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        size = start
    return 0


def follow(log: Path, query: Query, *, from_end: bool = True) -> Iterator[AuditRecord]:
    """Yield records as they are written, for ever or until the query's limit; waits for each."""
    with closing(Following(log, query, from_end=from_end)) as following:
        while not following.ended:
            found = following.available()
            yield from found
            if not found and not following.ended:
                time.sleep(POLL)
