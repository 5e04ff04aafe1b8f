"""How far a reading of an audit log is, shown on standard error."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from aperion.audit.reading import Reading
from aperion.audit.segments import segments
from aperion.cli.progress import Reporter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType
    from typing import BinaryIO, Self

    from aperion.audit.query import AuditRecord, Query
    from aperion.audit.segments import Segment

_QUIET = 0.2  # seconds without a record after which the progress comes back


class Watched(Reading):
    """Reads as ``Reading`` does, inside of ``with``, and shows how many bytes it has looked at.

    By bytes, since nothing may match for long; where an index tells what need not be read, they go by faster.

    Args:
        log: the path of the log.
        query: what is wanted.
        doing: what the progress is called.
        aside: whether records are printed to the same terminal as they come; then the progress makes room for them.
    """

    # Mutable: all of it, by reading.

    def __init__(self, log: Path, query: Query, doing: str, *, aside: bool = False) -> None:
        super().__init__(log, query)
        self._total = size_of(log)
        self._done = 0
        self._reporter = Reporter(self._total, doing, "bytes")
        self._aside = aside
        self._is_shown = False
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        """Show the progress."""
        if not self._aside:
            self._show()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Clear it away."""
        self._hide()

    def __iter__(self) -> Iterator[AuditRecord]:
        """Iterate over the records."""
        for record in super().__iter__():
            if self._aside:
                self._hide()
                self._last = time.monotonic()
            yield record

    def _contents(self, segment: Segment, file: BinaryIO) -> Iterator[bytes]:
        before, size = self._done, os.fstat(file.fileno()).st_size
        seen = 0
        for content in super()._contents(segment, file):
            yield content
            seen = min(seen + len(content), size)  # what is compressed has more bytes than its file
            self._tell(before + seen)
        self._done = before + size
        self._tell(self._done)

    def _tell(self, done: int) -> None:
        if not self._is_shown and time.monotonic() - self._last > _QUIET:
            self._show()
        done = min(done, self._total)  # the live file may have grown
        self._reporter.advance(done, done, 1)

    def _show(self) -> None:
        self._is_shown = True
        out = sys.stdout
        self._reporter.__enter__()
        sys.stdout = out  # rich leads it to where it draws: to standard error, whatever file was asked for

    def _hide(self) -> None:
        if self._is_shown:
            self._is_shown = False
            self._reporter.close()


def size_of(log: Path) -> int:
    """Return how many bytes the files of a log have."""
    size = 0
    for segment in segments(log):
        try:
            size += segment.path.stat().st_size
        except FileNotFoundError:  # compressed or removed since it was listed
            continue
    return size
