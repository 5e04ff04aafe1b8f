"""The summary of a replay, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from aperion.cli.columns import Column, table
from aperion.cli.screen import safe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

    from aperion.cli.summary import Summary

_TYPES = 20
_LETTERS = 20
_LEAST = 16  # columns of text
_HEAD = "bold"
_UNITS = ((1e-6, "µs"), (1e-3, "ms"), (1, "s"))
_SHORTEST_IN_NEXT = 999.5  # what three digits would round up to the next unit
_WITHOUT_HANDLER = {
    "all_handlers_failed": "(all of them)",
    "validation_error": "(not accepted)",
    "serialization_error": "(not accepted)",
}


def rendered(summary: Summary, width: int) -> RenderableType:
    """Return the summary as something that a console of this width prints."""
    return Group(*_sections(summary, width))


def _sections(summary: Summary, width: int) -> Iterator[RenderableType]:
    yield _head(summary)
    yield from _totals(summary)
    if summary.types:
        yield from _titled("Events by type", _types(summary, width))
    if summary.handlers:
        yield from _titled(
            "Deliveries by handler, and how long handling took (p50, p95, p99)", _handlers(summary, width)
        )
    if summary.letters:
        yield from _titled(
            f"Dead letters ({summary.dead_letters:,}): deliveries and events given up", _letters(summary, width)
        )
    yield Text()
    yield _fact("Audit log", summary.audit_log or "none: this application keeps no audit log")
    why = "; ".join(summary.reasons) or "all went well"
    yield _fact("Exit code", f"{summary.exit_code}: {safe(why)}", "red" if summary.reasons else "")


def _head(summary: Summary) -> Text:
    did = "Stopped replaying" if summary.ending.signal or summary.ending.stopped else "Replayed"
    return Text(f"\n{did} {safe(summary.file)} through {safe(summary.application)}", style=_HEAD)


def _totals(summary: Summary) -> Iterator[Text]:
    ending = summary.ending
    yield _fact("Took", f"{_seconds(ending.seconds)}, {summary.rate:,.0f} events/s")
    yield _fact("Lines", f"{summary.read:,} read, {summary.accepted:,} accepted, {summary.rejected:,} rejected")
    yield _fact("Events", ", ".join(_events(summary)))
    if summary.left_out:
        yield _fact("Left out", f"{summary.left_out:,} lines about the old bus itself")
    if summary.rejected > len(summary.rejections):
        yield _fact("Bad lines", f"{summary.rejected:,}, of which the first {len(summary.rejections)} were shown")
    if summary.unknown_fields:
        fields = ", ".join(f"{safe(name, 40)} ({count:,})" for name, count in summary.unknown_fields.items())
        yield _fact("Ignored", f"fields that mean nothing here: {fields}")
    if ending.stopped:
        yield _fact("Stopped", safe(ending.stopped), "red")


def _events(summary: Summary) -> Iterator[str]:
    if summary.emitted_by_application:
        yield f"{summary.emitted_by_application:,} more emitted by the application"
    if summary.lost:
        yield f"{summary.lost:,} dropped because the bus was full"
    if summary.filtered:
        yield f"{summary.filtered:,} dropped by processors"
    yield f"{summary.unfinished:,} unfinished when the time to drain was over" if summary.unfinished else "all settled"


def _types(summary: Summary, width: int) -> Table:
    rows = [(safe(name), f"{count:,}") for name, count in summary.types[:_TYPES]]
    rest = summary.types[_TYPES:]
    if rest:
        rows.append((f"… and {len(rest):,} more types", f"{sum(count for _, count in rest):,}"))
    names, counts = zip(*rows, strict=True)
    return table([Column(name="event type", cells=names, least=_LEAST), Column(name="events", cells=counts)], width)


def _handlers(summary: Summary, width: int) -> Table:
    """Show who was called. Where there is no room, what did not happen goes first, and the name never."""
    handlers = summary.handlers
    names = [_short(handler.name, summary) for handler in handlers]
    columns = [Column(name="handler", cells=names, least=_LEAST)]
    for name, late in (("ok", 0), ("failed", 0), ("timed out", 0), ("skipped", 6), ("retried", 7)):
        counts = [getattr(handler, name.replace(" ", "_")) for handler in handlers]
        style = "red" if name in {"failed", "timed out"} else ""
        cells = [Text(f"{count:,}", style=style if count else "") for count in counts]
        gives_way = late if any(counts) else len(columns) if name != "ok" else 0
        columns.append(Column(name=name, cells=cells, gives_way=gives_way))
    for name, gives_way in (("p50", 10), ("p95", 9), ("p99", 8)):
        cells = [Text(_seconds(getattr(handler, name))) for handler in handlers]
        columns.append(Column(name=name, cells=cells, gives_way=gives_way))
    return table(columns, width)


def _short(handler: str, summary: Summary) -> str:
    # Those of the application's own module go without its name, which leaves no room on a terminal.
    return safe(handler.removeprefix(f"{summary.application.partition(':')[0]}."))


def _letters(summary: Summary, width: int) -> Table:
    rows = []
    for group in summary.letters[:_LETTERS]:
        name = _short(group.handler or _WITHOUT_HANDLER.get(group.reason, "-"), summary)
        reason = group.reason.replace("_", " ")
        rows.append((reason, safe(group.event_type), name, safe(group.error, 160), f"{group.count:,}"))
    rest = summary.letters[_LETTERS:]
    if rest:
        many = f"{sum(group.count for group in rest):,}"
        rows.append(("", "", f"… and {len(rest):,} more kinds", "", many))
    reasons, types, names, errors, counts = zip(*rows, strict=True)
    return table(
        [
            Column(name="reason", cells=reasons, least=_LEAST, gives_way=1),
            Column(name="event type", cells=types, least=_LEAST, gives_way=2),
            Column(name="handler", cells=names, least=_LEAST),
            Column(name="error", cells=errors, least=_LEAST),
            Column(name="count", cells=counts),
        ],
        width,
    )


def _titled(title: str, table: Table) -> Iterator[RenderableType]:
    yield Text(f"\n{title}", style=_HEAD)
    yield table


def _fact(name: str, value: str, style: str = "") -> Text:
    return Text.assemble((f"{name:<10} ", "dim"), (value, style))


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for size, unit in _UNITS:
        if seconds < size * _SHORTEST_IN_NEXT:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:,.0f} s"
