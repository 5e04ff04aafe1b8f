"""The summary of a replay, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from aperion.cli.screen import safe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aperion.cli.summary import HandlerSummary, Summary

_TYPES = 20
_LETTERS = 20
_HEAD = "bold"
_UNITS = ((1e-6, "µs"), (1e-3, "ms"), (1, "s"))
_SHORTEST_IN_NEXT = 999.5  # what three digits would round up to the next unit
_WITHOUT_HANDLER = {
    "all_handlers_failed": "(all of them)",
    "validation_error": "(not accepted)",
    "serialization_error": "(not accepted)",
}


def rendered(summary: Summary) -> RenderableType:
    """Return the summary as something that a console prints."""
    return Group(*_sections(summary))


def _sections(summary: Summary) -> Iterator[RenderableType]:
    yield _head(summary)
    yield from _totals(summary)
    if summary.types:
        yield from _titled("Events by type", _types(summary))
    if summary.handlers:
        yield from _titled("Deliveries by handler, and how long handling took (p50, p95, p99)", _handlers(summary))
    if summary.letters:
        yield from _titled(
            f"Dead letters ({summary.dead_letters:,}): deliveries and events given up", _letters(summary)
        )
    yield Text()
    yield _fact("Audit log", summary.audit_log or "none: this application keeps no audit log")


def _head(summary: Summary) -> Text:
    did = "Stopped replaying" if summary.ending.signal or summary.ending.stopped else "Replayed"
    return Text(f"\n{did} {safe(summary.file)} through {safe(summary.application)}", style=_HEAD)


def _totals(summary: Summary) -> Iterator[Text]:
    ending = summary.ending
    yield _fact("Took", f"{_seconds(ending.seconds)}, {summary.rate:,.0f} events/s")
    yield _fact("Lines", f"{summary.read:,} read, {summary.accepted:,} accepted, {summary.rejected:,} rejected")
    yield _fact("Events", ", ".join(_events(summary)))
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


def _types(summary: Summary) -> Table:
    table = _table("event type", right=("events",))
    for name, count in summary.types[:_TYPES]:
        table.add_row(safe(name), f"{count:,}")
    rest = summary.types[_TYPES:]
    if rest:
        table.add_row(f"… and {len(rest):,} more types", f"{sum(count for _, count in rest):,}")
    return table


def _handlers(summary: Summary) -> Table:
    table = _table("handler", right=("ok", "failed", "timed out", "skipped", "retried", "p50", "p95", "p99"))
    for handler in summary.handlers:
        name = _short(handler.name, summary)
        table.add_row(name, *_counts(handler), *map(_seconds, (handler.p50, handler.p95, handler.p99)))
    return table


def _short(handler: str, summary: Summary) -> str:
    # Those of the application's own module go without its name, which leaves no room on a terminal.
    return safe(handler.removeprefix(f"{summary.application.partition(':')[0]}."))


def _counts(handler: HandlerSummary) -> Iterator[Text | str]:
    yield f"{handler.ok:,}"
    for failures in (handler.failed, handler.timed_out):
        yield Text(f"{failures:,}", style="red" if failures else "")
    yield f"{handler.skipped:,}"
    yield f"{handler.retried:,}"


def _letters(summary: Summary) -> Table:
    table = _table("reason", "event type", "handler", "error", right=("count",))
    for group in summary.letters[:_LETTERS]:
        name = group.handler or _WITHOUT_HANDLER.get(group.reason, "-")
        reason = group.reason.replace("_", " ")
        table.add_row(reason, safe(group.event_type), _short(name, summary), safe(group.error, 160), f"{group.count:,}")
    rest = summary.letters[_LETTERS:]
    if rest:
        table.add_row(f"… and {len(rest):,} more kinds", "", "", "", f"{sum(group.count for group in rest):,}")
    return table


def _titled(title: str, table: Table) -> Iterator[RenderableType]:
    yield Text(f"\n{title}", style=_HEAD)
    yield table


def _table(*left: str, right: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _fact(name: str, value: str, style: str = "") -> Text:
    return Text.assemble((f"{name:<10} ", "dim"), (value, style))


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for size, unit in _UNITS:
        if seconds < size * _SHORTEST_IN_NEXT:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:,.0f} s"
