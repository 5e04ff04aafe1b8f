"""What a census counted, for people: tables, and bars over time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from aperion.cli.audit_rows import STYLES, clock, seconds
from aperion.cli.audit_stats import SLICES
from aperion.cli.screen import safe

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator

    from rich.console import RenderableType

    from aperion.cli.audit_stats import Census, Slice

_SHOWN = 20
_BAR, _NARROW = 24, 15  # columns; two narrow ones and their numbers fit a terminal of 80
_DAY = 86_400
_PARTS = " ▏▎▍▌▋▊▉█"
_STATES = ("ok", "failed", "timed_out", "skipped")


def sections(census: Census) -> Iterator[RenderableType]:
    """Return the parts of the report in their order."""
    yield Text.assemble(
        (f"{census.records:,} records", "bold"), f" from {clock(census.since)} to {clock(census.until)} UTC"
    )
    yield from _counted("Records by kind", "kind", census.kinds)
    yield from _counted("Accepted events by type", "event type", census.types)
    if census.handlers:
        yield Text("\nOutcomes of attempts by handler, and how long handling took", style="bold")
        yield _handlers(census)
    yield Text(f"\nOver time: a row is {seconds(census.width)}", style="bold")
    yield _over_time(census)


def _counted(title: str, what: str, counts: Counter[str]) -> Iterator[RenderableType]:
    if not counts:
        return
    yield Text(f"\n{title}", style="bold")
    table = _table(what, right=("count",))
    table.add_column("")
    most = counts.most_common(1)[0][1]
    for name, count in counts.most_common(_SHOWN):
        table.add_row(safe(name, 80), f"{count:,}", Text(bar(count, most), style="cyan"))
    if len(counts) > _SHOWN:
        rest = sum(count for _, count in counts.most_common()[_SHOWN:])
        table.add_row(f"… and {len(counts) - _SHOWN:,} more", f"{rest:,}", "")
    yield table


def _handlers(census: Census) -> Table:
    table = _table("handler", right=(*(state.replace("_", " ") for state in _STATES), "p50", "p99"))
    busiest = sorted(census.handlers.items(), key=lambda entry: -entry[1][0].total())
    for name, (states, durations) in busiest[:_SHOWN]:
        numbers = [Text(f"{states[s]:,}", style=STYLES[s] if states[s] and s != "ok" else "") for s in _STATES]
        table.add_row(safe(name, 80), *numbers, seconds(durations.percentile(50)), seconds(durations.percentile(99)))
    if len(busiest) > _SHOWN:
        table.add_row(f"… and {len(busiest) - _SHOWN:,} more", *[""] * (len(_STATES) + 2))
    return table


def _over_time(census: Census) -> Table:
    table = _table("from (UTC)", right=("events/s",))
    table.add_column("")
    table.add_column("failed", justify="right")
    table.add_column("p50", justify="right", no_wrap=True)
    table.add_column("p99", justify="right", no_wrap=True)
    table.add_column("")
    most = max(piece.accepted for piece in census.slices)
    slowest = max(piece.p99 or 0.0 for piece in census.slices)
    for piece in census.slices:
        table.add_row(*_row(piece, census.width, most, slowest))
    return table


def _row(piece: Slice, width: float, most: int, slowest: float) -> Iterator[Text | str]:
    yield _stamp(piece.start, width)
    yield f"{piece.accepted / width:,.3g}" if piece.accepted / width < 1000 else f"{piece.accepted / width:,.0f}"
    yield Text(f"{bar(piece.accepted, most, _NARROW):<{_NARROW}}", style="cyan")
    yield Text(f"{piece.failed:,}", style="red" if piece.failed else "")
    yield seconds(piece.p50)
    yield seconds(piece.p99)
    yield Text(bar(piece.p99 or 0.0, slowest, _NARROW), style="yellow")


def _stamp(time_ns: int, width: float) -> str:
    # As much of the time as tells two rows apart; the first line of the report has all of it.
    if width < 1:
        return clock(time_ns)[11:]
    return clock(time_ns)[11:19] if width * SLICES < _DAY else clock(time_ns)[5:16]


def bar(value: float, most: float, width: int = _BAR) -> str:
    """Return a bar of eighths of a character; a value above zero shows at least one of them.

    >>> bar(1, 2, 4)
    '██'
    """
    if value <= 0 or most <= 0:
        return ""
    eighths = max(1, round(value / most * width * 8))
    return "█" * (eighths // 8) + (_PARTS[eighths % 8] if eighths % 8 else "")


def _table(*left: str, right: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table
