"""Following a log as it is written, like ``tail -F``, from file to file."""

from __future__ import annotations

import os
import re
import time
from contextlib import closing
from typing import TYPE_CHECKING, Final

from aperion.audit.compression import DamagedError, open_lines
from aperion.audit.query import AuditRecord, Query, Search
from aperion.audit.segments import Segment, sealed_segments, segments

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

_NUMBER: Final = re.compile(rb'"kind":"segment",.*"segment":(\d+)')
POLL: Final = 0.1
"""Seconds between two looks for more."""
_CHUNK: Final = 256 << 10
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
        self._name = ""
        self._rest = bytearray()
        self._number: int | None = None
        self._begin(from_end=from_end)

    def _begin(self, *, from_end: bool) -> None:
        there = segments(self._log)
        if there and from_end:
            self._open(there[-1], after=None)
            if self._file is not None:
                self._to_the_end(self._file, compressed=bool(there[-1].compression))
        elif there:
            self._open(there[0], after=0)

    def _to_the_end(self, file: BinaryIO, *, compressed: bool) -> None:
        """Go to the end of a file, and keep the line that is not finished there."""
        if not compressed:
            file.seek(_last_line(file.fileno(), os.fstat(file.fileno()).st_size))
        while chunk := self._read():
            self._whole_lines(chunk)

    def _open(self, segment: Segment, *, after: int | None) -> None:
        """Go on with a file, unless it is not the one that was listed any more."""
        try:
            file = open_lines(segment.path, segment.compression)
        except FileNotFoundError:
            return
        if segment.number is None and after is not None and self._is_another(file, after):
            file.close()
            return
        if self._file is not None:
            self._file.close()
        self._file, self._name, self._rest = file, segment.path.name, bytearray()
        self._number = segment.number or _number_of(file)

    def available(self) -> list[AuditRecord]:
        """Return what has come since the last call, of a lot the first part; does not wait."""
        found: list[AuditRecord] = []
        read = 0
        while not self.ended:
            newer = self._next()
            if chunk := self._read():
                lines = self._whole_lines(chunk).splitlines(keepends=True)
                found += [record for line in lines if (record := self._record(line)) is not None]
                read += len(chunk)
                if read >= (_AT_ONCE if found else _IN_VAIN):
                    break
            elif newer is None:
                break
            else:
                self._open(newer, after=self._own_number())
        return found

    def _is_another(self, live: BinaryIO, after: int) -> bool:
        """Tell whether a file became full, and is not read yet, before this live one began."""
        later = next((s for s in sealed_segments(self._log) if (s.number or 0) > after), None)
        try:
            return later is not None and not os.path.samestat(later.path.lstat(), os.fstat(live.fileno()))
        except FileNotFoundError:
            return True

    def _own_number(self) -> int | None:
        """Return the number of the file that is read; a live one may have been empty when it was opened."""
        if self._number is None:
            self._number = _number_of(self._file) if self._file is not None else 0
        return self._number

    def _read(self) -> bytes:
        if self._file is None:
            return b""
        try:
            return self._file.read(_CHUNK)
        except DamagedError:
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
            record = self._search.record(line, self._name)
        except (ValueError, KeyError, TypeError):
            self.skipped += 1
            return None
        if record is not None and self._left is not None:
            self._left -= 1
        return record

    def _next(self) -> Segment | None:
        """Return the file after the one being read; None as long as that is the newest."""
        there = segments(self._log)
        if self._file is None:
            return there[0] if there else None
        own = os.fstat(self._file.fileno())
        for place, segment in enumerate(there):
            try:
                if os.path.samestat(segment.path.lstat(), own):
                    return there[place + 1] if place + 1 < len(there) else None
            except FileNotFoundError:
                continue
        return self._after_one_that_went(there)

    def _after_one_that_went(self, there: list[Segment]) -> Segment | None:
        """Find the file after one that was compressed or removed while it was read, by its number."""
        number = self._own_number()
        if number is None:
            return there[-1] if there else None
        later = [segment for segment in there if segment.number is None or segment.number > number]
        return later[0] if later else None

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    @property
    def ended(self) -> bool:
        """Whether the limit is reached."""
        return self._left is not None and self._left <= 0


def _number_of(live: BinaryIO) -> int | None:
    """Return the number that a live file says it will have."""
    found = _NUMBER.search(os.pread(live.fileno(), 1024, 0).partition(b"\n")[0])
    return int(found[1]) if found is not None else None


def _last_line(fd: int, size: int) -> int:
    """Return where the last line of a file begins, looked for from its end."""
    while size > 0:
        start = max(size - _CHUNK, 0)
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
