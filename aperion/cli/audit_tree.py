"""A trace as a tree, with bars on a time axis for the attempts of each handler."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.text import Text

from aperion.audit.trace import walk
from aperion.cli.audit_rows import STYLES, clock, json_line, seconds
from aperion.cli.screen import safe

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from aperion.audit.trace import TraceAttempt, TraceDelivery, TraceNode

_DEEPEST = 12  # generations that are indented; those below stand in one column, with their depth in numbers
_LABEL, _BAR, _LEAST_BAR = 44, 40, 16
_PIPE_WIDTH = 120
_NANOSECONDS = 1_000_000_000
_HIDDEN = frozenset({"handler_started"})


def as_values(roots: Sequence[TraceNode]) -> dict[str, Any]:
    """Return a trace as JSON values: a flat list, since no reader of JSON takes a thousand levels."""
    return {
        "roots": [node.event_id for node in roots],
        "events": [
            {
                "event_id": node.event_id,
                "event_type": node.event_type,
                "time": node.time,
                "source": node.source,
                "depth": depth,
                "payload": node.payload,
                "deliveries": [asdict(delivery) for delivery in node.deliveries],
                "notes": [{"kind": note.kind, "time": note.time, "detail": note.detail} for note in node.notes],
                "children": [child.event_id for child in node.children],
            }
            for depth, node in walk(roots)
        ],
    }


def drawn(roots: Sequence[TraceNode], width: int) -> Iterator[Text]:
    """Return the lines of the tree: events, below each its handlers with a bar for every attempt."""
    axis = _Axis(roots, min(width, _PIPE_WIDTH))
    yield axis.title()
    yield axis.ruler()
    for depth, node, stem, last in _placed(roots):
        yield from _event(node, depth, stem, axis, last=last)


class _Axis:
    """From the first moment of a trace to its last, on so many columns."""

    __slots__ = ("bar", "end", "label", "start")

    def __init__(self, roots: Iterable[TraceNode], width: int) -> None:
        moments = [moment for _, node in walk(roots) for moment in _moments(node)]
        self.start, self.end = min(moments), max(moments)
        self.label = min(_LABEL, max(24, width // 3))
        self.bar = max(_LEAST_BAR, min(_BAR, width - self.label - 40))

    @property
    def span(self) -> int:
        return max(self.end - self.start, 1)

    def title(self) -> Text:
        return Text(f"{clock(self.start)} UTC, {seconds((self.end - self.start) / _NANOSECONDS)} in all", style="dim")

    def ruler(self) -> Text:
        end = seconds((self.end - self.start) / _NANOSECONDS)
        scale = f"0{end:>{self.bar - 1}}"
        return Text(f"{'':<{self.label}} {scale}", style="dim")

    def drawn(self, spans: Iterable[tuple[int, int, str]]) -> Text:
        cells: list[tuple[str, str]] = [("·", "dim")] * self.bar
        for start, end, style in spans:
            first = self._column(start)
            for column in range(first, max(first, self._column(end)) + 1):
                cells[column] = ("█" if style != STYLES["skipped"] else "▒", style)
        return Text.assemble(*cells)

    def mark(self, moment: int) -> Text:
        cells = [("·", "dim")] * self.bar
        cells[self._column(moment)] = ("▼", "bold")
        return Text.assemble(*cells)

    def _column(self, moment: int) -> int:
        return min(self.bar - 1, max(0, (moment - self.start) * self.bar // self.span))


def _moments(node: TraceNode) -> Iterator[int]:
    yield node.time
    for delivery in node.deliveries:
        for attempt in delivery.attempts:
            yield attempt.ended
            yield max(_started(attempt), 0)


def _started(attempt: TraceAttempt) -> int:
    return attempt.ended - int(attempt.duration * _NANOSECONDS)


def _placed(roots: Sequence[TraceNode]) -> Iterator[tuple[int, TraceNode, str, bool]]:
    """Yield each node with its depth, what stands left of it, and whether it is the last of its siblings."""
    waiting = [(0, node, "", True) for node in reversed(roots)]
    while waiting:
        depth, node, stem, last = waiting.pop()
        yield depth, node, stem, last
        below = stem if depth == 0 or depth >= _DEEPEST else stem + ("   " if last else "│  ")
        children = [(depth + 1, child, below, at == len(node.children) - 1) for at, child in enumerate(node.children)]
        waiting.extend(reversed(children))


def _event(node: TraceNode, depth: int, stem: str, axis: _Axis, *, last: bool) -> Iterator[Text]:
    branch = "" if depth == 0 else ("└─ " if last else "├─ ")
    deep = f"({depth}) " if depth > _DEEPEST else ""
    source = f" from {safe(node.source, 40)}" if node.source else ""
    said = Text.assemble((f"{source.strip()} " if source else "", "dim"), (safe(node.event_id), "dim"))
    yield _line(f"{stem}{branch}{deep}", safe(node.event_type), "bold", axis, axis.mark(node.time), said)
    inner = stem if depth == 0 or depth >= _DEEPEST else stem + ("   " if last else "│  ")
    inner += "│  " if node.children else "   "
    for delivery in node.deliveries:
        yield _delivery(delivery, inner, axis)
    for note in node.notes:
        if note.kind not in _HIDDEN:
            detail = safe(json_line(note.detail), 120) if note.detail else ""
            yield _line(inner, safe(note.kind, 40), "yellow", axis, axis.mark(note.time), Text(detail))


def _delivery(delivery: TraceDelivery, inner: str, axis: _Axis) -> Text:
    spans = [(_started(a), a.ended, STYLES.get(a.state, "")) for a in delivery.attempts]
    last = delivery.attempts[-1]
    tried = "1 attempt" if len(delivery.attempts) == 1 else f"{len(delivery.attempts)} attempts"
    took = seconds(sum(attempt.duration for attempt in delivery.attempts))
    error = f"  {safe(last.error_type)}: {safe(last.error or '', 160)}" if last.error_type else ""
    outcome = Text.assemble((safe(last.state, 40), STYLES.get(last.state, "")), f"  {tried}, {took}{error}")
    return _line(inner, safe(delivery.subscription), "", axis, axis.drawn(spans), outcome)


def _line(stem: str, name: str, style: str, axis: _Axis, bar: Text, said: Text) -> Text:
    room = max(axis.label - len(stem), 8)
    cut = name if len(name) <= room else f"{name[: room - 1]}…"
    return Text.assemble((stem, "dim"), (f"{cut:<{room}}", style), " ", bar, " ", said)
