"""Counting what became of replayed events, in memory that does not grow with their number."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from aperion.naming import RESERVED_DOMAIN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aperion.events import Event
    from aperion.outcomes import Outcome, OutcomeState
    from aperion.receipts import Receipt

SHOWN_REJECTIONS = 20

_TYPES = 10_000
_OTHER_TYPES = "(other types)"
_DROPPED = "system.event_dropped"
_LONGEST_NAME = 80
_STEP = math.log(1.04)  # a percentile is off by 2 % at most
_SHORTEST = 1e-6


def is_of_the_bus(event: Event[Any]) -> bool:
    """Tell whether the bus itself has emitted an event; nobody else may in that domain."""
    return event.event_type.partition(".")[0] == RESERVED_DOMAIN


class Durations:
    """A histogram of seconds: its buckets grow by 4 % each, from a microsecond, so a day needs 650."""

    # Mutable: the counts by bucket, and how many there are.
    __slots__ = ("_buckets", "_count")

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self._count = 0

    def add(self, seconds: float) -> None:
        """Count one measurement."""
        self._buckets[math.ceil(math.log(max(seconds, _SHORTEST) / _SHORTEST) / _STEP)] += 1
        self._count += 1

    def percentile(self, percent: float) -> float | None:
        """Return the seconds that so many percent of the measurements did not exceed; None without any."""
        rank, seen = math.ceil(self._count * percent / 100), 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= rank:
                return _SHORTEST * math.exp((bucket - 0.5) * _STEP)
        return None


class HandlerTally:
    """How the deliveries to one handler ended."""

    # Mutable: all three.
    __slots__ = ("durations", "retried", "states")

    def __init__(self) -> None:
        self.states: Counter[OutcomeState] = Counter()
        self.retried = 0
        self.durations = Durations()

    def add(self, outcome: Outcome) -> None:
        """Count one delivery."""
        self.states[outcome.state] += 1
        started = sum(attempt.number > 0 for attempt in outcome.attempts)  # 0: given up before its start
        if started:
            self.durations.add(outcome.duration)
            self.retried += started > 1


@dataclass(frozen=True, slots=True)
class Rejection:
    """A line that became no event, and why."""

    line: int
    reason: str


class Tally:
    """All that is counted during a replay.

    A line is ``accepted``, ``dropped`` (by a full bus, or by a processor), ``rejected``, or ``left_out``, since it
    is no event but something that an old log tells of the old bus.
    """

    # Mutable: every field.
    __slots__ = (
        *("accepted", "dropped", "filtered", "handlers", "left_out", "rejected", "rejections"),
        *("types", "unknown_fields"),
    )

    def __init__(self) -> None:
        self.accepted = 0
        self.dropped = 0
        self.filtered = 0  # dropped by processors, which is what they are for; those of handlers too
        self.rejected = 0
        self.left_out = 0
        self.rejections: list[Rejection] = []
        self.types: Counter[str] = Counter()
        self.handlers: dict[str, HandlerTally] = {}
        self.unknown_fields: Counter[str] = Counter()

    @property
    def read(self) -> int:
        """How many lines there were, the blank ones left out."""
        return self.accepted + self.dropped + self.rejected + self.left_out

    def reject(self, rejection: Rejection) -> bool:
        """Count a bad line; return whether it is among those that are shown."""
        self.rejected += 1
        if self.rejected <= SHOWN_REJECTIONS:
            self.rejections.append(rejection)
        return self.rejected <= SHOWN_REJECTIONS

    def note_unknown(self, fields: Iterable[str]) -> None:
        """Count fields that mean nothing here, as long as there are few."""
        for name in fields:
            if name in self.unknown_fields or len(self.unknown_fields) < SHOWN_REJECTIONS:
                self.unknown_fields[name[:_LONGEST_NAME]] += 1

    def follow(self, receipt: Receipt) -> None:
        """Count an event that the bus accepted, from the file or not, and its deliveries in the end."""
        event = receipt.event
        if is_of_the_bus(event):  # those of the bus itself tell, and are not counted
            self.filtered += event.event_type == _DROPPED and event.payload["policy"] == "processor"
            return
        known = event.event_type in self.types or len(self.types) < _TYPES
        self.types[event.event_type if known else _OTHER_TYPES] += 1
        receipt.on_settled(partial(self._settle, receipt))

    def _settle(self, receipt: Receipt) -> None:
        for outcome in (receipt.outcomes or {}).values():
            self.handlers.setdefault(outcome.subscription, HandlerTally()).add(outcome)
