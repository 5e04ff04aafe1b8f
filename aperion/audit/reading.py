"""Reading a log back: filters, newest or oldest first, across its files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson

from aperion.audit.chain import opened
from aperion.audit.segments import segments
from aperion.patterns import check_pattern, matches

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import Self


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One line of a log.

    Args:
        fields: all of it, as JSON says it.
        segment: the name of the file that it stands in.
    """

    fields: Mapping[str, Any]
    segment: str

    @property
    def seq(self) -> int:
        """Its number in the log."""
        return int(self.fields["seq"])

    @property
    def kind(self) -> str:
        """What it tells of: ``accepted``, ``outcome`` and so on."""
        return str(self.fields["kind"])

    @property
    def time(self) -> int:
        """When it was made, in nanoseconds since the epoch."""
        return int(self.fields["time"])

    @property
    def at(self) -> datetime:
        """When it was made, in UTC."""
        return datetime.fromtimestamp(self.time / 1e9, UTC)

    @property
    def event_id(self) -> str | None:
        """Of the event that it is about, if it is about one."""
        return self.fields.get("event_id")

    @property
    def event_type(self) -> str | None:
        """Of the event that it is about."""
        return self.fields.get("type")

    @property
    def correlation_id(self) -> str | None:
        """Of the event that it is about."""
        return self.fields.get("correlation_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which records are wanted; what is None does not matter.

    Args:
        types: patterns of event types, as subscriptions have them.
        kinds: of records.
        since: the earliest time, inclusive.
        until: the latest time, exclusive.
        event_id: of the event.
        correlation_id: of the event.
        source: of the event.
        subscription: of the outcome.
        state: of the outcome: ``ok``, ``failed``, ``timed_out`` …
        text: stands somewhere in the record, whatever its case.
        limit: how many records at most.
        newest_first: from the end of the log.
    """

    types: Sequence[str] = ()
    kinds: Sequence[str] = ()
    since: datetime | None = None
    until: datetime | None = None
    event_id: str | None = None
    correlation_id: str | None = None
    source: str | None = None
    subscription: str | None = None
    state: str | None = None
    text: str | None = None
    limit: int | None = None
    newest_first: bool = False


class Reading:
    """Iterates over records; ``skipped`` counts the lines that are damaged."""

    def __init__(self, log: Path, query: Query) -> None:
        self.skipped = 0
        self._log = log
        self._query = query
        for pattern in query.types:
            check_pattern(pattern, any_name=True)

    def __iter__(self) -> Iterator[AuditRecord]:
        found = 0
        for segment in segments(self._log):
            for line in segment.path.open("rb"):
                sealed = opened(line)
                if sealed is None:
                    self.skipped += 1
                    continue
                fields = orjson.loads(line)
                if _wanted(self._query, fields):
                    yield AuditRecord(fields, segment.path.name)
                    found += 1
                    if found == self._query.limit:
                        return


def _wanted(query: Query, fields: Mapping[str, Any]) -> bool:
    return not query.types or any(matches(pattern, fields.get("type", "")) for pattern in query.types)
