"""What one request led to: the tree of its events by causation, each with its deliveries, as a log tells it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aperion.audit.reading import Query, Reading

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from aperion.audit.reading import AuditRecord

_ACCEPTED, _OUTCOME = "accepted", "outcome"
_MOST = 1e9  # seconds or attempts that are believed


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceAttempt:
    """One attempt of a delivery.

    Args:
        number: 1, 2 …; 0 where the delivery was given up before its start.
        state: ``ok``, ``failed``, ``timed_out`` or ``skipped``.
        duration: of the handler, in seconds.
        ended: when it was recorded, in nanoseconds since the epoch.
        error_type: of what the handler raised.
        error: what it said, redacted.
    """

    number: int
    state: str
    duration: float
    ended: int
    error_type: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class TraceDelivery:
    """An event and one handler, by the name of its subscription."""

    subscription: str
    attempts: tuple[TraceAttempt, ...]


@dataclass(frozen=True, slots=True)
class TraceNote:
    """Whatever else the log says of an event: that it was dropped, dead-lettered, redriven and so on."""

    kind: str
    time: int
    detail: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceNode:
    """One event, and those that it caused.

    Args:
        event_id: of the event.
        event_type: its name.
        time: when it was accepted, or first spoken of, in nanoseconds since the epoch.
        source: who emitted it, if that was said.
        payload: redacted; None where the log does not have it.
        deliveries: in the order in which the first attempt of each ended.
        notes: in the order recorded.
        children: in the order recorded.
    """

    event_id: str
    event_type: str
    time: int
    source: str | None
    payload: Any
    deliveries: tuple[TraceDelivery, ...]
    notes: tuple[TraceNote, ...]
    # Not part of the repr, which would call itself as deep as the tree is.
    children: tuple[TraceNode, ...] = field(repr=False, default=())


def trace(log: Path, correlation_id: str) -> tuple[TraceNode, ...]:
    """Return the events with a correlation id as trees: each under the event that caused it.

    An event whose cause the log does not have is a root. Where damaged records make events cause each
    other in a circle, the first of them is one. Nothing here is limited by the depth of the tree.
    """
    return tree(Reading(log, Query(correlation_id=correlation_id)))


def tree(records: Iterable[AuditRecord]) -> tuple[TraceNode, ...]:
    """Return what some records say, as trees."""
    stories: dict[str, _Story] = {}
    for record in records:
        if isinstance(record.event_id, str):
            story = stories.get(record.event_id)
            if story is None:
                story = stories[record.event_id] = _Story(record)
            story.add(record)
    return _built(stories)


def walk(roots: Iterable[TraceNode]) -> Iterator[tuple[int, TraceNode]]:
    """Yield every node and its depth, each before its children."""
    waiting = [(0, node) for node in reversed(tuple(roots))]
    while waiting:
        depth, node = waiting.pop()
        yield depth, node
        waiting.extend((depth + 1, child) for child in reversed(node.children))


class _Story:
    """What the log says of one event, gathered record by record."""

    # Mutable: all of it.
    __slots__ = ("attempts", "cause", "notes", "payload", "seq", "source", "time", "type")

    def __init__(self, first: AuditRecord) -> None:
        self.seq, self.time = first.seq, first.time
        self.type = str(first.event_type or "")
        self.source: str | None = None
        self.cause: str | None = None
        self.payload: Any = None
        self.attempts: dict[str, list[TraceAttempt]] = {}
        self.notes: list[TraceNote] = []

    def add(self, record: AuditRecord) -> None:
        fields = record.fields
        self.source = self.source or _text(fields.get("source"))
        self.cause = self.cause or _text(fields.get("causation_id"))
        if record.kind == _ACCEPTED:
            self.time, self.payload = record.time, fields.get("payload")
        elif record.kind == _OUTCOME:
            self.attempts.setdefault(str(fields.get("subscription")), []).append(_attempt(fields, record.time))
        else:
            self.notes.append(TraceNote(record.kind, record.time, fields.get("detail")))

    def told(self, event_id: str, children: tuple[TraceNode, ...]) -> TraceNode:
        return TraceNode(
            event_id=event_id,
            event_type=self.type,
            time=self.time,
            source=self.source,
            payload=self.payload,
            deliveries=tuple(TraceDelivery(name, tuple(attempts)) for name, attempts in self.attempts.items()),
            notes=tuple(self.notes),
            children=children,
        )


def _attempt(fields: Mapping[str, Any], ended: int) -> TraceAttempt:
    return TraceAttempt(
        number=int(_number(fields.get("attempt"))),
        state=str(fields.get("state")),
        duration=_number(fields.get("duration")),
        ended=ended,
        error_type=_text(fields.get("error_type")),
        error=_text(fields.get("error")),
    )


# What follows is for records that somebody else wrote into the log: whatever they hold, the others are shown.


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and 0 <= value < _MOST else 0.0


def _built(stories: Mapping[str, _Story]) -> tuple[TraceNode, ...]:
    caused: dict[str, list[str]] = {}
    order = sorted(stories, key=lambda event_id: stories[event_id].seq)
    for event_id in order:
        cause = stories[event_id].cause
        if cause is not None and cause in stories:
            caused.setdefault(cause, []).append(event_id)
    # Roots come first; whatever cannot be reached from one stands in a circle, or below one.
    found: set[str] = set()
    first = [event_id for event_id in order if stories[event_id].cause not in stories]
    roots = [_grown(event_id, stories, caused, found) for event_id in [*first, *order] if event_id not in found]
    roots.sort(key=lambda node: stories[node.event_id].seq)
    return tuple(roots)


def _grown(root: str, stories: Mapping[str, _Story], caused: Mapping[str, list[str]], found: set[str]) -> TraceNode:
    below: dict[str, list[str]] = {}
    order, waiting = [], [root]
    found.add(root)
    while waiting:
        event_id = waiting.pop()
        order.append(event_id)
        below[event_id] = [child for child in caused.get(event_id, ()) if child not in found]
        found.update(below[event_id])
        waiting.extend(below[event_id])
    nodes: dict[str, TraceNode] = {}
    for event_id in reversed(order):  # the leaves first: no call for each generation
        children = tuple(nodes.pop(child) for child in below[event_id])
        nodes[event_id] = stories[event_id].told(event_id, children)
    return nodes[root]
