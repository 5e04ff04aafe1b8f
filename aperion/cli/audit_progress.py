"""How far a reading of an audit log is, shown on standard error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aperion.audit.query import Query
from aperion.audit.reading import Reading
from aperion.cli.progress import Reporter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aperion.audit.query import AuditRecord


def watched(log: Path, reading: Reading, doing: str, *, backwards: bool = False) -> Iterator[AuditRecord]:
    """Yield the records of a reading, and show how far it is by their numbers."""
    oldest, newest = (_number(log, newest_first=newest_first) for newest_first in (False, True))
    with Reporter(newest - oldest + 1, doing, "records") as reporter:
        for count, record in enumerate(reading, start=1):
            done = newest - record.seq if backwards else record.seq - oldest
            reporter.advance(count, done + 1, 1)
            yield record


def _number(log: Path, *, newest_first: bool) -> int:
    record = next(iter(Reading(log, Query(limit=1, newest_first=newest_first))), None)
    return record.seq if record is not None else 0
