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
        self._rest = b""
        self._number: int | None = None
        self._begin(from_end=from_end)

    def _begin(self, *, from_end: bool) -> None:
        there = segments(self._log)
        if there and from_end:
            self._open(there[-1], after=None)
            content = self._file.read() if self._file is not None else b""
            self._rest = content[content.rfind(b"\n") + 1 :]
        elif there:
            self._open(there[0], after=0)

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
        self._file, self._name, self._rest = file, segment.path.name, b""
        self._number = segment.number or _number_of(file)

    def available(self) -> list[AuditRecord]:
        """Return what has come since the last call; does not wait."""
        found: list[AuditRecord] = []
        while True:
            newer = self._next()
            found += self._read()
            if newer is None or (self._left is not None and self._left <= 0):
                return found
            self._open(newer, after=self._own_number())

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

    def _read(self) -> list[AuditRecord]:
        if self._file is None:
            return []
        try:
            content = self._rest + self._file.read()
        except DamagedError:
            self.skipped += 1
            return []
        end = content.rfind(b"\n") + 1
        self._rest = content[end:]
        return [r for line in content[:end].splitlines(keepends=True) if (r := self._record(line)) is not None]

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


def follow(log: Path, query: Query, *, from_end: bool = True) -> Iterator[AuditRecord]:
    """Yield records as they are written, for ever or until the query's limit; waits for each."""
    with closing(Following(log, query, from_end=from_end)) as following:
        while not following.ended:
            found = following.available()
            yield from found
            if not found and not following.ended:
                time.sleep(POLL)
