"""Counting what is in an audit log, and how fast it went over time, in memory that does not grow with it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aperion.audit.query import Query
from aperion.audit.reading import Reading
from aperion.cli.audit_progress import Watched
from aperion.cli.tally import Durations

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from aperion.audit.query import AuditRecord

SLICES = 24

_MOST_NAMES = 10_000
_OTHERS = "(others)"
_LONGEST = 1e9  # seconds that are believed of a record, which may be somebody else's
_NANOSECONDS = 1_000_000_000


@dataclass(slots=True)
class Slice:
    """What happened between two moments; ``start`` in nanoseconds since the epoch."""

    # Mutable: all but the start.
    start: int
    accepted: int = 0
    failed: int = 0
    durations: Durations = field(default_factory=Durations)

    @property
    def p50(self) -> float | None:
        """The median of how long handling took, in seconds."""
        return self.durations.percentile(50)

    @property
    def p99(self) -> float | None:
        """What 99 of 100 did not exceed."""
        return self.durations.percentile(99)


class Census:
    """All that is counted."""

    # Mutable: every field but ``since``, ``until`` and ``width``.
    __slots__ = ("durations", "handlers", "kinds", "records", "since", "skipped", "slices", "states", "types", "until")

    def __init__(self, since: int, until: int) -> None:
        self.since, self.until = since, max(until, since)
        width = self.width_ns
        self.slices = tuple(Slice(since + at * width) for at in range(SLICES))
        self.records = self.skipped = 0
        self.kinds: Counter[str] = Counter()
        self.types: Counter[str] = Counter()
        self.states: Counter[str] = Counter()
        self.handlers: dict[str, tuple[Counter[str], Durations]] = {}
        self.durations = Durations()

    @property
    def width_ns(self) -> int:
        """How long a slice is."""
        return max(1, -(-(self.until - self.since + 1) // SLICES))

    @property
    def width(self) -> float:
        """The same in seconds."""
        return self.width_ns / _NANOSECONDS

    def add(self, record: AuditRecord) -> None:
        """Count one record."""
        self.records += 1
        self.kinds[_name(self.kinds, record.kind)] += 1
        if record.kind == "accepted":
            self.types[_name(self.types, str(record.event_type))] += 1
            self._slice(record.time).accepted += 1
        elif record.kind == "outcome":
            self._outcome(record)

    def _outcome(self, record: AuditRecord) -> None:
        fields, piece = record.fields, self._slice(record.time)
        state = str(fields.get("state"))
        self.states[_name(self.states, state)] += 1
        piece.failed += state in {"failed", "timed_out"}
        handler = str(fields.get("subscription"))
        handler = handler if handler in self.handlers or len(self.handlers) < _MOST_NAMES else _OTHERS
        states, durations = self.handlers.setdefault(handler, (Counter(), Durations()))
        states[state] += 1
        duration = fields.get("duration")
        if state != "skipped" and isinstance(duration, int | float) and 0 <= duration < _LONGEST:
            for each in (durations, piece.durations, self.durations):
                each.add(duration)

    def _slice(self, time_ns: int) -> Slice:
        # The clock may have been set back: what lies outside goes to the nearest.
        return self.slices[min(SLICES - 1, max(0, (time_ns - self.since) // self.width_ns))]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values; times in nanoseconds, durations in seconds."""
        return {
            "records": self.records,
            "skipped_lines": self.skipped,
            "since": self.since,
            "until": self.until,
            "kinds": dict(self.kinds.most_common()),
            "types": dict(self.types.most_common()),
            "states": dict(self.states.most_common()),
            "latency": _percentiles(self.durations),
            "handlers": {
                name: {"states": dict(states), **_percentiles(durations)}
                for name, (states, durations) in sorted(self.handlers.items())
            },
            "slice_seconds": self.width,
            "slices": [
                {"start": s.start, "accepted": s.accepted, "failed": s.failed, **_percentiles(s.durations)}
                for s in self.slices
            ],
        }


def census(log: Path, since: datetime | None, until: datetime | None) -> Census | None:
    """Count the records of a log, between two times if they are given; None if there are none."""
    first = next(iter(Reading(log, Query(since=since, until=until, limit=1))), None)
    last = next(iter(Reading(log, Query(since=since, until=until, limit=1, newest_first=True))), None)
    if first is None or last is None:
        return None
    counted = Census(first.time, last.time)
    with Watched(log, Query(since=since, until=until), "counting") as reading:
        for record in reading:
            counted.add(record)
    counted.skipped = reading.skipped
    return counted


def _name(known: Counter[str], name: str) -> str:
    return name if name in known or len(known) < _MOST_NAMES else _OTHERS


def _percentiles(durations: Durations) -> dict[str, float | None]:
    return {"p50": durations.percentile(50), "p99": durations.percentile(99)}
